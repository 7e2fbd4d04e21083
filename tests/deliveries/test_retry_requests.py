"""Retry: what is not acknowledged is sent now, with all attempts before it again, and nothing else is sent twice."""

from collections import Counter

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, BulkOperation, Status, SyncRun
from deliveries_app.progress import live
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import (
    NotFailed,
    NotFound,
    resync_many,
    retry_all,
    retry_by_app,
    retry_many,
    retry_single,
    unwatch_repository,
)
from docora.db.clock import from_now
from docora.redis import queues
from repositories_app.models import Repository
from tests.support.histories import assert_promise_kept, given_up, refusing
from tests.support.world import World

COMMAND = Actor.command()
FILES = {f"{n}.txt": b"%d" % n for n in range(8)}


@pytest.fixture
def world(world: World, settings) -> World:
    """Small batches and one file at a time, so that "halfway" is a certain place."""
    settings.RECORD_BATCH, world.app.max_in_flight, settings.MAX_RETRY_ATTEMPTS = 2, 1, 2
    world.app.save()
    return world


def retry(watch: AppRepository) -> SyncRun:
    return retry_single(COMMAND, watch).run


def sent_in(world: World, run: SyncRun) -> Counter[str]:
    """How often each path was sent by this run."""
    return Counter(record.path for record in world.requests() if record.run_id == run.run_id)


def outcomes(world: World, watch: AppRepository) -> list[tuple[str, str]]:
    """Reason and outcome of each run, the oldest first."""
    return [(run.reason, run.outcome) for run in reversed(world.runs(watch))]


def due_in(watch: AppRepository) -> float:
    assert watch.next_sync_at is not None
    return (watch.next_sync_at - timezone.now()).total_seconds()


# --- What it sends -------------------------------------------------------------------------------------------------------


def test_it_sends_only_what_is_not_acknowledged_and_says_why(world: World) -> None:
    repo, watch = world.watch(FILES)
    given_up(world, watch)
    run = retry(watch)
    assert (run.files_total, watch.job_id) == (2, retry_single(COMMAND, watch).job_id)
    watch.refresh_from_db()
    assert (watch.status, watch.retry_count) == (Status.PENDING, 0)
    assert due_in(watch) <= 0
    run = world.runs(watch)[0]
    world.sync(watch)
    assert sent_in(world, run) == {"3.txt": 1, "5.txt": 1}
    assert {record.reason for record in world.requests() if record.run_id == run.run_id} == {"retry"}
    assert_promise_kept(world, repo, watch)
    assert outcomes(world, watch)[-1] == ("retry", "succeeded")


def test_it_keeps_the_generation_and_the_numbers_of_the_notifications(world: World) -> None:
    _repo, watch = world.watch(FILES)
    before = given_up(world, watch).generation
    retry(watch)
    watch = world.sync(watch)
    assert watch.generation == before
    ids = [record.webhook_id for record in world.requests() if record.path == "3.txt"]
    assert len(ids) == 3
    assert len(set(ids)) == 1


def test_it_gives_all_attempts_back(world: World) -> None:
    _repo, watch = world.watch(FILES)
    given_up(world, watch)
    world.answer(refusing("3.txt"))
    retry(watch)
    watch = world.sync(watch)
    assert (watch.status, watch.retry_count) == (Status.PENDING, 1)
    watch = world.sync(watch)
    assert watch.status == Status.FAILED
    assert outcomes(world, watch) == [("initial", "failed"), ("retry", "failed")]


def test_a_watch_whose_resync_is_half_done_goes_on_with_the_rest(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    operation = resync_many(COMMAND, AppRepository.objects.all())
    seen: list[str] = []

    def stop_answering(note: Notification) -> Answer | None:
        seen.append(note.path)
        return Answer(429, headers={"Retry-After": "600"}) if len(seen) > 4 else None

    world.answer(stop_answering)
    watch = world.sync(watch)
    assert (watch.is_failing, watch.resend_floor) == (True, watch.generation)
    world.answer(None)
    run = retry(watch)
    assert (run.files_total, run.bytes_total) == (4, 4)
    operation.refresh_from_db()
    assert operation.ended_at
    world.sync(watch)
    assert sorted(sent_in(world, run)) == ["4.txt", "5.txt", "6.txt", "7.txt"]
    assert_promise_kept(world, repo, watch)
    assert outcomes(world, watch)[1:] == [("resync", "superseded"), ("retry", "succeeded")]


# --- What it is refused for, and what it waits for -----------------------------------------------------------------------


def test_what_is_not_failing_is_not_retried(world: World) -> None:
    _, watch = world.watch(FILES)
    world.sync(watch)
    with pytest.raises(NotFailed, match=r"^Only failed entries can be retried$"):
        retry(watch)
    with pytest.raises(NotFound, match=r"^No failed notifications for this app$"):
        retry_by_app(COMMAND, world.app)
    with pytest.raises(NotFound, match=r"^No failed notifications found$"):
        retry_all(COMMAND)
    watch.refresh_from_db()
    assert watch.next_sync_at is None
    assert not BulkOperation.objects.exists()
    assert len(world.runs(watch)) == 1


def test_what_is_no_longer_watched_is_not_retried(world: World) -> None:
    _, watch = world.watch(FILES)
    given_up(world, watch)
    unwatch_repository(COMMAND, watch)
    with pytest.raises(NotFailed):
        retry(watch)


def test_of_a_selection_only_what_is_failing_is_retried(world: World) -> None:
    _, failing = world.watch(FILES)
    _, fine = world.watch(FILES, name="acme/fine")
    world.sync(fine)
    given_up(world, failing)
    operation = retry_many(COMMAND, AppRepository.objects.all())
    assert (operation.total, operation.title) == (1, "Retry · 1 repository")
    assert operation.runs.get().watch == failing


def test_it_goes_out_as_the_probe_while_the_circuit_is_open(world: World) -> None:
    repo, watch = world.watch(FILES)
    given_up(world, watch)
    Repository.objects.update(circuit_open_until=from_now(1800), consecutive_failures=5)
    assert world.sync(watch).status == Status.FAILED  # the rescan is held back
    retry(watch)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert Repository.objects.get().circuit_open_until is None


def test_an_endpoint_that_was_down_is_asked_at_once(world: World) -> None:
    repo, watch = world.watch({f"{n:02}.txt": b"x" for n in range(12)})
    world.answer(lambda note: Answer(502))
    watch = world.sync(watch)
    app = App.objects.get(pk=world.app.pk)
    assert app.down_count == 1
    assert app.cooldown_until is not None
    App.objects.update(cooldown_until=from_now(1800))
    world.answer(None)
    retry(watch)
    assert AppRepository.objects.due().get() == watch
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_an_endpoint_that_asked_for_a_rest_is_left_alone(world: World) -> None:
    _, watch = world.watch(FILES)
    world.answer(lambda note: Answer(429, headers={"Retry-After": "600"}))
    world.sync(watch)
    retry(watch)
    assert not AppRepository.objects.due().exists()


def test_on_a_paused_app_it_is_recorded_and_waits(world: World) -> None:
    _, watch = world.watch(FILES)
    given_up(world, watch)
    App.objects.update(paused=True)
    retry(watch)
    assert not AppRepository.objects.due().exists()
    App.objects.update(paused=False)
    assert AppRepository.objects.due().get() == watch
    assert outcomes(world, watch)[-1] == ("retry", "")


def test_a_single_one_is_woken_before_all_bulk_work(world: World) -> None:
    _, watch = world.watch(FILES)
    given_up(world, watch)
    queues.drop([watch.job_id])
    retry(watch)
    assert queues.waiting("high") == 1


# --- Its bar -------------------------------------------------------------------------------------------------------------


def test_its_bar_counts_what_it_sends_and_is_full_only_when_the_last_file_is_acknowledged(world: World) -> None:
    _, watch = world.watch(FILES)
    given_up(world, watch)
    operation = retry_all(COMMAND)
    seen: list[tuple[int, int, int]] = []

    def look(note: Notification) -> None:
        progress = live.of_operation(BulkOperation.objects.get(pk=operation.pk))
        seen.append((progress.files_done, progress.files_total, progress.percent))
        connection.close()

    world.answer(look)
    AppRepository.objects.update(next_sync_at=Now())
    world.sync(watch)
    assert [total for _, total, _ in seen] == [2, 2]
    assert max(percent for *_, percent in seen) < 100
    operation.refresh_from_db()
    progress = live.of_operation(operation)
    assert (progress.files_done, progress.files_total, progress.percent, progress.finished) == (2, 2, 100, True)
