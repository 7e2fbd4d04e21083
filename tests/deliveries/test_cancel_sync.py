"""Cancel a sync: everything that runs or waits for one watch ends, and it stays idle until the next rescan."""

import threading
from collections import Counter
from datetime import timedelta

import django_rq
import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app import jobs
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, DeliveryFailure, Outcome, Status
from deliveries_app.receiver import Answer, Notification
from deliveries_app.scheduling import request_sync
from deliveries_app.services import cancel_sync, resync_many, resync_single, retry_single
from deliveries_app.sync.claim import claim
from tests.support.audit import by_users, messages
from tests.support.histories import assert_promise_kept, at_notification, in_doubt, kill_worker, refusing
from tests.support.processes import in_threads, syncing
from tests.support.receiver import wait_for
from tests.support.world import World

FILES = {f"{n}.txt": b"%d" % n for n in range(8)}
BATCH = 2
ME = Actor.command()


@pytest.fixture
def world(world: World, settings) -> World:
    """Small batches and one file at a time, so that progress is deterministic."""
    settings.RECORD_BATCH, world.app.max_in_flight = BATCH, 1
    world.app.save()
    return world


def cancel(watch: AppRepository) -> bool:
    return cancel_sync(ME, watch)


def assert_idle(watch: AppRepository, status: Status, settings) -> None:
    """The watch has no worker and no open request, and nothing happens before the rescan."""
    watch.refresh_from_db()
    assert watch.status == status
    assert not AppRepository.objects.leased().filter(pk=watch.pk).exists()
    assert watch.next_sync_at is not None
    wait = (watch.next_sync_at - timezone.now()).total_seconds()
    assert 0.9 * settings.RESCAN_INTERVAL_SECONDS < wait <= settings.RESCAN_INTERVAL_SECONDS
    assert not watch.runs.filter(outcome="").exists()
    assert not BulkOperation.objects.filter(ended_at=None).exists()
    assert claim(watch.pk) is None


def sent(world: World) -> Counter[str]:
    return Counter(record.path for record in world.requests())


# --- While it is syncing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 4, 8], ids=["at its first file", "halfway", "at its last file"])
def test_cancel_during_the_first_sync(world: World, settings, number: int) -> None:
    repo, watch = world.watch(FILES)
    results: list[bool] = []
    world.answer(at_notification(number, lambda: results.append(cancel(watch))))
    world.sync(watch)
    assert results == [True]
    assert len(world.requests()) <= number + BATCH
    assert_idle(watch, Status.PENDING, settings)
    assert watch.retry_count == 0
    assert [(run.outcome, run.error) for run in world.runs(watch)] == [
        (Outcome.CANCELLED, "Cancelled by command line.")
    ]
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert sum(sent(world).values()) <= len(FILES) + number + BATCH


def test_job_ends_when_its_watch_is_cancelled(world: World, settings) -> None:
    _repo, watch = world.watch(FILES)
    world.answer(at_notification(3, lambda: cancel(watch)))
    jobs.sync_watch(watch.pk)
    assert len(world.requests()) <= 3 + BATCH
    assert_idle(watch, Status.PENDING, settings)


def test_cancel_during_a_resync_keeps_what_was_sent(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    run = resync_single(ME, watch)
    world.answer(at_notification(4, lambda: cancel(watch)))
    world.sync(watch)
    assert_idle(watch, Status.PENDING, settings)
    run.refresh_from_db()
    assert run.outcome == Outcome.CANCELLED
    assert watch.resend_floor == 1
    before = len(world.requests())
    doubtful = in_doubt(watch)
    world.sync(watch)
    assert {record.path for record in world.requests()[before:]} == doubtful
    assert_promise_kept(world, repo, watch)


def test_cancel_before_a_resync_sent_anything(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    before = len(world.requests())
    resync_single(ME, watch)
    assert cancel(watch)
    assert_idle(watch, Status.PENDING, settings)
    world.sync(watch)
    assert len(world.requests()) == before
    assert_promise_kept(world, repo, watch)


def test_cancel_a_resync_of_a_watch_with_refused_files(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    world.answer(refusing("3.txt"))
    world.sync(watch)
    resync_single(ME, watch)
    assert cancel(watch)
    assert_idle(watch, Status.FAILED, settings)
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_cancel_during_a_retry_leaves_the_watch_failing(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 2
    repo, watch = world.watch(FILES)
    world.answer(refusing(*FILES))
    world.sync(watch)
    world.sync(watch)
    assert watch.status == Status.FAILED
    since = watch.failing_since
    retry_single(ME, watch)
    world.answer(at_notification(2, lambda: cancel(watch), then=Answer(500)))
    world.sync(watch)
    assert_idle(watch, Status.FAILED, settings)
    assert (watch.retry_count, watch.failing_since) == (1, since)
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_cancel_while_a_change_is_sent(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    repo.commit({f"new-{n}.txt": b"x" for n in range(8)})
    world.check()
    world.answer(at_notification(3, lambda: cancel(watch)))
    world.sync(watch)
    assert_idle(watch, Status.PENDING, settings)
    assert watch.retry_count == 0
    world.check()  # finds the same change, but does not make the watch due
    assert_idle(watch, Status.PENDING, settings)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_cancel_between_two_attempts(world: World, settings) -> None:
    _repo, watch = world.watch(FILES)
    world.answer(refusing("3.txt"))
    world.sync(watch)
    assert (watch.status, watch.retry_count) == (Status.PENDING, 1)
    assert cancel(watch)
    assert_idle(watch, Status.FAILED, settings)
    assert watch.retry_count == settings.MAX_RETRY_ATTEMPTS - 1


@pytest.mark.parametrize("is_first", [True, False])
def test_cancel_during_the_git_fetch(world: World, settings, is_first: bool) -> None:
    """The sync of a change has no run yet."""
    repo, watch = world.watch(FILES)
    if not is_first:
        world.sync(watch)
        repo.commit({"new.txt": b"x"})
    sent = len(world.requests())
    results: list[bool] = []

    def cancel_once(method: str, target: str) -> None:
        if not results:
            results.append(cancel(watch))
            connections.close_all()

    world.git.server.on_request = cancel_once
    world.sync(watch)
    assert results == [True]
    assert len(world.requests()) == sent
    assert_idle(watch, Status.PENDING, settings)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_cancel_after_the_worker_was_killed(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    kill_worker(world, watch, lambda note: note.path == "4.txt")
    assert watch.status == Status.SCANNING
    assert cancel(watch)
    assert_idle(watch, Status.PENDING, settings)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


# --- While it is waiting -------------------------------------------------------------------------------------------------


def test_cancel_a_queued_watch_removes_its_job(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    other = world.watch(name="acme/other")[1]
    assert set(django_rq.get_queue("high").get_job_ids()) == {watch.job_id, other.job_id}
    assert cancel(watch)
    assert django_rq.get_queue("high").get_job_ids() == [other.job_id]
    assert_idle(watch, Status.PENDING, settings)
    jobs.sync_watch(watch.pk)  # by a worker that had already taken the job
    assert world.requests() == []
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_cancel_a_waiting_change(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    repo.commit({"new.txt": b"x"})
    world.check()
    watch.refresh_from_db()
    assert (watch.status, watch.runs.filter(outcome="").count()) == (Status.SYNCED, 0)
    assert cancel(watch)
    assert_idle(watch, Status.PENDING, settings)  # HEAD has moved
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_cancel_a_resync_of_a_watch_that_git_could_not_read(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    repo.commit({"new.txt": b"x"})
    elsewhere = repo.path.rename(repo.path.with_name("renamed.git"))
    world.sync(watch)
    assert watch.is_failing
    resync_single(ME, watch)
    assert cancel(watch)
    assert_idle(watch, Status.FAILED, settings)
    elsewhere.rename(repo.path)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_cancel_after_a_fetch_that_brought_an_older_commit(world: World) -> None:
    """The watch has synced what it got, and is due for the commit that HEAD named."""
    _repo, watch = world.watch(FILES)
    world.sync(watch)
    later = Now() + timedelta(seconds=5)
    AppRepository.objects.filter(pk=watch.pk).update(seen_commit="f" * 40, next_sync_at=later)
    watch.runs.update(outcome="", ended_at=None)
    assert cancel(watch)
    watch.refresh_from_db()
    assert watch.status == Status.PENDING


def test_cancel_a_watch_that_waits_for_a_slot(world: World, settings) -> None:
    _repo, watch = world.watch(FILES)
    first = world.watch(name="acme/other")[1]
    lease = claim(first.pk)
    assert lease is not None
    assert claim(watch.pk) is None
    watch.runs.update(outcome=Outcome.SUCCEEDED, ended_at=Now())
    assert cancel(watch)
    watch.refresh_from_db()
    assert watch.slots_requested_at is None
    assert_idle(watch, Status.PENDING, settings)


def test_request_after_a_cancel(world: World) -> None:
    repo, watch = world.watch(FILES)
    cancel(watch)
    request_sync(AppRepository.objects.filter(pk=watch.pk))
    jobs.sync_watch(watch.pk)
    assert_promise_kept(world, repo, watch)
    assert not cancel(watch)


# --- While it is idle ----------------------------------------------------------------------------------------------------


def test_cancel_an_idle_watch_changes_nothing(world: World) -> None:
    _repo, watch = world.watch(FILES)
    world.sync(watch)
    before = AppRepository.objects.filter(pk=watch.pk).values().get()
    assert not cancel(watch)
    assert AppRepository.objects.filter(pk=watch.pk).values().get() == before


def test_cancel_a_failed_watch(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 1
    _repo, watch = world.watch(FILES)
    world.answer(refusing("3.txt"))
    world.sync(watch)
    assert watch.status == Status.FAILED
    assert not cancel(watch)


@pytest.mark.parametrize("state", ["never synced", "failing", "synced"])
def test_second_cancel_finds_nothing(world: World, state: str) -> None:
    _repo, watch = world.watch(FILES)
    if state != "never synced":
        world.answer(refusing("3.txt") if state == "failing" else None)
        world.sync(watch)
        request_sync(AppRepository.objects.filter(pk=watch.pk))
    assert cancel(watch)
    generation = AppRepository.objects.get(pk=watch.pk).generation
    assert not cancel(watch)
    assert AppRepository.objects.get(pk=watch.pk).generation == generation


def test_two_concurrent_cancels(world: World, settings) -> None:
    user = User.objects.create_superuser("anna", password="x")
    _repo, watch = world.watch(FILES)
    resync_single(ME, watch)
    results = in_threads(*[lambda: cancel_sync(Actor.of_user(user), watch)] * 2)
    assert sorted(map(bool, results)) == [False, True]
    assert messages(by_users()) == ["Cancelled the sync"]
    assert_idle(watch, Status.PENDING, settings)


def test_second_cancel_while_the_worker_is_still_leaving(world: World, settings) -> None:
    """With a slow client, the worker holds its lease until the pending response arrives."""
    received, answered = threading.Event(), threading.Event()
    _repo, watch = world.watch(FILES)

    def slowly(note: Notification) -> None:
        received.set()
        answered.wait(20)

    world.answer(slowly)
    worker = syncing(watch.pk)
    assert received.wait(20)
    assert cancel(watch)
    assert AppRepository.objects.filter(pk=watch.pk).leased().exists()
    assert not cancel(watch)
    answered.set()
    worker.join()
    assert len(world.requests()) <= 1 + BATCH
    assert_idle(watch, Status.PENDING, settings)


def test_cancel_an_unwatched_watch_or_one_of_another_app(world: World) -> None:
    _repo, watch = world.watch(FILES)
    other = world.add_app("Search")
    with pytest.raises(PermissionDenied):
        cancel_sync(Actor.of_app(other), watch)
    AppRepository.objects.filter(pk=watch.pk).update(ended_at=Now())
    assert not cancel(watch)


# --- In an operation -----------------------------------------------------------------------------------------------------


def test_operation_continues_without_the_cancelled_watch(world: World, settings) -> None:
    watches = [world.watch(FILES, name=f"acme/widgets-{number}")[1] for number in range(2)]
    for watch in watches:
        world.sync(watch)
    operation = resync_many(ME, AppRepository.objects.all())
    cancel(watches[0])
    operation.refresh_from_db()
    assert operation.ended_at is None
    world.sync(watches[1])
    operation.refresh_from_db()
    assert operation.ended_at is not None
    assert operation.cancelled_at is None
    assert dict(operation.runs.values_list("watch", "outcome")) == {
        watches[0].pk: Outcome.CANCELLED,
        watches[1].pk: Outcome.SUCCEEDED,
    }
    assert_idle(watches[0], Status.PENDING, settings)


def test_cancel_the_last_watch_closes_its_operation(world: World) -> None:
    _repo, watch = world.watch(FILES)
    world.sync(watch)
    operation = resync_many(ME, AppRepository.objects.all())
    closed: list[bool] = []
    world.answer(at_notification(3, lambda: closed.append(cancel(watch))))
    world.sync(watch)
    assert closed == [True]
    operation.refresh_from_db()
    assert operation.ended_at is not None
    assert not DeliveryFailure.objects.exists()
    wait_for(lambda: not AppRepository.objects.leased().exists())
