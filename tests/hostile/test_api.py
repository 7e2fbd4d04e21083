"""Malformed and forged REST API calls, and calls about other apps' repositories."""

import json
from collections.abc import Callable

import pytest
from django.test import Client
from django.utils import timezone

from deliveries_app.api import openapi
from deliveries_app.models import App, AppRepository, AppToken, Delivery, SyncRun
from docora.security.crypto import hash_token
from tests.hostile.conftest import Api, token_of, visitor
from tests.support.staff import make_app, make_watch

JSON, OBJECT, FIELD = "not valid JSON", "must be a JSON object", "The field github_url"

BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", OBJECT),
    "blanks": (b"  \n", JSON),
    "a bracket": (b"{", JSON),
    "a bracket too many": (b"{}}", JSON),
    "a comma too many": (b'{"github_url":"x",}', JSON),
    "single quotes": (b"{'github_url':'x'}", JSON),
    "no quotes": (b"{github_url:x}", JSON),
    "a comment": (b'{"github_url":"x"/**/}', JSON),
    "a form": (b"github_url=https://github.com/a/b", JSON),
    "XML": (b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>", JSON),
    "not UTF-8": (b'{"github_url":"\xff\xfe"}', JSON),
    "half a character": (b'{"github_url":"\xc3"}', JSON),
    "NUL in the text": (b'{"github_url":"\0"}', JSON),
    "a byte order mark": (b'\xef\xbb\xbf{"github_url":"x"}', "must look like"),
    "brackets without end": (b"[" * 60_000, JSON),
    "objects without end": (b'{"a":' * 10_000, JSON),
    "digits without end": (b'{"github_url":' + b"9" * 50_000 + b"}", JSON),
    "null": (b"null", OBJECT),
    "true": (b"true", OBJECT),
    "a list": (b"[]", OBJECT),
    "a list of pairs": (b'[["github_url","x"]]', OBJECT),
    "a string": (b'"https://github.com/a/b"', OBJECT),
    "a number": (b"1", OBJECT),
    "not a number": (b"NaN", OBJECT),
    "an empty object": (b"{}", FIELD),
    "another field": (b'{"url":"https://github.com/a/b"}', FIELD),
    "a number for the URL": (b'{"github_url":1}', FIELD),
    "null for the URL": (b'{"github_url":null}', FIELD),
    "a list for the URL": (b'{"github_url":["https://github.com/a/b"]}', FIELD),
    "an object for the URL": (b'{"github_url":{"$ne":null}}', FIELD),
    "a lone surrogate": (b'{"github_url":"\\ud800"}', FIELD),
    "an escaped NUL": (b'{"github_url":"https://github.com/a/\\u0000"}', "must look like"),
    "a number for the token": (b'{"github_url":"https://github.com/a/b","github_token":1}', "The field github_token"),
    "prototype": (b'{"__proto__":{"github_url":"https://github.com/a/b"}}', FIELD),
}


@pytest.mark.parametrize(("body", "message"), BODIES.values(), ids=BODIES)
def test_malformed_body(api: Api, body: bytes, message: str) -> None:
    response = api("POST", "repositories", body)
    assert response.status_code == 422
    assert message in response.json()["error"]
    assert not AppRepository.objects.exists()


@pytest.mark.parametrize("size", [65_537, 10_000_000], ids=["64 kB and a byte", "10 MB"])
def test_body_beyond_the_limit_is_rejected(app: App, api: Api, size: int) -> None:
    watch = make_watch(app, "docs")
    body = b'{"github_token":"' + b"x" * (size - 19) + b'"}'
    for method, path in (
        ("POST", "repositories"),
        ("PATCH", f"repositories/{watch.repository.repository_id}/token"),
    ):
        response = api(method, path, body)
        assert response.status_code == 413
        assert "The body is too large" in response.json()["error"]


TYPES = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/xml",
    "text/json",
    "application/json5",
    "application/jsonp",
    "application",
    "",
    "\u00e9",
    "application/json\0",
    "x" * 10_000,
]


@pytest.mark.parametrize("content_type", TYPES, ids=lambda name: repr(name[:24]))
def test_wrong_content_type_is_rejected(api: Api, content_type: str) -> None:
    response = api("POST", "repositories", b'{"github_url":"http://127.0.0.1/acme/widgets"}', content_type)
    assert response.status_code == 422
    assert "Content-Type: application/json" in response.json()["error"]


# --- Authentication ---------------------------------------------------------------------------------------------------
GOOD = "docora_" + "ab" * 32
AUTHORIZATIONS: dict[str, str | None] = {
    "no header": None,
    "an empty one": "",
    "no scheme": GOOD,
    "another scheme": f"Basic {GOOD}",
    "no token": "Bearer ",
    "an unknown token": "Bearer docora_" + "00" * 32,
    "the token in capitals": f"Bearer {GOOD.upper()}",
    "the token cut short": f"Bearer {GOOD[:-1]}",
    "the token and more": f"Bearer {GOOD}0",
    "two tokens": f"Bearer {GOOD} {GOOD}",
    "a list": f"Bearer {GOOD},x",
    "the digest that is stored": f"Bearer {hash_token(GOOD)}",
    "SQL": "Bearer ' OR '1'='1",
    "a wildcard": "Bearer docora_%",
    "NUL": "Bearer docora_\0",
    "not ASCII": "Bearer docora_é",
    "null": "Bearer null",
    "60 kB": "Bearer " + "a" * 60_000,
}


@pytest.mark.parametrize("authorization", AUTHORIZATIONS.values(), ids=AUTHORIZATIONS)
def test_invalid_authorization_is_401(app: App, authorization: str | None) -> None:
    AppToken.objects.create(app=app, digest=hash_token(GOOD), ending="abab")
    watch = make_watch(app, "docs")
    client = Client(raise_request_exception=False)
    headers = {} if authorization is None else {"authorization": authorization}
    for number, (method, path) in enumerate(calls(watch.repository.repository_id)):
        address = f"203.0.113.{number}"  # more failures from one address would be a 429
        response = client.generic(method, path, b"{}", "application/json", headers=headers, REMOTE_ADDR=address)
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer"), path
        assert "Authorization: Bearer docora_" in response.json()["error"]
    assert client.get("/api/repositories", headers={"authorization": f"Bearer {GOOD}"}).status_code == 200


def test_admin_session_is_not_accepted(app: App) -> None:
    root = visitor("root", superuser=True)
    for method, path in calls(make_watch(app, "docs").repository.repository_id):
        assert root.generic(method, path, b"{}", "application/json").status_code == 401


def calls(repository_id: str) -> list[tuple[str, str]]:
    """Return method and path of every call that needs a token."""
    return [
        (method.upper(), path.format(repository_id=repository_id, run_id="run_" + "0" * 24))
        for path, operations in openapi.document()["paths"].items()
        for method, operation in operations.items()
        if operation["security"]
    ]


METHODS = ["PUT", "PATCH", "POST", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "X" * 1000]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method[:10])
def test_other_method_is_405_with_the_allowed_ones(app: App, api: Api, method: str) -> None:
    repository_id = make_watch(app, "docs").repository.repository_id
    before = state()
    for path in ("repositories", f"repositories/{repository_id}", f"repositories/{repository_id}/manifest"):
        if method in {known for known, address in calls(repository_id) if address == f"/api/{path}"}:
            continue
        response = api(method, path)
        assert response.status_code == 405, path
        assert "is not allowed here: use " in response.json()["error"]
    assert state() == before


# --- Other apps' data --------------------------------------------------------------------------------------------------
CALLS: dict[str, tuple[str, str, object]] = {
    "get": ("GET", "", b""),
    "unwatch": ("DELETE", "", b""),
    "replace the token": ("PATCH", "/token", {"github_token": "ghp_of_mine"}),
    "re-sync": ("POST", "/resync", b""),
    "list the files": ("GET", "/manifest", b""),
    "list the failures": ("GET", "/failures", b""),
    "list the deliveries": ("GET", "/deliveries", b""),
    "list the runs": ("GET", "/runs", b""),
    "get a run": ("GET", "/runs/run_" + "0" * 24, b""),
    "resend": ("POST", "/resend", {"paths": ["secret.txt"]}),
    "renew the push secret": ("POST", "/push-secret", b""),
}


def others(app: App) -> AppRepository:
    watch = make_watch(make_app("Search"), "docs")
    make_watch(app, "site")
    return watch


def ended(app: App) -> AppRepository:
    watch = make_watch(app, "docs")
    AppRepository.objects.filter(pk=watch.pk).update(ended_at="2026-01-01T00:00:00Z")
    return watch


def shared(app: App) -> AppRepository:
    """Return a watch of another app on a repository that this app has stopped watching."""
    ended(app)
    return make_watch(make_app("Search"), "docs")


IDS: dict[str, Callable[[App], str]] = {
    "another app's": lambda app: others(app).repository.repository_id,
    "one that this app no longer watches": lambda app: ended(app).repository.repository_id,
    "one that only another app still watches": lambda app: shared(app).repository.repository_id,
    "another app's primary key": lambda app: str(others(app).pk),
    "another app's watch id": lambda app: others(app).watch_id,
    "this app's own id": lambda app: app.app_id,
    "unknown": lambda app: "repo_" + "0" * 24,
    "in capitals": lambda app: make_watch(app, "docs").repository.repository_id.upper(),
    "followed by a blank": lambda app: make_watch(app, "docs").repository.repository_id + "%20",
    "a wildcard": lambda app: "%25",
    "SQL": lambda app: "' OR 1=1 --",
    "NUL": lambda app: "repo_%00",
    "not UTF-8": lambda app: "%ff%fe",
    "a lone surrogate": lambda app: "%ed%a0%80",
    "dots": lambda app: "..%2f..%2fadmin",
    "10 kB": lambda app: "x" * 10_000,
}


@pytest.mark.parametrize("identify", IDS.values(), ids=IDS)
def test_repository_not_watched_by_the_app_is_404(app: App, api: Api, identify: Callable[[App], str]) -> None:
    repository_id = identify(app)
    for watch in AppRepository.objects.exclude(app=app):
        fields = {
            "path": "secret.txt",
            "mode": "100644",
            "kind": "create",
            "sha": "0" * 64,
            "size": 1,
            "sequence": 1,
            "updated_at": timezone.now(),
        }
        Delivery.objects.create(watch=watch, generation=1, acknowledged=True, **fields)
    before = state()
    for name, (method, path, body) in CALLS.items():
        response = api(method, f"repositories/{repository_id}{path}", body)
        assert response.status_code == 404, name
        assert response.json()["code"] in {"not_watched", "not_found"}, name
    assert state() == before


@pytest.mark.parametrize(
    ("query", "status"), [("deliveries?path=a%00", 200), ("manifest?after=a%00", 200), ("runs/run_%00", 404)]
)
def test_nul_in_a_path_or_id_finds_nothing(app: App, api: Api, query: str, status: int) -> None:
    """PostgreSQL accepts none in a text."""
    watch = make_watch(app, "docs")
    response = api("GET", f"repositories/{watch.repository.repository_id}/{query}")
    assert (response.status_code, b'"path"' in response.getvalue()) == (status, False)


def test_list_shows_only_the_apps_own_repositories(app: App, api: Api) -> None:
    foreign = others(app)
    assert [row["name"] for row in api("GET", "repositories").json()["repositories"]] == ["site"]
    assert foreign.repository.repository_id not in api("GET", "repositories").text
    theirs = Client().get("/api/repositories", headers={"authorization": f"Bearer {token_of(foreign.app)}"})
    assert [row["name"] for row in theirs.json()["repositories"]] == ["docs"]


def state() -> object:
    """Return everything that a call could change."""
    watches = AppRepository.objects.order_by("pk").values()
    return json.dumps([list(watches), list(SyncRun.objects.values()), list(Delivery.objects.values())], default=str)


# --- Push hooks -------------------------------------------------------------------------------------------------------
SIGNATURES: dict[str, str | None] = {
    "none": None,
    "empty": "",
    "no digest": "sha256=",
    "a wrong digest": "sha256=" + "0" * 64,
    "the empty secret": "sha256=b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad",
    "SHA-1": "sha1=" + "0" * 40,
    "capitals": "SHA256=" + "0" * 64,
    "not hex": "sha256=" + "z" * 64,
    "not ASCII": "sha256=" + "é" * 64,
    "60 kB": "sha256=" + "0" * 60_000,
}


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
@pytest.mark.parametrize("known", [True, False], ids=["a watched repository", "an unknown one"])
def test_push_hook_without_a_valid_signature_reveals_nothing(app: App, signature: str | None, known: bool) -> None:
    watch = make_watch(app, "docs", push_secret="the secret of the hook")
    make_watch(app, "site")  # has no secret: a signature with an empty one is invalid
    repository_id = watch.repository.repository_id if known else "repo_" + "0" * 24
    before, headers = state(), {} if signature is None else {"x-hub-signature-256": signature}
    response = Client(raise_request_exception=False).post(
        f"/api/hooks/push/{repository_id}", b"", content_type="application/json", headers=headers
    )
    assert (response.status_code, state()) == (401, before)
    message = (
        "Sign the body with the push hook secret of the watch, in X-Hub-Signature-256 or your git host's own header"
    )
    assert response.json()["error"] == message
