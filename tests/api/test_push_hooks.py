"""Push hooks: the secret of a watch allows requesting a check, and nothing else is revealed."""

import hashlib
import hmac
import json
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.api import push_hooks as push_hooks_api
from deliveries_app.models import App, AppRepository
from deliveries_app.models.root_causes import RootCause
from deliveries_app.scheduling import next_check
from deliveries_app.services import push_hooks, watch_settings
from docora.db.clock import from_now
from docora.redis import queues
from tests.api.caller import error_of
from tests.support.staff import fail

BODY = json.dumps({"ref": "refs/heads/main"}).encode()


@pytest.fixture
def secret(watches: list[AppRepository]) -> str:
    """The secret of Portal's watch of acme/docs. Search's watch of the same repository has none."""
    return watch_settings.renew_push_secret(Actor.command(), watches[0])


def signature(secret: str, body: bytes = BODY) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def push(repository_id: str, signed: str | None, body: bytes = BODY, content_type: str = "application/json", **extra):
    headers = {"X-GitHub-Event": "push"} | ({"X-Hub-Signature-256": signed} if signed is not None else {}) | extra
    client = Client(raise_request_exception=False)
    return client.generic("POST", f"/api/hooks/push/{repository_id}", body, content_type=content_type, headers=headers)


def request_counts(watches: list[AppRepository]) -> list[int]:
    return [AppRepository.objects.get(pk=watch.pk).request_count for watch in watches]


def test_signed_push_schedules_every_watch_of_the_repository(watches, secret: str) -> None:
    answer = push(watches[0].repository.repository_id, signature(secret))
    assert (answer.status_code, answer.json()) == (202, {"message": "Check queued"})
    assert request_counts(watches) == [2, 1, 2]
    watches[0].refresh_from_db()
    assert watches[0].next_sync_at <= timezone.now()


def test_push_does_not_use_up_the_attempts_of_failing_watches(watches, secret: str) -> None:
    """They are checked at once, and synced if there is a new commit."""
    later = timezone.now() + timedelta(minutes=10)
    fail(watches[2], RootCause.SERVER_ERROR)
    AppRepository.objects.filter(pk=watches[2].pk).update(next_sync_at=later, next_check_at=later)
    assert push(watches[0].repository.repository_id, signature(secret)).status_code == 202
    assert request_counts(watches) == [2, 1, 1]
    watches[2].refresh_from_db()
    assert (watches[2].next_sync_at, watches[2].next_check_at <= timezone.now()) == (later, True)
    assert "of a failing repository, it only starts a check" in Client().get("/docs/operations/").text


def test_repeated_push_only_checks_the_watches_of_other_apps(watches, secret: str) -> None:
    """They would use up the rate limit of their own tokens."""
    repository_id = watches[0].repository.repository_id
    for _ in range(3):
        assert push(repository_id, signature(secret)).status_code == 202
    assert request_counts(watches) == [4, 1, 2]
    watches[2].refresh_from_db()
    assert watches[2].next_check_at <= timezone.now()
    AppRepository.objects.update(pushed_at=timezone.now() - timedelta(seconds=push_hooks.OTHERS_SECONDS))
    push(repository_id, signature(secret))
    assert request_counts(watches) == [5, 1, 3]


def test_check_requested_by_a_push_during_a_sync_stays_due(watches, secret: str) -> None:
    for _ in range(2):
        push(watches[0].repository.repository_id, signature(secret))
    rows = AppRepository.objects.filter(pk=watches[2].pk)
    for moved_at in (None, Now()):
        rows.update(next_check_at=next_check(moved_at))  # the sync ends
        assert rows.get().next_check_at <= timezone.now()
    rows.update(next_check_at=from_now(60))  # the sweep takes it to check it
    rows.update(next_check_at=next_check(Now()))
    assert rows.get().next_check_at > timezone.now()


@pytest.mark.django_db(transaction=True)
def test_push_queues_jobs(watches, secret: str) -> None:
    push(watches[0].repository.repository_id, signature(secret))
    assert len(queues.job_ids("high")) == 2


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain", ""])
def test_any_content_type_and_event_is_accepted(watches, secret: str, content_type: str) -> None:
    repository_id = watches[0].repository.repository_id
    answer = push(repository_id, signature(secret), content_type=content_type, **{"X-GitHub-Event": "ping"})
    assert answer.status_code == 202


def test_secret_of_any_watch_is_accepted(watches, secret: str) -> None:
    second = watch_settings.renew_push_secret(Actor.command(), watches[2])
    for known in (secret, second):
        assert push(watches[0].repository.repository_id, signature(known)).status_code == 202


@pytest.mark.parametrize(
    "signed",
    [None, "", "sha256=", "sha256=" + "0" * 64, signature("wrong"), "sha1=" + "0" * 40, "\xff", "sha256=" + "é" * 64],
)
def test_wrong_signature_is_refused(watches, secret: str, signed: str | None) -> None:
    error_of(push(watches[0].repository.repository_id, signed), 401)
    assert request_counts(watches) == [1, 1, 1]


def test_unknown_repository_looks_like_a_wrong_signature(watches, secret: str) -> None:
    unsigned = push(watches[0].repository.repository_id, None)
    wrong = push(watches[0].repository.repository_id, signature("wrong"))
    without_secret = push(watches[1].repository.repository_id, signature(""))
    unknown = push("repo_" + "0" * 24, signature(secret))
    nul = push("repo_%00", signature(secret))
    answers = [unsigned, wrong, without_secret, unknown, nul]
    assert {(answer.status_code, answer.content) for answer in answers} == {(401, unsigned.content)}
    assert all(answer.headers.pop("X-Request-Id") for answer in answers)  # is different for each request
    assert {tuple(answer.headers.items()) for answer in answers} == {tuple(unsigned.headers.items())}


def test_signature_covers_the_exact_bytes(watches, secret: str) -> None:
    error_of(push(watches[0].repository.repository_id, signature(secret), BODY + b" "), 401)


def test_renewed_secret_replaces_the_old_one(watches, secret: str) -> None:
    new = watch_settings.renew_push_secret(Actor.command(), watches[0])
    assert new != secret
    error_of(push(watches[0].repository.repository_id, signature(secret)), 401)
    assert push(watches[0].repository.repository_id, signature(new)).status_code == 202


@pytest.mark.parametrize("model", [AppRepository, App])
def test_secret_of_an_ended_watch_is_refused(watches, secret: str, model) -> None:
    model.objects.filter(pk=watches[0].pk if model is AppRepository else watches[0].app_id).update(
        ended_at=timezone.now()
    )
    error_of(push(watches[0].repository.repository_id, signature(secret)), 401)


def test_body_size_limit(watches, secret: str, monkeypatch) -> None:
    monkeypatch.setattr(push_hooks_api, "MAX_BODY", 300_000)
    repository_id = watches[0].repository.repository_id
    for size, status in ((300_000, 202), (300_001, 413)):
        body = b"x" * size
        assert push(repository_id, signature(secret, body), body).status_code == status


def test_sweep_schedules_watches_beyond_the_limit(watches, secret: str, monkeypatch) -> None:
    monkeypatch.setattr(push_hooks, "ENQUEUED_AT_ONCE", 1)
    assert push_hooks.repository_pushed(Actor.system(), watches[0].repository.repository_id, []) == 2
    assert request_counts(watches) == [2, 1, 2]


def test_secret_is_encrypted_and_needs_permission(watches) -> None:
    user = User.objects.create_user("anna", is_staff=True)
    with pytest.raises(PermissionDenied):
        watch_settings.renew_push_secret(Actor.of_user(user), watches[0])
    user.user_permissions.add(Permission.objects.get(codename="change_apprepository"))
    secret = watch_settings.renew_push_secret(Actor.of_user(User.objects.get(pk=user.pk)), watches[0])
    assert len(secret) == 64
    with connection.cursor() as cursor:
        cursor.execute("SELECT push_secret FROM deliveries_app_apprepository WHERE id = %s", [watches[0].pk])
        assert secret not in cursor.fetchone()[0]
