"""Sessions behave as Django's, and reading one takes one statement whose SQL is built once."""

from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.models import Session
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from docora.db.compiled import Compiled
from docora.sign_in import sessions

pytestmark = pytest.mark.django_db


def store(session_key: str | None = None) -> SessionBase:
    engine: Any = import_module(settings.SESSION_ENGINE)
    opened: SessionBase = engine.SessionStore(session_key)
    return opened


@pytest.fixture
def saved() -> SessionBase:
    session = store()
    session["name"] = "anna"
    session.save()
    return session


def test_session_is_read_again(saved: SessionBase) -> None:
    with CaptureQueriesContext(connection) as queries:
        again = store(saved.session_key)
        assert again["name"] == "anna"
    assert len(queries) == 1
    assert again.session_key == saved.session_key


@pytest.mark.parametrize("after", [timedelta(0), timedelta(seconds=-1), timedelta(days=-30)])
def test_expired_session_is_empty_and_gets_a_new_key(saved: SessionBase, after: timedelta) -> None:
    Session.objects.update(expire_date=timezone.now() + after)
    expired = store(saved.session_key)
    assert "name" not in expired
    assert expired.session_key is None


@pytest.mark.parametrize("session_key", [None, "", "short", "u" * 32, "größe123", "'; DROP TABLE"])
def test_unknown_session_is_empty(saved: SessionBase, session_key: str | None) -> None:
    unknown = store(session_key)
    assert dict(unknown.items()) == {}
    unknown["name"] = "bert"
    unknown.save()
    assert unknown.session_key not in (session_key, saved.session_key)
    assert store(saved.session_key)["name"] == "anna"


def test_a_copy_of_the_database_opens_no_session(saved: SessionBase) -> None:
    [row] = Session.objects.all()
    assert row.session_key != saved.session_key
    assert dict(store(row.session_key).items()) == {}


@pytest.mark.parametrize(("user", "seconds"), [("", sessions.STRANGER_SECONDS), ("1", settings.SESSION_COOKIE_AGE)])
def test_session_of_a_stranger_ends_soon(user: str, seconds: int) -> None:
    """Anyone can begin sessions, with each click on a button to sign in."""
    session = store()
    session["challenge"] = "x"
    if user:
        session[SESSION_KEY] = user
    session.save()
    left = Session.objects.get().expire_date - timezone.now()
    assert seconds - 60 < left.total_seconds() <= seconds
    assert session.get_expiry_age() == seconds  # also of the cookie


def test_session_is_changed_and_deleted(saved: SessionBase) -> None:
    assert saved.exists(saved.session_key or "")
    again = store(saved.session_key)
    again["name"] = "bert"
    again.save()
    assert store(saved.session_key)["name"] == "bert"
    key = again.session_key
    again.cycle_key()
    assert (again.session_key == key, dict(store(key).items()), again["name"]) == (False, {}, "bert")
    again.delete(again.session_key)
    assert not Session.objects.exists()
    again.delete()  # there is nothing left


def test_sql_is_built_once(saved: SessionBase, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    query = sessions._session.__wrapped__

    def build(digest: str) -> Any:
        built.append(digest)
        return query(digest)

    monkeypatch.setattr(sessions, "_session", Compiled(build))
    for _ in range(3):
        assert store(saved.session_key)["name"] == "anna"
    assert len(built) == 1
