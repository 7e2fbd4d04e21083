"""Stop: whatever goes on about one watch ends, its requests are taken back, and it rests until the next rescan."""

import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import django_rq
import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app import jobs
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, DeliveryFailure, Outcome, Status
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import request_sync, resync_many, resync_single, retry_single, stop_sync
from deliveries_app.sync.lease import claim
from tests.support.histories import assert_promise_kept, at_notification, in_doubt, kill_worker, refusing
from tests.support.processes import in_threads, syncing
from tests.support.receiver import wait_for
from tests.support.world import World

FILES = {f"{n}.txt": b"%d" % n for n in range(8)}
BATCH = 2
ME = Actor.command()


@pytest.fixture
def world(world: World, settings) -> World:
    """Small batches and one file at a time, so that "halfway" is a certain place."""
    settings.RECORD_BATCH, world.app.max_in_flight = BATCH, 1
    world.app.save()
    return world


def stop(watch: AppRepository) -> bool:
    return stop_sync(ME, watch)


def assert_resting(watch: AppRepository, status: Status, settings) -> None:
    """Nobody works on it, nothing is asked of it, and nothing happens before the rescan."""
    watch.refresh_from_db()
    assert watch.status == status
    assert watch.lease_until is None
    assert watch.next_sync_at is not None
    wait = (watch.next_sync_at - timezone.now()).total_seconds()
    assert 0.9 * settings.RESCAN_INTERVAL_SECONDS < wait <= settings.RESCAN_INTERVAL_SECONDS
    assert not watch.runs.filter(outcome="").exists()
    assert not BulkOperation.objects.filter(ended_at=None).exists()
    assert claim(watch.pk) is None


def sent(world: World) -> Counter[str]:
    return Counter(record.path for record in world.requests())


# --- While it is sent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 4, 8], ids=["at its first file", "halfway", "at its last file"])
def test_a_first_sync_is_left_at_the_next_batch_and_goes_on_with_the_rest_at_the_rescan(
    world: World, settings, number: int
) -> None:
    repo, watch = world.watch(FILES)
    told: list[bool] = []
    world.answer(at_notification(number, lambda: told.append(stop(watch))))
    world.sync(watch)
    assert told == [True]
    assert len(world.requests()) <= number + BATCH
    assert_resting(watch, Status.PENDING, settings)
    assert watch.retry_count == 0
    assert [(run.outcome, run.error) for run in world.runs(watch)] == [(Outcome.CANCELLED, "Stopped by command line.")]
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert sum(sent(world).values()) <= len(FILES) + number + BATCH


def test_a_job_whose_watch_is_stopped_ends_and_does_not_begin_again(world: World, settings) -> None:
    _repo, watch = world.watch(FILES)
    world.answer(at_notification(3, lambda: stop(watch)))
    jobs.sync_watch(watch.pk)
    assert len(world.requests()) <= 3 + BATCH
    assert_resting(watch, Status.PENDING, settings)


def test_a_resync_is_taken_back_and_what_it_sent_already_stays_delivered(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    run = resync_single(ME, watch).run
    world.answer(at_notification(4, lambda: stop(watch)))
    world.sync(watch)
    assert_resting(watch, Status.PENDING, settings)
    run.refresh_from_db()
    assert run.outcome == Outcome.CANCELLED
    assert watch.resend_floor == 1
    before = len(world.requests())
    doubtful = in_doubt(watch)
    world.sync(watch)
    assert {record.path for record in world.requests()[before:]} == doubtful
    assert_promise_kept(world, repo, watch)


def test_a_resync_that_has_sent_nothing_yet_leaves_the_watch_as_synced_as_it_was(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    before = len(world.requests())
    resync_single(ME, watch)
    assert stop(watch)
    assert_resting(watch, Status.SYNCED, settings)
    world.sync(watch)
    assert len(world.requests()) == before
    assert_promise_kept(world, repo, watch)


def test_a_resync_of_a_watch_with_refused_files_does_not_leave_it_as_synced(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    world.answer(refusing("3.txt"))
    world.sync(watch)
    resync_single(ME, watch)
    assert stop(watch)
    assert_resting(watch, Status.PENDING, settings)
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_a_retry_leaves_the_watch_failing_with_one_attempt_at_each_rescan(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 2
    repo, watch = world.watch(FILES)
    world.answer(refusing(*FILES))
    world.sync(watch)
    world.sync(watch)
    assert watch.status == Status.FAILED
    since = watch.failing_since
    retry_single(ME, watch)
    world.answer(at_notification(2, lambda: stop(watch), then=Answer(500)))
    world.sync(watch)
    assert_resting(watch, Status.FAILED, settings)
    assert (watch.retry_count, watch.failing_since) == (1, since)
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_a_change_that_is_sent_is_stopped_without_an_attempt_lost_and_is_sent_at_the_rescan(
    world: World, settings
) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    repo.commit({f"new-{n}.txt": b"x" for n in range(8)})
    world.check()
    world.answer(at_notification(3, lambda: stop(watch)))
    world.sync(watch)
    assert_resting(watch, Status.PENDING, settings)
    assert watch.retry_count == 0
    world.check()  # finds the same change, and leaves the watch alone all the same
    assert_resting(watch, Status.PENDING, settings)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_a_watch_between_two_attempts_is_given_no_further_one_before_the_rescan(world: World, settings) -> None:
    _repo, watch = world.watch(FILES)
    world.answer(refusing("3.txt"))
    world.sync(watch)
    assert (watch.status, watch.retry_count) == (Status.PENDING, 1)
    assert stop(watch)
    assert_resting(watch, Status.FAILED, settings)
    assert watch.retry_count == settings.MAX_RETRY_ATTEMPTS - 1


def test_it_is_left_while_git_is_asked_and_before_anything_is_announced(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    told: list[bool] = []

    def press_once(method: str, target: str) -> None:
        if not told:
            told.append(stop(watch))
            connections.close_all()

    world.git.server.on_request = press_once
    world.sync(watch)
    assert told == [True]
    assert world.requests() == []
    assert_resting(watch, Status.PENDING, settings)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_a_watch_whose_worker_was_killed_rests_too_and_nothing_is_lost(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    kill_worker(world, watch, lambda note: note.path == "4.txt")
    assert watch.status == Status.SCANNING
    assert stop(watch)
    assert_resting(watch, Status.PENDING, settings)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


# --- While it waits ------------------------------------------------------------------------------------------------------


def test_of_one_that_is_queued_the_job_goes_too(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    other = world.watch(name="acme/other")[1]
    assert set(django_rq.get_queue("high").get_job_ids()) == {watch.job_id, other.job_id}
    assert stop(watch)
    assert django_rq.get_queue("high").get_job_ids() == [other.job_id]
    assert_resting(watch, Status.PENDING, settings)
    jobs.sync_watch(watch.pk)  # a worker that had its job in hand already
    assert world.requests() == []
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_a_change_that_was_found_and_waits_is_one_too(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    repo.commit({"new.txt": b"x"})
    world.check()
    watch.refresh_from_db()
    assert (watch.status, watch.runs.filter(outcome="").count()) == (Status.SYNCED, 0)
    assert stop(watch)
    assert_resting(watch, Status.SYNCED, settings)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_so_is_one_that_waits_for_a_slot_of_its_app(world: World, settings) -> None:
    _repo, watch = world.watch(FILES)
    first = world.watch(name="acme/other")[1]
    lease = claim(first.pk)
    assert lease is not None
    assert claim(watch.pk) is None
    AppRepository.objects.filter(pk=watch.pk).update(status=Status.SYNCED, next_sync_at=Now() + timedelta(seconds=60))
    watch.runs.update(outcome=Outcome.SUCCEEDED, ended_at=Now())
    assert stop(watch)
    watch.refresh_from_db()
    assert watch.slots_requested_at is None


def test_who_wishes_for_a_sync_after_the_stop_gets_it(world: World) -> None:
    repo, watch = world.watch(FILES)
    stop(watch)
    request_sync(AppRepository.objects.filter(pk=watch.pk))
    jobs.sync_watch(watch.pk)
    assert_promise_kept(world, repo, watch)
    assert not stop(watch)


# --- When nothing is going on --------------------------------------------------------------------------------------------


def test_a_stop_when_nothing_is_going_on_says_so_and_changes_nothing(world: World) -> None:
    _repo, watch = world.watch(FILES)
    world.sync(watch)
    before = AppRepository.objects.filter(pk=watch.pk).values().get()
    assert not stop(watch)
    assert AppRepository.objects.filter(pk=watch.pk).values().get() == before


def test_of_a_watch_that_has_been_given_up_until_the_rescan_there_is_nothing_to_stop(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 1
    _repo, watch = world.watch(FILES)
    world.answer(refusing("3.txt"))
    world.sync(watch)
    assert watch.status == Status.FAILED
    assert not stop(watch)


@pytest.mark.parametrize("state", ["never synced", "failing", "synced"])
def test_a_second_stop_finds_nothing_to_stop(world: World, state: str) -> None:
    _repo, watch = world.watch(FILES)
    if state != "never synced":
        world.answer(refusing("3.txt") if state == "failing" else None)
        world.sync(watch)
        request_sync(AppRepository.objects.filter(pk=watch.pk))
    assert stop(watch)
    generation = AppRepository.objects.get(pk=watch.pk).generation
    assert not stop(watch)
    assert AppRepository.objects.get(pk=watch.pk).generation == generation


def test_of_two_stops_at_once_one_has_stopped_it(world: World, settings) -> None:
    user = User.objects.create_superuser("anna", password="x")
    _repo, watch = world.watch(FILES)
    resync_single(ME, watch)
    results = in_threads(*[lambda: stop_sync(Actor.of_user(user), watch)] * 2)
    assert sorted(map(bool, results)) == [False, True]
    assert [entry.change_message for entry in LogEntry.objects.all()] == ["Stopped the sync"]
    assert_resting(watch, Status.PENDING, settings)


def test_while_its_worker_is_leaving_it_is_stopped_already(world: World, settings) -> None:
    """A slow client: the worker waits for the answer that is under way, and holds the lease as long."""
    asked, answered = threading.Event(), threading.Event()
    _repo, watch = world.watch(FILES)

    def slowly(note: Notification) -> None:
        asked.set()
        answered.wait(20)

    world.answer(slowly)
    worker = syncing(watch.pk)
    assert asked.wait(20)
    assert stop(watch)
    assert AppRepository.objects.filter(pk=watch.pk).leased().exists()
    assert not stop(watch)
    answered.set()
    worker.join()
    assert len(world.requests()) <= 1 + BATCH
    assert_resting(watch, Status.PENDING, settings)


def test_a_watch_that_is_no_longer_watched_or_of_another_app_cannot_be_stopped(world: World) -> None:
    _repo, watch = world.watch(FILES)
    other = world.add_app("Search")
    with pytest.raises(PermissionDenied):
        stop_sync(Actor.of_app(other), watch)
    AppRepository.objects.filter(pk=watch.pk).update(ended_at=Now())
    assert not stop(watch)


# --- Within an operation -------------------------------------------------------------------------------------------------


def test_an_operation_goes_on_without_the_watch_that_was_stopped_and_closes(world: World, settings) -> None:
    watches = [world.watch(FILES, name=f"acme/widgets-{number}")[1] for number in range(2)]
    for watch in watches:
        world.sync(watch)
    operation = resync_many(ME, AppRepository.objects.all())
    stop(watches[0])
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
    assert_resting(watches[0], Status.SYNCED, settings)


def test_the_last_watch_of_an_operation_that_is_stopped_closes_it_at_once(world: World) -> None:
    _repo, watch = world.watch(FILES)
    world.sync(watch)
    operation = resync_many(ME, AppRepository.objects.all())
    closed: list[Callable[[], object]] = []
    world.answer(at_notification(3, lambda: closed.append(stop(watch))))
    world.sync(watch)
    assert closed == [True]
    operation.refresh_from_db()
    assert operation.ended_at is not None
    assert not DeliveryFailure.objects.exists()
    wait_for(lambda: not AppRepository.objects.leased().exists())
