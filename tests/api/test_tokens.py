"""Bearer tokens: which are accepted, what is stored, and how they are rotated."""

import contextlib
import threading
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import PermissionDenied, ValidationError
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppToken
from deliveries_app.services import tokens
from deliveries_app.services.requests import NotFound
from tests.api.caller import Caller, error_of, token_of
from tests.support.audit import by_users, messages
from tests.support.processes import in_threads
from tests.support.staff import make_app

ACTOR = Actor.command()


@pytest.fixture
def app(db) -> App:
    app = make_app("Portal")
    app.tokens.all().delete()
    return app


def test_token_is_accepted_and_its_use_recorded(app: App) -> None:
    assert Caller(app).get().status_code == 200
    assert timezone.now() - AppToken.objects.get().last_used_at < timedelta(seconds=5)


def test_use_is_recorded_at_most_once_a_minute(app: App) -> None:
    caller = Caller(app)
    ahead = timedelta(days=-1)  # as the clock was
    for age, written in ((timedelta(seconds=50), False), (timedelta(seconds=70), True), (ahead, True)):
        before = timezone.now() - age
        AppToken.objects.update(last_used_at=before)
        caller.get()
        assert (AppToken.objects.get().last_used_at != before) == written


def test_use_is_recorded_once_a_minute_if_the_clocks_differ(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    token, now = token_of(app), timezone.now() + timedelta(minutes=3)
    monkeypatch.setattr(timezone, "now", lambda: now)
    tokens.authenticate(token)
    recorded = AppToken.objects.get().last_used_at
    tokens.authenticate(token)
    assert AppToken.objects.get().last_used_at == recorded


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer docora_" + "0" * 64,
        "Basic ZG9jb3JhOnRva2Vu",
        "Bearer docora_\x00",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 10_000,
        "docora_" + "0" * 64,
    ],
)
def test_anything_else_is_401_and_says_how_to_authenticate(app: App, client, header: str) -> None:
    answer = client.get("/api/repositories", headers={"Authorization": header})
    assert "Authorization: Bearer docora_" in error_of(answer, 401)
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_expired_token_is_refused(app: App) -> None:
    now = timezone.now()
    assert Caller(app, token_of(app, expires_at=now + timedelta(minutes=1))).get().status_code == 200
    error_of(Caller(app, token_of(app, expires_at=now - timedelta(seconds=1))).get(), 401)


def test_token_of_a_removed_app_is_refused(app: App) -> None:
    caller = Caller(app)
    App.objects.update(ended_at=timezone.now())
    error_of(caller.get(), 401)


def test_database_stores_no_token(app: App) -> None:
    new = tokens.rotate_app_token(ACTOR, app)
    row = AppToken.objects.values().get()
    assert new.token not in str(row)
    assert new.token not in repr(new)
    assert (len(row["digest"]), row["ending"]) == (64, new.token[-4:])


def test_both_tokens_are_accepted_during_the_overlap(app: App) -> None:
    old = token_of(app)
    new = tokens.rotate_app_token(ACTOR, app, overlap=timedelta(hours=2))
    assert abs(new.old_accepted_until - timezone.now() - timedelta(hours=2)) < timedelta(seconds=5)
    assert tokens.authenticate(old) == tokens.authenticate(new.token) == app
    AppToken.objects.filter(expires_at__isnull=False).update(expires_at=timezone.now() - timedelta(seconds=1))
    assert tokens.authenticate(old) is None
    assert tokens.authenticate(new.token) == app


def test_second_rotation_does_not_extend_the_overlap(app: App) -> None:
    oldest = token_of(app)
    first = tokens.rotate_app_token(ACTOR, app, overlap=timedelta(hours=1))
    tokens.rotate_app_token(ACTOR, app, overlap=timedelta(hours=9))
    assert tokens.authenticate(oldest)
    row = app.tokens.get(ending=oldest[-4:])
    assert abs(row.expires_at - first.old_accepted_until) < timedelta(milliseconds=2)


def test_zero_overlap_ends_old_tokens_at_once(app: App) -> None:
    old = token_of(app)
    new = tokens.rotate_app_token(ACTOR, app, overlap=timedelta(0))
    assert new.old_accepted_until is None
    assert tokens.authenticate(old) is None
    assert app.tokens.count() == 1


def test_rotation_removes_expired_tokens(app: App) -> None:
    token_of(app, expires_at=timezone.now() - timedelta(days=1))
    tokens.rotate_app_token(ACTOR, app)
    assert app.tokens.count() == 1


def test_old_tokens_can_be_retired_early(app: App) -> None:
    old = token_of(app)
    token_of(app, expires_at=timezone.now() - timedelta(days=1))
    new = tokens.rotate_app_token(ACTOR, app)
    assert tokens.retire_old_tokens(ACTOR, app) == 1
    assert tokens.authenticate(old) is None
    assert tokens.authenticate(new.token) == app
    assert tokens.retire_old_tokens(ACTOR, app) == 0


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=31)])
def test_overlap_is_bounded(app: App, overlap: timedelta) -> None:
    with pytest.raises(ValidationError, match="0 to 30 days"):
        tokens.rotate_app_token(ACTOR, app, overlap=overlap)


def test_removed_app_gets_no_token(app: App) -> None:
    App.objects.update(ended_at=timezone.now())
    with pytest.raises(NotFound):
        tokens.rotate_app_token(ACTOR, app)


def test_users_need_permission_and_are_logged(app: App) -> None:
    user = User.objects.create_user("anna", is_staff=True)
    for verb in (tokens.rotate_app_token, tokens.retire_old_tokens):
        with pytest.raises(PermissionDenied):
            verb(Actor.of_user(user), app)
    user.user_permissions.add(Permission.objects.get(codename="rotate_secret_app"))
    actor = Actor.of_user(User.objects.get(pk=user.pk))
    token_of(app)
    tokens.rotate_app_token(actor, app)
    assert tokens.retire_old_tokens(actor, app) == 1
    assert tokens.retire_old_tokens(actor, app) == 0  # changes nothing, so it is not recorded
    assert messages(by_users()) == [
        "Rotated the token",
        "Retired old tokens",
    ]


def test_app_can_rotate_only_its_own_token(app: App) -> None:
    with pytest.raises(PermissionDenied):
        tokens.rotate_app_token(Actor.of_app(make_app("Search")), app)


@pytest.mark.django_db(transaction=True)
def test_concurrent_rotations_leave_one_token_without_an_expiry(monkeypatch: pytest.MonkeyPatch) -> None:
    app, both, create = make_app("Portal"), threading.Barrier(2), tokens.create_token

    def create_late(app: App) -> str:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(1)  # until the other rotation has begun
        return create(app)

    monkeypatch.setattr(tokens, "create_token", create_late)
    in_threads(*[lambda: tokens.rotate_app_token(ACTOR, app)] * 2)
    assert app.tokens.filter(expires_at=None).count() == 1
