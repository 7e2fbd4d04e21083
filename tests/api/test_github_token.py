"""Replacing a watch's token: the new one is checked first, then the errors of the old one are cleared."""

import threading
import time
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Status
from deliveries_app.services import watch_settings
from deliveries_app.services.requests import NotFound
from docora.redis import queues
from repositories_app.models import Repository
from tests.api.caller import Caller, error_of
from tests.support.processes import in_threads
from tests.support.world import World


@pytest.fixture
def watch(world: World) -> AppRepository:
    """A watch whose token `old` was revoked after the first sync, so that later syncs failed."""
    repo = world.git.repo("acme/private", {"a": b"1"}, token="old")
    watch = world.watch_url(repo, token="old")
    world.settle()
    world.git.tokens["acme/private"] = {"new"}
    AppRepository.objects.filter(pk=watch.pk).update(
        status=Status.FAILED, last_error="The git host rejected the token.", last_error_cause="auth", retry_count=4
    )
    watch.repository.consecutive_failures = 9
    watch.repository.circuit_open_until = timezone.now() + timedelta(hours=1)
    watch.repository.save()
    watch.refresh_from_db()
    return watch


def path_of(watch: AppRepository) -> str:
    return f"/{watch.repository.repository_id}/token"


def test_new_token_clears_errors_and_circuit_and_syncs(world: World, caller: Caller, watch) -> None:
    answer = caller.patch(path_of(watch), {"github_token": "new"})
    assert (answer.status_code, answer.json()) == (200, {"message": "Token updated successfully"})
    before, requests_before = len(world.requests("create")), watch.request_count
    watch = AppRepository.objects.select_related("repository").get()
    assert (watch.github_token, watch.status, watch.retry_count) == ("new", Status.PENDING, 0)
    assert (watch.last_error, watch.last_error_cause) == ("", "")
    assert (watch.repository.consecutive_failures, watch.repository.circuit_open_until) == (0, None)
    assert watch.request_count > requests_before
    assert watch.next_sync_at <= timezone.now()
    assert len(queues.job_ids("high")) == 1
    world.settle()
    watch.refresh_from_db()
    assert watch.status == Status.SYNCED
    assert len(world.requests("create")) == before, "the delivery records are kept"


def test_repository_that_has_become_private(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/docs", {"a": b"1"})
    watch = world.watch_url(repo)
    world.git.tokens["acme/docs"] = {"first", "second"}
    assert caller.get(f"/{watch.repository.repository_id}").json()["is_private"] is False
    assert caller.patch(path_of(watch), {"github_token": "first"}).status_code == 200
    assert caller.get(f"/{watch.repository.repository_id}").json()["is_private"] is True
    del world.git.tokens["acme/docs"]
    assert caller.put({"github_url": repo.url, "github_token": "second"}).json()["is_private"] is False


@pytest.mark.parametrize("token", ["old", "wrong"])
def test_token_without_access_changes_nothing(caller: Caller, watch, token: str) -> None:
    message = error_of(caller.patch(path_of(watch), {"github_token": token}), 422)
    assert "token" in message
    watch.refresh_from_db()
    assert (watch.github_token, watch.status, watch.retry_count) == ("old", Status.FAILED, 4)
    watch.repository.refresh_from_db()
    assert watch.repository.circuit_is_open


@pytest.mark.parametrize("body", [{}, {"github_token": ""}, {"github_token": "a b"}, {"github_token": None}])
def test_malformed_token_is_422(caller: Caller, watch, body: dict) -> None:
    assert "github_token" in error_of(caller.patch(path_of(watch), body), 422)


def test_running_worker_continues(caller: Caller, watch) -> None:
    AppRepository.objects.update(status=Status.SCANNING)
    generation = watch.generation
    caller.patch(path_of(watch), {"github_token": "new"})
    watch.refresh_from_db()
    assert (watch.status, watch.generation) == (Status.SCANNING, generation)


def test_ended_watch_is_not_revived(watch) -> None:
    AppRepository.objects.update(ended_at=timezone.now())
    with pytest.raises(NotFound):
        watch_settings.change_watch(Actor.command(), watch, github_token="new")
    watch.refresh_from_db()
    assert watch.github_token == "old"


def test_repository_is_locked_before_the_watch(watch) -> None:
    """The opposite order could deadlock with a failing sync."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite locks no rows")
    repository_is_locked = threading.Event()

    def count_a_failure() -> None:
        with transaction.atomic():
            Repository.objects.select_for_update().get(pk=watch.repository_id)
            repository_is_locked.set()
            time.sleep(1.5)  # the new token is checked meanwhile, then waits for the repository's lock
            AppRepository.objects.select_for_update(nowait=True).get(pk=watch.pk)

    def replace() -> None:
        assert repository_is_locked.wait(10)
        watch_settings.change_watch(Actor.command(), watch, github_token="new")

    in_threads(count_a_failure, replace)
    watch.refresh_from_db()
    assert watch.github_token == "new"


def test_users_need_the_permission(watch) -> None:
    user = User.objects.create_user("anna", is_staff=True)
    with pytest.raises(PermissionDenied):
        watch_settings.change_watch(Actor.of_user(user), watch, github_token="new")
