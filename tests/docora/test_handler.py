"""The WSGI handler answers requests that Django refuses before any middleware runs."""

from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from docora.web.handler import Handler


@pytest.mark.parametrize("content_type", ["text/plain; a*=no-charset''%41", f"text/plain; a={'x' * 20_000}"])
@pytest.mark.parametrize(("path", "status"), [("/health", "405"), ("/nowhere", "404")])
@pytest.mark.django_db
def test_malformed_content_type_is_ignored(path: str, status: str, content_type: str) -> None:
    """It was a server error on every page, and a traceback in the log for each request."""
    answered: list[Any] = []
    environ = {"PATH_INFO": path, "REQUEST_METHOD": "POST", "CONTENT_TYPE": content_type, "HTTP_HOST": "localhost"}
    setup_testing_defaults(environ)
    Handler()(environ, lambda *answer: answered.append(answer)).close()
    assert answered[0][0].startswith(status)
