"""Tokens of the existing service, known by bcrypt hashes: accepted as they are, and what trying them may cost."""

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
def tried(monkeypatch) -> list[bytes]:
    """The hashes that were tried, one after the other."""
    tried: list[bytes] = []
    original = bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda token, known: tried.append(known) or original(token, known))
    return tried


def imported(name: str, *, cost: int = 4) -> tuple[App, str]:
    """An app with a token that is known by its bcrypt hash, and the token."""
    app, token = make_app(name), new_token()
    hashed = bcrypt.hashpw(token.encode(), bcrypt.gensalt(cost)).decode()
    AppToken.objects.filter(app=app).update(digest=hashed, ending="")
    return app, token


def test_a_token_of_the_existing_service_works_after_the_import(
    transactional_db, existing: ExistingService, monkeypatch
) -> None:
    """With a hash of the cost that deployed instances have."""
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
    with pytest.raises(CommandError, match=r"bcrypt, which is not installed: .* docora\[import\]\.$"):
        call_command("import_docora", "postgres://127.0.0.1:9/docora")


def test_from_the_first_use_on_it_is_known_by_its_digest(db, tried: list[bytes]) -> None:
    app, token = imported("Portal")
    caller = Caller(app, token)
    for _ in range(3):
        assert caller.get().status_code == 200
    assert len(tried) == 1
    assert AppToken.objects.get().digest == hash_token(token)


def test_each_app_is_found_among_the_others(db, tried: list[bytes]) -> None:
    made = [imported(f"App {number}") for number in range(4)]
    for app, token in reversed(made):
        assert imported_tokens.recognise(token) == app
    assert len(tried) == 4 + 3 + 2 + 1
    for app, token in made:
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
def test_what_is_not_shaped_like_a_token_is_never_tried(db, tried: list[bytes], token: str) -> None:
    imported("Portal")
    assert imported_tokens.recognise(token) is None
    assert tried == []


def test_the_stored_hash_is_no_token(db) -> None:
    app, _ = imported("Portal")
    error_of(Caller(app, AppToken.objects.get().digest).get(), 401)


def test_an_unknown_token_is_tried_once_and_then_remembered(db, tried: list[bytes], redis_client) -> None:
    app, token = imported("Portal")[0], new_token()
    imported("Search")
    unknown = Caller(app, token)
    for _ in range(5):
        error_of(unknown.get(), 401)
    assert len(tried) == 2
    (key,) = redis_client.keys("docora:unknown-token:*")
    assert 0 < redis_client.ttl(key) <= imported_tokens.REMEMBERED_SECONDS
    assert token.encode() not in key


def test_it_is_tried_anew_once_another_import_has_brought_its_hash(db) -> None:
    imported("Portal")
    token = new_token()
    assert imported_tokens.recognise(token) is None
    app = make_app("Search")
    hashed = bcrypt.hashpw(token.encode(), bcrypt.gensalt(4)).decode()
    AppToken.objects.create(app=app, digest=hashed, ending="")
    assert imported_tokens.recognise(token) == app


def test_without_such_hashes_nothing_is_tried(db, tried: list[bytes]) -> None:
    error_of(Caller(make_app("Portal"), new_token()).get(), 401)
    assert tried == []


@pytest.mark.parametrize("wrong", [new_token(), "no-such-shape"], ids=["one unknown token", "no such shape"])
def test_others_who_fail_at_the_same_address_do_not_hold_up_a_right_token(db, wrong: str) -> None:
    app, token = imported("Portal")
    for _ in range(FAILURES + 5):
        Caller(app, wrong).get()
    assert Caller(app, wrong).get().status_code == 429
    assert Caller(app, token).get().status_code == 200


def test_an_address_that_tried_too_many_unknown_tokens_gets_no_search_for_a_minute(
    db, tried: list[bytes], redis_client
) -> None:
    app, token = imported("Portal")
    for _ in range(FAILURES + 5):
        Caller(app, new_token()).get()
    assert len(tried) == FAILURES
    answer = Caller(app, token).get()
    assert "Too many unknown tokens were tried from this address: try again in" in error_of(answer, 429)
    assert 0 < int(answer.headers["Retry-After"]) <= SECONDS
    assert Caller(app, token, address="203.0.113.77").get().status_code == 200
    assert Caller(app, token).get().status_code == 200  # known by its digest now
    other, its_token = imported("Search")
    assert Caller(other, its_token).get().status_code == 429
    [key] = redis_client.keys("docora:failures:search:203.0.113.9")
    redis_client.delete(key)  # what its time to live does
    assert Caller(other, its_token).get().status_code == 200


def test_apps_that_are_recognised_hold_up_nobody_at_their_address(db) -> None:
    made = [imported(f"App {number}") for number in range(FAILURES + 5)]
    assert {Caller(app, token).get().status_code for app, token in made} == {200}


@contextmanager
def slow_search(monkeypatch) -> Iterator[threading.Event]:
    """Somebody else's search, which goes on until the event is set."""
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


def test_while_others_are_searched_for_one_is_told_to_come_back(transactional_db, monkeypatch) -> None:
    monkeypatch.setattr(imported_tokens, "_WAIT_SECONDS", 1.0)
    app, token = imported("Portal")
    with slow_search(monkeypatch):
        answer = Caller(app, token).get()
        assert "try again in 1 seconds" in error_of(answer, 429)
        assert answer.headers["Retry-After"] == "1"
    assert Caller(app, token).get().status_code == 200


def test_only_a_few_wait_and_the_others_are_refused_at_once(transactional_db, monkeypatch) -> None:
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


def test_two_first_calls_at_once_both_get_through(transactional_db, tried: list[bytes]) -> None:
    app, token = imported("Portal", cost=10)
    assert in_threads(*[lambda: Caller(app, token).get().status_code] * 3) == [200] * 3
    assert len(tried) == 1


def test_without_redis_it_is_recognised_all_the_same(db, valkey_server) -> None:
    app, token = imported("Portal")
    valkey_server.stop()
    error_of(Caller(app, new_token()).get(), 401)
    assert Caller(app, token).get().status_code == 200


def test_a_token_that_has_expired_or_whose_app_is_being_removed_is_not(db, tried: list[bytes]) -> None:
    app, token = imported("Portal")
    other, its_token = imported("Search")
    AppToken.objects.filter(app=app).update(expires_at=timezone.now() - timedelta(seconds=1))
    App.objects.filter(pk=other.pk).update(ended_at=timezone.now())
    assert imported_tokens.recognise(token) is None
    assert imported_tokens.recognise(its_token) is None
    assert tried == []


@pytest.mark.parametrize("used_before", [False, True])
def test_after_a_rotation_it_is_accepted_for_the_overlap(db, used_before: bool) -> None:
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


def test_a_rotation_without_an_overlap_ends_it_unused(db) -> None:
    app, token = imported("Portal")
    tokens.rotate_app_token(Actor.command(), app, overlap=timedelta(0))
    error_of(Caller(app, token).get(), 401)


def test_the_admin_shows_it_without_an_ending_until_it_is_used(db) -> None:
    app, token = imported("Portal")
    client = staff("olga", "view_app", "change_app", "rotate_secret_app")
    pages = [f"/admin/deliveries_app/app/{app.pk}/change/", f"/admin/deliveries_app/app/{app.pk}/rotate-token/"]
    for page, words in zip(pages, ("not kept", "of which no ending was kept"), strict=True):
        text = client.get(page).text
        assert words in text
        assert "$2b$" not in text
    imported_tokens.recognise(token)
    assert all(token[-4:] in client.get(page).text for page in pages)
