"""`sync_failed`: every watching app gets one notice when a repository's circuit opens, if necessary later."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Notice, Status
from deliveries_app.models.root_causes import RootCause
from deliveries_app.receiver import Answer
from deliveries_app.services import resync_single, unwatch_repository
from deliveries_app.services.control import reset_circuits
from deliveries_app.services.push_hooks import repository_pushed
from repositories_app.models import Repository
from tests.deliveries.test_lost_key import lose_the_key_of
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept
from tests.support.staff import staff
from tests.support.world import World


@pytest.fixture
def open_at_second_failure(settings) -> None:
    """The second failure opens the circuit."""
    settings.CIRCUIT_BREAKER_THRESHOLD = 2


def fail_once(world: World, watch: AppRepository) -> None:
    """Run one attempt while the host fails, in its own check round."""
    Repository.objects.filter(pk=watch.repository_id).update(last_failure_at=Now() - timedelta(hours=1))
    world.git.server.on_request = lambda method, target: 503
    world.sync(watch)


def open_the_circuit(world: World, watch: AppRepository) -> None:
    unreadable = {"root_cause": RootCause.GIT_HOST, "failing_since": Now()}
    AppRepository.objects.exclude(pk=watch.pk).update(**unreadable)  # for the other watches, too
    fail_once(world, watch)
    assert not Notice.objects.exists()
    fail_once(world, watch)
    assert Repository.objects.get(pk=watch.repository_id).circuit_is_open


def apps_notified(world: World) -> list[str]:
    return [record.app_id for record in world.requests("sync_failed") if record.status == 200]


def recover(world: World, repo: Repo, watch: AppRepository) -> None:
    world.git.server.on_request = None
    reset_circuits(Actor.command(), [watch.repository])
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_every_watcher_gets_one_sync_failed(world: World, open_at_second_failure: None) -> None:
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
    assert sorted(apps_notified(world)) == sorted([watch.app.app_id, other.app.app_id])
    assert not Notice.objects.exists()
    body = said[0]
    assert body["error"]["type"] == "git_failure"
    assert (body["error"]["reason"], "503" in body["error"]["message"]) == ("network", True)
    breaker = body["circuit_breaker"]
    assert (breaker["status"], breaker["consecutive_failures"], breaker["threshold"]) == ("open", 2, 2)
    assert breaker["cooldown_until"].endswith("Z")
    for _ in range(3):  # the cooldown passes and the probe fails: still the same opening
        Repository.objects.update(circuit_open_until=timezone.now() - timedelta(seconds=1))
        fail_once(world, watch)
    assert len(apps_notified(world)) == 2
    recover(world, repo, watch)


def test_reopened_circuit_sends_sync_failed_again(world: World, open_at_second_failure: None) -> None:
    repo, watch = world.watch()
    world.settle()
    for count in (1, 2):
        open_the_circuit(world, watch)
        world.sync(watch)
        assert len(apps_notified(world)) == count
        recover(world, repo, watch)


@pytest.mark.parametrize("status", [500, 429])
def test_refused_notice_is_retried_under_its_sequence(world: World, open_at_second_failure: None, status: int) -> None:
    repo, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    refusal = Answer(status, headers={"Retry-After": "0"})
    world.answer(lambda note: refusal if note.kind == "sync_failed" else None)
    world.sync(watch)
    notice = Notice.objects.get()
    assert len(world.requests("sync_failed")) == 1
    assert (notice.attempts, notice.last_error) == (1, f"The app returned HTTP {status}.")
    watch.refresh_from_db()
    assert watch.next_sync_at is not None
    assert watch.next_sync_at <= notice.due_at  # long before the cooldown ends
    Notice.objects.update(due_at=Now())
    world.sync(watch)
    again = Notice.objects.get()
    assert (again.attempts, again.due_at - notice.due_at > timedelta(seconds=1.5)) == (2, True)  # 4 s instead of 2 s
    world.git.server.on_request = None
    reset_circuits(Actor.command(), [watch.repository])
    repo.commit({"new": b"new"})
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    world.answer(None)
    Notice.objects.update(due_at=Now())
    world.sync(watch)
    assert not Notice.objects.exists()
    attempts = world.requests("sync_failed")
    assert len(attempts) == 3
    assert len({(record.webhook_id, record.sequence) for record in attempts}) == 1


@pytest.mark.parametrize(("asked", "seconds"), [("600", 600), ("99999", 3600)])
def test_busy_app_gets_the_notice_when_it_has_asked_for_it(
    world: World, open_at_second_failure: None, asked: str, seconds: int
) -> None:
    _, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    world.answer(lambda note: Answer(429, headers={"Retry-After": asked}) if note.kind == "sync_failed" else None)
    world.sync(watch)
    wait = Notice.objects.get().due_at - timezone.now()
    assert seconds - 60 < wait.total_seconds() <= seconds


def test_app_that_answers_410_to_a_notice_does_not_get_it_again(world: World, open_at_second_failure: None) -> None:
    """It wants no such notices. Its files continue, and it is not paused."""
    _, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    world.answer(lambda note: Answer(410) if note.kind == "sync_failed" else None)
    world.sync(watch)
    assert (Notice.objects.exists(), App.objects.get().paused) == (False, False)


def test_paused_app_gets_sync_failed_on_resume(world: World, open_at_second_failure: None) -> None:
    repo, watch = world.watch()
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    App.objects.filter(pk=other.app_id).update(paused=True)
    open_the_circuit(world, watch)
    world.sync(other)
    assert apps_notified(world) == []
    App.objects.filter(pk=other.app_id).update(paused=False)
    world.sync(other)
    assert apps_notified(world) == [other.app.app_id]


@pytest.mark.parametrize("through_hook", [False, True])
def test_push_does_not_wait_for_a_refused_notice(
    world: World, open_at_second_failure: None, through_hook: bool
) -> None:
    repo, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    world.answer(lambda note: Answer(404) if note.kind == "sync_failed" else None)
    Notice.objects.update(attempts=11)  # the next one is in an hour
    world.sync(watch)
    world.git.server.on_request = None
    reset_circuits(Actor.command(), [watch.repository])
    watch = world.sync(watch)
    assert (watch.status, world.check()) == (Status.SYNCED, 1)
    assert not AppRepository.objects.due().exists()  # nothing is new, and the notice is due in an hour
    repo.commit({"new": b"new"})
    if through_hook:
        repository_pushed(Actor.command(), watch.repository.repository_id, [watch.pk])
    assert world.check() == 1
    assert watch in AppRepository.objects.due()
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert Notice.objects.exists()


def test_notice_is_dropped_after_a_day(world: World, open_at_second_failure: None) -> None:
    _, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    world.answer(lambda note: Answer(500) if note.kind == "sync_failed" else None)
    Notice.objects.update(created_at=Now() - timedelta(days=2))
    world.sync(watch)
    assert not Notice.objects.exists()


def test_removed_watch_gets_no_sync_failed(world: World, open_at_second_failure: None) -> None:
    _, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    unwatch_repository(Actor.command(), watch)
    assert not Notice.objects.exists()


def test_notice_is_sent_while_the_circuit_is_open(world: World, open_at_second_failure: None) -> None:
    _, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    asked = len(world.git.server.requests)
    world.sync(watch)
    assert apps_notified(world) == [watch.app.app_id]
    assert len(world.git.server.requests) == asked
    assert watch.status in {Status.PENDING, Status.FAILED}


def test_notice_retries_use_no_attempt_of_a_resync(world: World, open_at_second_failure: None) -> None:
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
    assert asked == [1, 0, 0, 0, 0], "git was called again before the end of the cooldown"
    assert (watch.status, watch.retry_count, world.runs(watch)[0].outcome) == (Status.PENDING, 1, "")
    world.answer(None)
    Notice.objects.update(due_at=Now())
    recover(world, repo, watch)


def test_notice_that_cannot_be_signed_waits_a_minute(world: World, open_at_second_failure: None, settings) -> None:
    _, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    lose_the_key_of(watch.app, "client_auth_key", settings)
    world.sync(watch)
    assert Notice.objects.count() == 1
    assert watch.next_sync_at is not None
    assert watch.next_sync_at > timezone.now() + timedelta(seconds=30)


def test_reset_closes_the_circuit_and_schedules_every_watch(world: World, open_at_second_failure: None) -> None:
    repo, watch = world.watch()
    world.settle()
    open_the_circuit(world, watch)
    repository = Repository.objects.get(pk=watch.repository_id)
    assert (repository.last_error_cause, "503" in repository.last_error) == ("network", True)
    AppRepository.objects.update(status=Status.FAILED, retry_count=4)
    assert reset_circuits(Actor.command(), [repository]) == 1
    watch.refresh_from_db()
    assert (watch.status, watch.retry_count) == (Status.PENDING, 0)
    repository.refresh_from_db()
    assert (repository.consecutive_failures, repository.circuit_open_until, repository.last_error) == (0, None, "")
    recover(world, repo, watch)


def test_reset_needs_the_retry_permission(world: World) -> None:
    _, watch = world.watch()
    staff("rita", "view_repository", "resync_apprepository")
    with pytest.raises(PermissionDenied):
        reset_circuits(Actor.of_user(User.objects.get(username="rita")), [watch.repository])
