"""Every error below `/api/` has one shape, and says what to do."""

import json
import logging
from io import BytesIO

import pytest
from django.test import Client, RequestFactory

from deliveries_app import services
from docora.web.api import TooLarge, pieces
from tests.api.caller import Caller, error_of

URL = "/api/repositories"


UNKNOWN = ["/api/", "/api/nothing", "/api/repositories/", "/api/hooks/push/", "/api/docs", "/admin/api/nothing"]


@pytest.mark.parametrize("path", [*UNKNOWN, "/health/", "/version/", "/openapi.json/"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_path_is_a_404_that_names_the_list_of_calls(method: str, path: str) -> None:
    """A real client has no CSRF token, and is not asked for one by what does not exist."""
    assert "/docs/ lists" in error_of(Client(enforce_csrf_checks=True).generic(method, path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("put", URL, "GET, POST"),
        ("options", URL, "GET, POST"),
        ("post", f"{URL}/repo_1", "DELETE, GET"),
        ("get", f"{URL}/repo_1/token", "PATCH"),
        ("get", "/api/hooks/push/repo_1", "POST"),
        ("post", "/api/openapi.json", "GET, HEAD"),
        ("post", "/openapi.json", "GET, HEAD"),
        ("post", "/health", "GET, HEAD"),
        ("put", "/health/ready", "GET, HEAD"),
        ("delete", "/version", "GET, HEAD"),
        ("get", "/admin/api/resync", "POST"),
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_ones(method: str, path: str, allowed: str) -> None:
    answer = getattr(Client(enforce_csrf_checks=True), method)(path)
    assert error_of(answer, 405) == f"{method.upper()} is not possible here: use {allowed}"
    assert answer.headers["Allow"] == allowed


@pytest.mark.parametrize("body", ["{", "[1,]", "{'a': 1}", '"' + "\x00", "[" * 20_000, "NaN", "null"])
def test_malformed_json_is_a_422(portal: Caller, body: str) -> None:
    words = error_of(portal.client.post(URL, body, content_type="application/json"), 422)
    assert "JSON" in words


def test_bytes_that_are_no_text_are_a_422(portal: Caller) -> None:
    answer = portal.client.post(URL, b'{"github_url": "\xff\xfe"}', content_type="application/json")
    assert "not valid JSON" in error_of(answer, 422)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
def test_another_content_type_is_a_422_in_words(portal: Caller, content_type: str) -> None:
    answer = portal.client.generic("POST", URL, b'{"github_url": "x"}', content_type=content_type)
    assert "Content-Type: application/json" in error_of(answer, 422)


def test_a_charset_beside_the_content_type_is_fine(portal: Caller) -> None:
    answer = portal.client.post(URL, "{}", content_type="application/json; charset=utf-8")
    assert error_of(answer, 422) == "The field github_url is required"


def test_a_body_that_is_missing_is_a_422(portal: Caller) -> None:
    answer = portal.client.generic("POST", URL, b"", content_type="application/json")
    assert "must be a JSON object" in error_of(answer, 422)


def test_several_mistakes_are_told_at_once(portal: Caller) -> None:
    words = error_of(portal.post("", {"github_url": "", "github_token": 7}), 422)
    assert words == "The field github_url must not be empty; The field github_token must be a string"


@pytest.mark.parametrize(("path", "verb"), [(URL, "post"), (f"{URL}/repo_1/token", "patch")])
def test_a_body_that_is_too_large_is_a_413(portal: Caller, path: str, verb: str) -> None:
    body = json.dumps({"github_url": "x" * 70_000})
    answer = getattr(portal.client, verb)(path, body, content_type="application/json")
    assert "at most 65,536 bytes" in error_of(answer, 413)


@pytest.mark.parametrize(("path", "verb"), [(URL, "post"), (f"{URL}/repo_1/token", "patch")])
def test_nothing_is_read_of_the_body_of_an_unknown_caller(client: Client, path: str, verb: str) -> None:
    answer = getattr(client, verb)(path, "{}", content_type="application/json")
    error_of(answer, 401)
    assert answer.wsgi_request._read_started is False


def chunked(content: bytes):
    """A request whose length was not announced, as a server hands it over that ends the input itself."""
    request = RequestFactory().post(URL)
    del request.META["CONTENT_LENGTH"]
    request.META |= {"wsgi.input": BytesIO(content), "wsgi.input_terminated": True}
    return request


def test_a_chunked_body_is_read_and_bounded_too() -> None:
    assert b"".join(pieces(chunked(b"x" * 200_000), 200_000)) == b"x" * 200_000
    with pytest.raises(TooLarge, match="at most 199,999 bytes"):
        list(pieces(chunked(b"x" * 200_000), 199_999))


def test_an_unexpected_error_tells_the_log_and_not_the_caller(portal: Caller, monkeypatch, caplog) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("the secret cause")

    monkeypatch.setattr(services, "watch_repository", fail)
    with caplog.at_level(logging.ERROR):
        words = error_of(portal.post("", {"github_url": "https://127.0.0.1/a/b"}), 500)
    assert words == "Internal error; the log has the cause"
    assert "the secret cause" in caplog.text
