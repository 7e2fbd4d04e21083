"""Injection attempts: line breaks, NUL, markup and megabytes in names, tokens, keys and headers."""

import pytest
from django.core.exceptions import ValidationError
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository
from deliveries_app.services import onboard_app, watch_repository
from docora.http.client import Request
from tests.docora.http_server import saying, servers
from tests.hostile.conftest import Api
from tests.support.staff import make_watch
from tests.support.world import World

MEGABYTES = 10_000_000

TOKENS: dict[str, str] = {
    "a line break": "ghp_1\r\nX-Evil: 1",
    "a line feed": "ghp_1\n",
    "a carriage return": "ghp\r1",
    "NUL": "ghp_\x001",
    "a space": "ghp 1",
    "a tab": "ghp\t1",
    "an escape": "\x1b[31mghp",
    "DEL": "ghp\x7f",
    "an accent": "ghp_é",
    "an emoji": "ghp_😀",
    "a full-width letter": "ｇhp_1",
    "256 characters": "x" * 256,
    "60 kB": "x" * 60_000,
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_token_with_invalid_characters_is_rejected_everywhere(app: App, api: Api, root: Client, token: str) -> None:
    with pytest.raises(ValidationError, match="1 to 255 printable ASCII characters without spaces"):
        watch_repository(Actor.command(), app, "http://127.0.0.1/acme/widgets", github_token=token)

    body = {"github_url": "http://127.0.0.1/acme/widgets", "github_token": token}
    refused = api("POST", "repositories", body)
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("The field github_token must ")

    watch = make_watch(app, "docs")
    replaced = api("PATCH", f"repositories/{watch.repository.repository_id}/token", {"github_token": token})
    assert (replaced.status_code, replaced.json()) == (422, refused.json())

    for path, fields in (
        ("add/", {"app": app.pk, "github_url": "http://127.0.0.1/acme/widgets"}),
        (f"{watch.pk}/token/", {}),
    ):
        page = root.post(f"/admin/deliveries_app/apprepository/{path}", fields | {"github_token": f"x{token}x"})
        assert (page.status_code, "errorlist" in page.text) == (200, True)
    watch.refresh_from_db()
    assert watch.github_token == "ghp_secret"
    assert AppRepository.objects.count() == 1


NAMES: dict[str, str] = {
    "a line break": "Por\r\ntal",
    "NUL": "Por\0tal",
    "a terminal escape": "Por\x1b[2Jtal",
    "a right-to-left override": "Por\u202etal",
    "a line separator": "Por\u2028tal",
    "zero-width letters": "Por\u200btal",
    "two letters": "ab",
    "only spaces": "      ",
    "101 letters": "x" * 101,
    "10 MB": "x" * MEGABYTES,
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_invalid_name_is_rejected(app: App, root: Client, name: str) -> None:
    with pytest.raises(ValidationError, match="must have 3 to 100 printable characters"):
        onboard_app(Actor.command(), name=name, base_url="https://x.example", email="a@b.example")
    fields = {"name": name, "base_url": "https://x.example", "email": "a@b.example", "max_in_flight": 1}
    for path in ("add/", f"{app.pk}/change/"):
        page = root.post(f"/admin/deliveries_app/app/{path}", fields)
        if len(name) < MEGABYTES:
            assert (page.status_code, "errorlist" in page.text) == (200, True)
        else:
            assert page.status_code == 400
    assert [known.name for known in App.objects.all()] == [app.name]


FIELDS: dict[str, tuple[dict[str, str], str]] = {
    "an e-mail with a header": ({"email": "a@b.example\nBcc: c@d.example"}, "email address is malformed"),
    "an e-mail with NUL": ({"email": "a\0@b.example"}, "email address is malformed"),
    "an e-mail of 10 MB": ({"email": "a" * MEGABYTES + "@b.example"}, "email address is malformed"),
    "a website that is a script": ({"website": "javascript:alert(1)"}, "The website must be a URL"),
    "a website that is data": ({"website": "data:text/html,<script>"}, "The website must be a URL"),
    "a website with a line break": ({"website": "https://x.example/\r\nx"}, "The website must be a URL"),
    "a website of 10 MB": ({"website": "https://x.example/" + "x" * MEGABYTES}, "The website must be a URL"),
    "a description of 10 MB": ({"description": "x" * MEGABYTES}, "at most 500 characters"),
    "a key of 15 characters": ({"client_auth_key": "x" * 15}, "16 to 500"),
    "a key of 10 MB": ({"client_auth_key": "x" * MEGABYTES}, "16 to 500"),
}


@pytest.mark.django_db
@pytest.mark.parametrize(("fields", "message"), FIELDS.values(), ids=FIELDS)
def test_invalid_field_of_an_app_is_rejected(fields: dict[str, str], message: str) -> None:
    defaults = {"name": "Portal", "base_url": "https://x.example", "email": "a@b.example"}
    with pytest.raises(ValidationError, match=message):
        onboard_app(Actor.command(), **defaults | fields)
    assert not App.objects.exists()


HEADERS: dict[str, str] = {
    "CR and LF": "X-A: 1\r\nX-Evil: 2",
    "LF": "X-A: 1\nX-Evil: 2",
    "CR": "X-A: 1\rX-Evil: 2",
    "NUL": "X-A: 1\0",
    "no colon": "X-A",
    "an accent": "X-A: é",
    "a line separator": "X-A: \u2028",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_header_injection_is_rejected(header: str) -> None:
    with pytest.raises(ValueError, match=r"Headers must be ASCII|must look like 'Name: value'"):
        Request("POST", "https://portal.example/create", (header,), b"{}")


BODIES: dict[str, bytes] = {
    "markup": b"<script>alert(1)</script><img src=x onerror=alert(1)>",
    "NUL": b"a\0b",
    "not UTF-8": b"\xff\xfe\x00",
    "a terminal escape": b"\x1b[2J\x1b]0;pwned\x07",
    "a lone surrogate": b"\xed\xa0\x80",
    "a megabyte": b"x" * 1_000_000,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_response_of_an_app_is_escaped_and_bounded(world: World, root: Client, body: bytes) -> None:
    with servers() as serve:
        App.objects.filter(pk=world.app.pk).update(base_url=serve(saying("400 Bad Request", body)).url)
        _, watch = world.watch()
        world.sync(watch)
    [failure] = watch.failures.all()
    assert len(failure.body) <= 500
    assert not set(failure.body) & set("\0\x1b\x07")
    page = root.get(f"/admin/deliveries_app/apprepository/{watch.pk}/change/")
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert "<img src=x" not in page.text
