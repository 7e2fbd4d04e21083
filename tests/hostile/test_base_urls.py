"""Invalid base URLs of client apps are rejected when an app is registered and when it is changed."""

import pytest
from django.core.exceptions import ValidationError
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.models import App
from deliveries_app.services import onboard_app

CREDENTIALS, SCHEME = "must not contain credentials, a query or a fragment", "must start with https://"
ASCII, MALFORMED, FORM = "printable ASCII", "is malformed", "must look like https://host[:port]/path"

URLS: dict[str, tuple[str, str]] = {
    "plain http": ("http://portal.example/hooks", SCHEME),
    "a file": ("file:///etc/passwd", SCHEME),
    "gopher": ("gopher://127.0.0.1:6379/_FLUSHALL", SCHEME),
    "dict": ("dict://127.0.0.1:6379/info", SCHEME),
    "ftp": ("ftp://portal.example/", SCHEME),
    "javascript": ("javascript:alert(1)", SCHEME),
    "data": ("data:text/html,x", SCHEME),
    "no scheme": ("portal.example/hooks", SCHEME),
    "no host": ("https:///hooks", SCHEME),
    "one slash": ("https:/portal.example", SCHEME),
    "a user": ("https://user@portal.example", CREDENTIALS),
    "a user and a password": ("https://user:hunter2@portal.example", CREDENTIALS),
    "a host that looks like a user": ("https://portal.example@169.254.169.254/", CREDENTIALS),
    "a query": ("https://portal.example/hooks?a=b", CREDENTIALS),
    "an empty query": ("https://portal.example/hooks?", CREDENTIALS),
    "a fragment": ("https://portal.example/hooks#x", CREDENTIALS),
    "a line break": ("https://portal.example/a\r\nX-Evil: 1", ASCII),
    "NUL": ("https://portal.example/\0", ASCII),
    "a space": ("https://portal.example/a b", ASCII),
    "a host in another script": ("https://bücher.example", ASCII),
    "a right-to-left override": ("https://portal.example/\u202e", ASCII),
    "an invalid port": ("https://portal.example:x/", MALFORMED),
    "a port out of range": ("https://portal.example:99999/", MALFORMED),
    "a bracket that is not closed": ("https://[::1", MALFORMED),
    "a zone": ("https://[fe80::1%25eth0]/", FORM),
    "an escaped host": ("https://portal%2eexample/", FORM),
    "a backslash for a slash": ("https://portal.example\\@127.0.0.1/", CREDENTIALS),
    "over 2,048 characters": ("https://portal.example/" + "x" * 2048, "at most 2048"),
    "a megabyte": ("https://portal.example/" + "x" * 1_000_000, "at most 2048"),
}


@pytest.fixture(autouse=True)
def _production_rules(settings) -> None:
    settings.ALLOW_HTTP = False
    settings.ALLOWED_PRIVATE_NETWORKS = []


def test_invalid_base_url_is_rejected(app: App, root: Client, subtests: pytest.Subtests) -> None:
    for name, (url, message) in URLS.items():
        with subtests.test(name):
            with pytest.raises(ValidationError) as raised:
                onboard_app(Actor.command(), name="Evil", base_url=url, email="a@b.example")
            assert message in raised.value.messages[0]
            assert "hunter2" not in raised.value.messages[0]

            fields = {"name": "Evil", "base_url": url, "email": "a@b.example", "max_in_flight": 1}
            for path in ("add/", f"{app.pk}/change/"):
                page = root.post(f"/admin/deliveries_app/app/{path}", fields)
                assert page.status_code in {200, 400}  # 400: the form exceeds DATA_UPLOAD_MAX_MEMORY_SIZE
                assert page.status_code == 400 or list(page.context["adminform"].form.errors) == ["base_url"]
            assert list(App.objects.values_list("name", "base_url")) == [(app.name, app.base_url)]
