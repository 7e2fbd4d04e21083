"""`sync_failed`: every watcher is told once when a repository's circuit opens, and may hear it late, but not never."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Notice, Status
from deliveries_app.receiver import Answer
from deliveries_app.services import resync_single, unwatch_repository
from deliveries_app.services.control import reset_circuit
from repositories_app.models import Repository
from tests.deliveries.test_lost_key import lose_the_key_of
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept
from tests.support.staff import staff
from tests.support.world import World


@pytest.fixture
def quick(settings) -> None:
    """The second failure opens the circuit."""
    settings.CIRCUIT_BREAKER_THRESHOLD = 2


def fail_once(world: World, watch: AppRepository) -> None:
    """One attempt that finds the host failing, in a check round of its own."""
    Repository.objects.filter(pk=watch.repository_id).update(last_failure_at=Now() - timedelta(hours=1))
    world.git.server.on_request = lambda method, target: 503
    world.sync(watch)


def open_the_circuit(world: World, watch: AppRepository) -> None:
    fail_once(world, watch)
    assert not Notice.objects.exists()
    fail_once(world, watch)
    assert Repository.objects.get(pk=watch.repository_id).circuit_is_open


def told(world: World) -> list[str]:
    return [record.app_id for record in world.requests("sync_failed") if record.status == 200]


def recover(world: World, repo: Repo, watch: AppRepository) -> None:
    world.git.server.on_request = None
    reset_circuit(Actor.command(), watch.repository)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_every_watcher_gets_one_sync_failed(world: World, quick: None) -> None:
    repo, watch = world.watch()
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    open_the_circuit(world, watch)
    assert Notice.objects.count() == 2
    said = []
    world.answer(lambda note: said.append(note.payload) if note.kind == "sync_failed" else None)  # type: ignore[func-returns-value]
    for each in (watch, other):
        assert each.pk in AppRepository.objects.due().values_list("pk", flat=True)
        world.sync(each)
    assert sorted(told(world)) == sorted([watch.app.app_id, other.app.app_id])
    assert not Notice.objects.exists()
    body = said[0]
    assert body["error"]["type"] == "git_failure"
    assert (body["error"]["reason"], "503" in body["error"]["message"]) == ("network", True)
    breaker = body["circuit_breaker"]
    assert (breaker["status"], breaker["consecutive_failures"], breaker["threshold"]) == ("open", 2, 2)
    assert breaker["cooldown_until"].endswith("Z")
    for _ in range(3):  # the cool-down passes, the probe fails: it is the same opening
        Repository.objects.update(circuit_open_until=timezone.now() - timedelta(seconds=1))
        fail_once(world, watch)
    assert len(told(world)) == 2
    recover(world, repo, watch)


def test_reopened_circuit_sends_sync_failed_again(world: World, quick: None) -> None:
    repo, watch = world.watch()
    world.settle()
    for count in (1, 2):
        open_the_circuit(world, watch)
        world.sync(watch)
        assert len(told(world)) == count
        recover(world, repo, watch)


def test_a_notice_that_is_refused_is_tried_again_under_its_number_and_holds_no_file_back(
    world: World, quick: None
) -> None:
    repo, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    world.answer(lambda note: Answer(500) if note.kind == "sync_failed" else None)
    world.sync(watch)
    notice = Notice.objects.get()
    assert (notice.attempts, notice.last_error) == (1, "it answered 500")
    watch.refresh_from_db()
    assert watch.next_sync_at is not None
    assert watch.next_sync_at <= notice.due_at  # long before the cool-down ends
    world.git.server.on_request = None
    reset_circuit(Actor.command(), watch.repository)
    repo.commit({"new": b"new"})
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    world.answer(None)
    Notice.objects.update(due_at=Now())
    world.sync(watch)
    assert not Notice.objects.exists()
    attempts = world.requests("sync_failed")
    assert len(attempts) == 2
    assert len({(record.webhook_id, record.sequence) for record in attempts}) == 1


def test_paused_app_gets_sync_failed_on_resume(world: World, quick: None) -> None:
    repo, watch = world.watch()
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    App.objects.filter(pk=other.app_id).update(paused=True)
    open_the_circuit(world, watch)
    world.sync(other)
    assert told(world) == []
    App.objects.filter(pk=other.app_id).update(paused=False)
    world.sync(other)
    assert told(world) == [other.app.app_id]


def test_a_notice_is_given_up_after_a_day_and_at_once_when_it_is_not_wanted(world: World, quick: None) -> None:
    _, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    world.answer(lambda note: Answer(500) if note.kind == "sync_failed" else None)
    Notice.objects.update(created_at=Now() - timedelta(days=2))
    world.sync(watch)
    assert not Notice.objects.exists()


def test_removed_watch_gets_no_sync_failed(world: World, quick: None) -> None:
    _, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    unwatch_repository(Actor.command(), watch)
    assert not Notice.objects.exists()


def test_with_the_circuit_open_the_notice_goes_out_and_git_is_left_alone(world: World, quick: None) -> None:
    _, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    asked = len(world.git.server.requests)
    world.sync(watch)
    assert told(world) == [watch.app.app_id]
    assert len(world.git.server.requests) == asked
    assert watch.status in {Status.PENDING, Status.FAILED}


def test_a_notice_that_is_tried_again_does_not_use_up_the_attempts_of_a_resync(world: World, quick: None) -> None:
    repo, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    resync_single(Actor.command(), watch)
    world.answer(lambda note: Answer(404) if note.kind == "sync_failed" else None)
    asked = []
    for _ in range(5):
        Notice.objects.update(due_at=Now())
        before = len(world.git.server.requests)
        world.sync(watch)
        asked.append(len(world.git.server.requests) - before)
    assert asked == [1, 0, 0, 0, 0], "one probe, then git is left alone until the cool-down has passed"
    assert (watch.status, watch.retry_count, world.runs(watch)[0].outcome) == (Status.PENDING, 1, "")
    world.answer(None)
    Notice.objects.update(due_at=Now())
    recover(world, repo, watch)


def test_a_notice_that_cannot_be_signed_does_not_keep_the_watch_awake(world: World, quick: None, settings) -> None:
    _, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    lose_the_key_of(watch.app, "client_auth_key", settings)
    world.sync(watch)
    assert Notice.objects.count() == 1
    assert watch.next_sync_at is not None
    assert watch.next_sync_at > timezone.now() + timedelta(seconds=30)


def test_a_reset_closes_the_circuit_and_wakes_every_watch(world: World, quick: None) -> None:
    repo, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    repository = Repository.objects.get(pk=watch.repository_id)
    assert (repository.last_error_cause, "503" in repository.last_error) == ("network", True)
    assert reset_circuit(Actor.command(), repository) == 1
    repository.refresh_from_db()
    assert (repository.consecutive_failures, repository.circuit_open_until, repository.last_error) == (0, None, "")
    recover(world, repo, watch)


def test_a_reset_takes_the_permission_to_retry(world: World) -> None:
    _, watch = world.watch()
    staff("rita", "view_repository", "resync_apprepository")
    with pytest.raises(PermissionDenied):
        reset_circuit(Actor.of_user(User.objects.get(username="rita")), watch.repository)
