"""Imported tokens, stored as bcrypt hashes: they work unchanged, and the cost of checking them is bounded."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import bcrypt
import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppToken
from deliveries_app.services import imported_tokens, tokens
from docora.security.crypto import hash_token, new_token
from docora.security.throttle import FAILURES, SECONDS
from docora.web.errors import INTERNAL
from tests.api.caller import Caller, error_of
from tests.support.existing import ExistingService
from tests.support.processes import in_threads
from tests.support.staff import make_app, staff


@pytest.fixture
def checked(monkeypatch) -> list[bytes]:
    """The hashes that were checked, in order."""
    checked: list[bytes] = []
    original = bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda token, known: checked.append(known) or original(token, known))
    return checked


def imported(name: str, *, cost: int = 4) -> tuple[App, str]:
    """Return an app whose token is stored as a bcrypt hash, and the token."""
    app, token = make_app(name), new_token()
    hashed = bcrypt.hashpw(token.encode(), bcrypt.gensalt(cost)).decode()
    AppToken.objects.filter(app=app).update(digest=hashed, ending="")
    return app, token


def test_token_works_after_the_import(transactional_db, existing: ExistingService, monkeypatch) -> None:
    """Uses the bcrypt cost of deployed instances."""
    apps = [existing.app("http://127.0.0.1:9/", name, cost=12) for name in ("Portal", "Search")]
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", existing.key)
    call_command("import_docora", existing.url, json=True)
    for app in apps:
        assert Caller(App.objects.get(app_id=app.app_id), app.token).get().status_code == 200
        row = AppToken.objects.get(app__app_id=app.app_id)
        assert (row.digest, row.ending) == (hash_token(app.token), app.token[-4:])
        assert row.last_used_at is not None


def test_without_bcrypt_an_imported_token_is_an_internal_error(db, monkeypatch, caplog) -> None:
    app, token = imported("Portal")
    other = make_app("Search")
    monkeypatch.setattr(imported_tokens, "bcrypt", None)
    assert error_of(Caller(app, token).get(), 500) == INTERNAL
    [record] = [record for record in caplog.records if record.message == "bcrypt_missing"]
    assert "docora[import]" in record.cause
    assert error_of(Caller(other, "docora_" + "0" * 63).get(), 401), "not the shape of a token"
    monkeypatch.undo()
    assert Caller(app, token).get().status_code == 200


def test_without_bcrypt_nothing_is_imported(db, monkeypatch) -> None:
    monkeypatch.setattr(imported_tokens, "bcrypt", None)
    with pytest.raises(
        CommandError, match=r"requires bcrypt, which is not installed. Install bcrypt or docora\[import\]\.$"
    ):
        call_command("import_docora", "postgres://127.0.0.1:9/docora")


def test_first_use_replaces_the_hash_with_a_digest(db, checked: list[bytes]) -> None:
    app, token = imported("Portal")
    caller = Caller(app, token)
    for _ in range(3):
        assert caller.get().status_code == 200
    assert len(checked) == 1
    assert AppToken.objects.get().digest == hash_token(token)


def test_token_that_another_import_replaces_while_it_is_recognised(db, monkeypatch) -> None:
    app, token = imported("Portal")
    newer = hash_token(new_token())
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: bool(AppToken.objects.update(digest=newer)))
    assert Caller(app, token).get().status_code == 401
    assert AppToken.objects.get().digest == newer


def test_tokens_of_several_apps(db, checked: list[bytes]) -> None:
    imports = [imported(f"App {number}") for number in range(4)]
    for app, token in reversed(imports):
        assert imported_tokens.recognise(token) == app
    assert len(checked) == 4 + 3 + 2 + 1
    for app, token in imports:
        assert tokens.authenticate(token) == app


@pytest.mark.parametrize(
    "token",
    [
        "",
        "docora_",
        "docora_" + "0" * 63,
        "docora_" + "0" * 65,
        "docora_" + "A" * 64,
        "docora_" + "0" * 64 + "\n",
        "x" * 71,
        "é" * 50,
        "$2b$04$" + "a" * 53,
    ],
)
def test_malformed_token_is_never_checked(db, checked: list[bytes], token: str) -> None:
    imported("Portal")
    assert imported_tokens.recognise(token) is None
    assert checked == []


def test_stored_hash_is_not_a_token(db) -> None:
    app, _ = imported("Portal")
    error_of(Caller(app, AppToken.objects.get().digest).get(), 401)


def test_unknown_token_is_checked_once(db, checked: list[bytes], redis_client) -> None:
    app, token = imported("Portal")[0], new_token()
    imported("Search")
    unknown = Caller(app, token)
    for _ in range(5):
        error_of(unknown.get(), 401)
    assert len(checked) == 2
    (key,) = redis_client.keys("docora:unknown-token:*")
    assert 0 < redis_client.ttl(key) <= imported_tokens.REMEMBERED_SECONDS
    assert token.encode() not in key


def test_unknown_token_is_checked_again_after_another_import(db) -> None:
    imported("Portal")
    token = new_token()
    assert imported_tokens.recognise(token) is None
    app = make_app("Search")
    hashed = bcrypt.hashpw(token.encode(), bcrypt.gensalt(4)).decode()
    AppToken.objects.create(app=app, digest=hashed, ending="")
    assert imported_tokens.recognise(token) == app


def test_hash_with_an_invalid_salt_does_not_block_other_tokens(db) -> None:
    AppToken.objects.filter(app=make_app("Disabled")).update(digest="$2b$12$" + "x" * 53)
    app, token = imported("Portal")
    assert Caller(app, token).get().status_code == 200


def test_nothing_is_checked_without_imported_hashes(db, checked: list[bytes]) -> None:
    error_of(Caller(make_app("Portal"), new_token()).get(), 401)
    assert checked == []


@pytest.mark.parametrize("wrong", [new_token(), "no-such-shape"], ids=["one unknown token", "no such shape"])
def test_valid_token_is_accepted_after_failures_from_its_address(db, wrong: str) -> None:
    app, token = imported("Portal")
    for _ in range(FAILURES + 5):
        Caller(app, wrong).get()
    assert Caller(app, wrong).get().status_code == 429
    assert Caller(app, token).get().status_code == 200


def test_address_is_blocked_after_too_many_unknown_tokens(db, checked: list[bytes], redis_client) -> None:
    app, token = imported("Portal")
    for _ in range(FAILURES + 5):
        Caller(app, new_token()).get()
    assert len(checked) == FAILURES
    answer = Caller(app, token).get()
    assert "Too many unknown tokens were tried from this address: try again in" in error_of(answer, 429)
    assert 0 < int(answer.headers["Retry-After"]) <= SECONDS
    assert Caller(app, token, address="203.0.113.77").get().status_code == 200
    assert Caller(app, token).get().status_code == 200  # now matches by digest
    other, its_token = imported("Search")
    assert Caller(other, its_token).get().status_code == 429
    [key] = redis_client.keys("docora:failures:search:203.0.113.9")
    redis_client.delete(key)  # as when it expires
    assert Caller(other, its_token).get().status_code == 200


def test_recognised_apps_do_not_block_their_address(db) -> None:
    imports = [imported(f"App {number}") for number in range(FAILURES + 5)]
    assert {Caller(app, token).get().status_code for app, token in imports} == {200}


@contextmanager
def slow_search(monkeypatch) -> Iterator[threading.Event]:
    """Run another request's search, which lasts until the event is set."""
    started, ends = threading.Event(), threading.Event()
    original = bcrypt.checkpw

    def wait(token: bytes, known: bytes) -> bool:
        started.set()
        ends.wait(20)
        return original(token, known)

    monkeypatch.setattr(bcrypt, "checkpw", wait)
    thread = threading.Thread(target=in_threads, args=[lambda: imported_tokens.recognise(new_token())])
    thread.start()
    assert started.wait(10)
    try:
        yield ends
    finally:
        ends.set()
        thread.join(30)


def test_busy_search_is_answered_with_429(transactional_db, monkeypatch) -> None:
    monkeypatch.setattr(imported_tokens, "_WAIT_SECONDS", 1.0)
    app, token = imported("Portal")
    with slow_search(monkeypatch):
        answer = Caller(app, token).get()
        assert "try again in 1 seconds" in error_of(answer, 429)
        assert answer.headers["Retry-After"] == "1"
    assert Caller(app, token).get().status_code == 200


def test_only_a_few_requests_wait_for_a_search(transactional_db, monkeypatch) -> None:
    monkeypatch.setattr(imported_tokens, "_WAIT_SECONDS", 3.0)
    imported("Portal")
    with slow_search(monkeypatch):

        def ask() -> float:
            began = time.monotonic()
            with pytest.raises(imported_tokens.Busy):
                imported_tokens.recognise(new_token())
            return time.monotonic() - began

        waits = sorted(in_threads(*[ask] * 10))
    assert [wait > 2 for wait in waits] == [False] * 7 + [True] * 3


def test_concurrent_first_calls_succeed(transactional_db, checked: list[bytes]) -> None:
    app, token = imported("Portal", cost=10)
    assert in_threads(*[lambda: Caller(app, token).get().status_code] * 3) == [200] * 3
    assert len(checked) == 1


def test_recognition_works_without_redis(db, valkey_server) -> None:
    app, token = imported("Portal")
    valkey_server.stop()
    error_of(Caller(app, new_token()).get(), 401)
    assert Caller(app, token).get().status_code == 200


def test_token_that_expired_or_whose_app_has_ended(db, checked: list[bytes]) -> None:
    app, token = imported("Portal")
    other, its_token = imported("Search")
    AppToken.objects.filter(app=app).update(expires_at=timezone.now() - timedelta(seconds=1))
    App.objects.filter(pk=other.pk).update(ended_at=timezone.now())
    assert imported_tokens.recognise(token) is None
    assert imported_tokens.recognise(its_token) is None
    assert checked == []


@pytest.mark.parametrize("used_before", [False, True])
def test_rotated_token_is_accepted_during_the_overlap(db, used_before: bool) -> None:
    app, token = imported("Portal")
    if used_before:
        imported_tokens.recognise(token)
    new = tokens.rotate_app_token(Actor.command(), app, overlap=timedelta(hours=2))
    assert Caller(app, token).get().status_code == Caller(app, new.token).get().status_code == 200
    old = AppToken.objects.get(digest=hash_token(token))
    assert abs(old.expires_at - new.old_accepted_until) < timedelta(seconds=1)
    assert tokens.retire_old_tokens(Actor.command(), app) == 1
    error_of(Caller(app, token).get(), 401)
    assert Caller(app, new.token).get().status_code == 200


def test_rotation_without_overlap_revokes_an_unused_token(db) -> None:
    app, token = imported("Portal")
    tokens.rotate_app_token(Actor.command(), app, overlap=timedelta(0))
    error_of(Caller(app, token).get(), 401)


def test_admin_shows_the_ending_only_after_first_use(db) -> None:
    app, token = imported("Portal")
    client = staff("olga", "view_app", "change_app", "rotate_secret_app")
    pages = [f"/admin/deliveries_app/app/{app.pk}/settings/", f"/admin/deliveries_app/app/{app.pk}/rotate-token/"]
    for page, text_without_ending in zip(pages, (">Imported<", "Imported token"), strict=True):
        text = client.get(page).text
        assert text_without_ending in text
        assert "$2b$" not in text
    imported_tokens.recognise(token)
    assert all(token[-4:] in client.get(page).text for page in pages)
