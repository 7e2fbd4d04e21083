"""Retry (`engine.md` §3): what is not acknowledged is sent now, with all attempts available, and nothing else is sent twice."""

from collections import Counter

import pytest
from django.db import connection
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, BulkOperation, Outcome, Status, SyncRun
from deliveries_app.progress import live
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import (
    NotFailed,
    NotFound,
    cancel_operation,
    cancel_request,
    resync_many,
    resync_single,
    retry_all,
    retry_by_app,
    retry_many,
    retry_single,
    unwatch_repository,
)
from docora.db.clock import from_now
from docora.redis import queues
from repositories_app.mirror.mirror import Mirror
from repositories_app.models import Repository
from tests.support.histories import assert_promise_kept, at_notification, given_up, refusing, seconds_until_next_sync
from tests.support.world import World

COMMAND = Actor.command()
FILES = {f"{n}.txt": b"%d" % n for n in range(8)}


@pytest.fixture
def world(world: World, settings) -> World:
    """Small batches and one file at a time, so that progress is deterministic."""
    settings.RECORD_BATCH, world.app.max_in_flight, settings.MAX_RETRY_ATTEMPTS = 2, 1, 2
    world.app.save()
    return world


def retry(watch: AppRepository) -> SyncRun:
    return retry_single(COMMAND, watch)


# --- What it sends -------------------------------------------------------------------------------------------------------


def test_retry_sends_only_what_is_not_acknowledged(world: World) -> None:
    repo, watch = world.watch(FILES)
    given_up(world, watch)
    run = retry(watch)
    assert run.files_total == 2
    retry(watch)
    watch.refresh_from_db()
    assert (watch.status, watch.retry_count) == (Status.PENDING, 0)
    assert seconds_until_next_sync(watch) <= 0
    run = world.runs(watch)[0]
    world.sync(watch)
    assert world.sent_in(run) == {"3.txt": 1, "5.txt": 1}
    assert {record.reason for record in world.requests() if record.run_id == run.run_id} == {"retry"}
    assert_promise_kept(world, repo, watch)
    assert world.outcomes(watch)[-1] == ("retry", "succeeded")


def test_retry_keeps_generation_and_notification_ids(world: World) -> None:
    _repo, watch = world.watch(FILES)
    before = given_up(world, watch).generation
    retry(watch)
    watch = world.sync(watch)
    assert watch.generation == before
    ids = [record.webhook_id for record in world.requests() if record.path == "3.txt"]
    assert len(ids) == 3
    assert len(set(ids)) == 1


def test_retry_grants_all_attempts(world: World) -> None:
    _repo, watch = world.watch(FILES)
    given_up(world, watch)
    world.answer(refusing("3.txt"))
    retry(watch)
    watch = world.sync(watch)
    assert (watch.status, watch.retry_count) == (Status.PENDING, 1)
    watch = world.sync(watch)
    assert watch.status == Status.FAILED
    assert world.outcomes(watch) == [("initial", "failed"), ("retry", "failed")]


def test_retry_of_an_interrupted_resync_sends_the_other_files(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    operation = resync_many(COMMAND, AppRepository.objects.all())
    seen: list[str] = []

    def rate_limit(note: Notification) -> Answer | None:
        seen.append(note.path)
        return Answer(429, headers={"Retry-After": "600"}) if len(seen) > 4 else None

    world.answer(rate_limit)
    watch = world.sync(watch)
    assert (watch.is_failing, watch.resend_floor) == (True, watch.generation)
    world.answer(None)
    run = retry(watch)
    assert (run.files_total, run.bytes_total) == (4, 4)
    operation.refresh_from_db()
    assert operation.ended_at
    world.sync(watch)
    assert sorted(world.sent_in(run)) == ["4.txt", "5.txt", "6.txt", "7.txt"]
    assert_promise_kept(world, repo, watch)
    assert world.outcomes(watch)[1:] == [("resync", "superseded"), ("retry", "succeeded")]


# --- When it is refused or waits -----------------------------------------------------------------------------------------


def test_retry_with_nothing_failing_is_refused(world: World) -> None:
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


def test_retry_of_an_unwatched_repository_is_refused(world: World) -> None:
    _, watch = world.watch(FILES)
    given_up(world, watch)
    unwatch_repository(COMMAND, watch)
    with pytest.raises(NotFailed):
        retry(watch)


def test_retry_of_a_selection_skips_what_is_not_failing(world: World) -> None:
    _, failing = world.watch(FILES)
    _, fine = world.watch(FILES, name="acme/fine")
    world.sync(fine)
    given_up(world, failing)
    operation = retry_many(COMMAND, AppRepository.objects.all())
    assert (operation.total, operation.title) == (1, "Retry · acme/widgets → Portal")
    assert operation.runs.get().watch == failing


def test_retry_probes_an_open_circuit(world: World) -> None:
    repo, watch = world.watch(FILES)
    given_up(world, watch)
    Repository.objects.update(circuit_open_until=from_now(1800), consecutive_failures=5)
    assert world.sync(watch).status == Status.FAILED  # the circuit blocks the rescan
    retry(watch)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert Repository.objects.get().circuit_open_until is None


def test_retry_probes_an_endpoint_that_was_down(world: World) -> None:
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


def test_resync_ends_no_cooldown_of_another_app(watches) -> None:
    App.objects.update(down_count=1, cooldown_until=from_now(1800))
    resync_single(COMMAND, watches[0])
    assert App.objects.get(cooldown_until=None) == watches[0].app


def test_retry_respects_retry_after(world: World) -> None:
    _, watch = world.watch(FILES)
    world.answer(lambda note: Answer(429, headers={"Retry-After": "600"}))
    world.sync(watch)
    retry(watch)
    assert not AppRepository.objects.due().exists()


def test_retry_of_a_paused_app_waits(world: World) -> None:
    _, watch = world.watch(FILES)
    given_up(world, watch)
    App.objects.update(paused=True)
    retry(watch)
    assert not AppRepository.objects.due().exists()
    App.objects.update(paused=False)
    assert AppRepository.objects.due().get() == watch
    assert world.outcomes(watch)[-1] == ("retry", "")


def test_single_retry_is_enqueued_ahead_of_bulk_work(world: World) -> None:
    _, watch = world.watch(FILES)
    given_up(world, watch)
    queues.drop([watch.job_id])
    retry(watch)
    assert len(queues.job_ids("high")) == 1


# --- Progress ------------------------------------------------------------------------------------------------------------


def test_retry_progress_counts_what_it_sends(world: World) -> None:
    _, watch = world.watch(FILES)
    given_up(world, watch)
    operation = retry_all(COMMAND)
    seen: list[tuple[int, int, int]] = []

    def record_progress(note: Notification) -> None:
        progress = live.of_operation(BulkOperation.objects.get(pk=operation.pk))
        seen.append((progress.files_done, progress.files_total, progress.percent))
        connection.close()

    world.answer(record_progress)
    AppRepository.objects.update(next_sync_at=Now())
    world.sync(watch)
    assert [total for _, total, _ in seen] == [2, 2]
    assert max(percent for *_, percent in seen) < 100
    operation.refresh_from_db()
    progress = live.of_operation(operation)
    assert (progress.files_done, progress.files_total, progress.percent, progress.finished) == (2, 2, 100, True)


# --- During other runs ---------------------------------------------------------------------------------------------------


def test_retry_supersedes_an_open_run_and_ends_its_operation(world: World) -> None:
    _, watch = world.watch(FILES)
    given_up(world, watch)
    first = retry_all(COMMAND)
    second = retry_by_app(COMMAND, world.app)
    first.refresh_from_db()
    assert first.ended_at
    assert live.of_operation(first).superseded == 1
    world.sync(watch)
    second.refresh_from_db()
    assert second.ended_at
    assert live.of_operation(second).succeeded == 1
    assert world.outcomes(watch) == [("initial", "failed"), ("retry", "superseded"), ("retry", "succeeded")]


def test_retry_during_the_git_fetch_takes_over_the_attempt(world: World, monkeypatch) -> None:
    _, watch = world.watch(FILES)
    given_up(world, watch)
    first, runs = retry(watch), list[SyncRun]()
    fetch = Mirror.fetch

    def retry_and_fetch(mirror, *arguments, **named):
        runs.append(retry(watch))
        return fetch(mirror, *arguments, **named)

    monkeypatch.setattr(Mirror, "fetch", retry_and_fetch)
    watch = world.sync(watch)
    assert world.sent_in(first) == {}
    assert world.sent_in(runs[0]) == {"3.txt": 1, "5.txt": 1}
    assert world.outcomes(watch)[-2:] == [("retry", "superseded"), ("retry", "succeeded")]


def test_retry_during_the_fetch_of_new_files_is_not_given_up(world: World, settings, monkeypatch) -> None:
    settings.MAX_RETRY_ATTEMPTS = 1
    repo, watch = world.watch(FILES)
    world.answer(lambda note: Answer(500))
    assert world.sync(watch).status == Status.FAILED
    repo.commit({"new.txt": b"new"})
    fetch = Mirror.fetch

    def retry_and_fetch(mirror, *arguments, **named):
        retry(watch)
        return fetch(mirror, *arguments, **named)

    monkeypatch.setattr(Mirror, "fetch", retry_and_fetch)
    watch = world.sync(watch)
    assert (watch.status, watch.retry_count) == (Status.PENDING, 0)


def test_retry_during_a_run_sends_nothing_twice(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.answer(refusing("0.txt"))
    world.sync(watch)
    repo.commit({f"new-{n}.txt": b"new" for n in range(4)})
    before = len(world.requests())
    world.answer(at_notification(2, lambda: retry(watch)))
    world.settle()
    assert Counter(record.path for record in world.requests()[before:]) == Counter(
        ["0.txt", *(f"new-{n}.txt" for n in range(4))]
    )
    assert_promise_kept(world, repo, watch)
    assert world.outcomes(watch)[-1] == ("retry", "succeeded")
    run = world.runs(watch)[0]
    assert run.files_total == run.files_done


def test_retry_during_a_run_counts_what_is_sent_from_then_on(world: World, settings) -> None:
    """The run that it replaces has ended, so its numbers and those of its operation no longer change."""
    settings.RECORD_BATCH = 1
    _, watch = world.watch(FILES)
    given_up(world, watch)
    resync_many(COMMAND, AppRepository.objects.filter(pk=watch.pk))
    ended: list[dict[str, object]] = []

    def retry_once() -> None:
        run = SyncRun.objects.get(watch=watch, outcome="")
        retry(watch)
        ended.append(SyncRun.objects.values().get(pk=run.pk))

    world.answer(at_notification(4, retry_once))
    watch = world.sync(watch)
    replaced, run = SyncRun.objects.get(pk=ended[0]["id"]), world.runs(watch)[0]
    assert SyncRun.objects.values().get(pk=replaced.pk) == ended[0]
    assert (replaced.outcome, run.reason, run.outcome, run.attempts) == ("superseded", "retry", "succeeded", 1)
    assert 0 < replaced.files_done < len(FILES)
    assert replaced.files_done + run.files_done == replaced.files_total == len(FILES)
    assert (run.files_done, run.bytes_done) == (run.files_total, run.bytes_total)
    assert run.commit_sha == replaced.commit_sha


def test_retry_during_the_last_attempt(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.answer(refusing("3.txt", "5.txt"))
    world.sync(watch)
    world.answer(at_notification(1, lambda: retry(watch), then=Answer(500)))
    watch = world.sync(watch)
    assert (watch.status, watch.retry_count) == (Status.PENDING, 0)
    assert world.outcomes(watch)[-1] == ("retry", "")
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert world.outcomes(watch)[-1] == ("retry", "succeeded")


def test_retry_during_an_attempt_that_does_not_count(world: World) -> None:
    """The retry has set the number of attempts to 0, so there is none to subtract."""
    _, watch = world.watch(FILES)
    world.answer(refusing("3.txt", "5.txt"))
    world.sync(watch)
    world.answer(at_notification(1, lambda: retry(watch), then=Answer(429, headers={"Retry-After": "60"})))
    watch = world.sync(watch)
    assert (watch.status, watch.retry_count, watch.last_status_code) == (Status.PENDING, 0, 429)
    assert world.outcomes(watch)[-1] == ("retry", "")


def test_retry_during_an_attempt_that_fails_permanently(world: World) -> None:
    repo, watch = world.watch(FILES)
    given_up(world, watch)
    moved = repo.path.with_name("moved")
    repo.path.rename(moved)
    runs: list[SyncRun] = []

    def retry_once(method: str, target: str) -> None:
        if not runs:
            runs.append(retry(watch))
            connection.close()

    world.git.server.on_request = retry_once
    watch = world.sync(watch)
    assert (watch.status, watch.root_cause, watch.retry_count) == (Status.PENDING, "git_not_found", 0)
    assert world.outcomes(watch)[-1] == ("retry", "")
    moved.rename(repo.path)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert world.outcomes(watch)[-1] == ("retry", "succeeded")


def test_superseded_run_does_not_move_progress_back(world: World) -> None:
    """The older operation continues with another watch and counts this one as completed."""
    _, watch = world.watch(FILES)
    _, other = world.watch(FILES, name="acme/other")
    given_up(world, watch)
    given_up(world, other)
    operation = retry_all(COMMAND)
    completed: list[int] = []

    def record_completed() -> None:
        operation.refresh_from_db()
        completed.append(live.of_operation(operation).completed)

    seen: list[str] = []

    def hook(note: Notification) -> None:
        seen.append(note.path)
        if len(seen) == 1:
            retry(watch)
        record_completed()
        connection.close()

    world.answer(hook)
    world.sync(watch)
    record_completed()
    assert completed == [1, 1, 1]


# --- Cancelling ----------------------------------------------------------------------------------------------------------


def test_cancelled_retry_leaves_the_watch_failing(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    since = given_up(world, watch).failing_since
    operation = retry_all(COMMAND)
    assert cancel_operation(COMMAND, operation) == 1
    watch.refresh_from_db()
    assert (watch.status, watch.failing_since, watch.root_cause) == (Status.FAILED, since, "http_5xx")
    assert 0.8 * settings.RESCAN_INTERVAL_SECONDS < seconds_until_next_sync(watch) <= settings.RESCAN_INTERVAL_SECONDS
    assert not AppRepository.objects.due().exists()
    assert world.outcomes(watch)[-1] == ("retry", "cancelled")
    world.sync(watch)  # the rescan
    assert_promise_kept(world, repo, watch)


def test_cancelling_a_retry_fences_its_worker(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.answer(lambda note: Answer(500))
    world.sync(watch)
    world.sync(watch)
    run = retry(watch)
    world.answer(at_notification(4, lambda: cancel_request(COMMAND, watch)))
    watch = world.sync(watch)
    assert (watch.status, watch.lease_until) == (Status.FAILED, None)
    assert len(world.sent_in(run)) <= 6
    run.refresh_from_db()
    assert run.outcome == Outcome.CANCELLED
    assert run.files_done < 4  # requests in flight at the cancel are in doubt, and nothing was recorded after it
    assert seconds_until_next_sync(watch) > 0
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_cancelling_a_retry_keeps_a_later_resync(world: World) -> None:
    repo, watch = world.watch(FILES)
    given_up(world, watch)
    operation = retry_all(COMMAND)
    run = resync_single(COMMAND, watch)
    cancel_operation(COMMAND, operation)
    assert AppRepository.objects.due().get() == watch
    world.sync(watch)
    assert world.sent_in(run) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)
