"""One run per request, and its outcome (`engine.md` §10)."""

import contextlib
import functools
import threading
from datetime import timedelta

import psycopg
import pytest
from django.db import connection, transaction
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, BulkOperation, Outcome, Reason, SyncRun
from deliveries_app.progress import live, runs
from deliveries_app.services import (
    cancel_operation,
    cancel_request,
    resync_many,
    resync_single,
    retry_single,
    unwatch_repository,
)
from tests.support.histories import assert_promise_kept, at_notification, refusing
from tests.support.plans import read_rows
from tests.support.postgres import PostgresServer
from tests.support.processes import in_threads
from tests.support.staff import make_app, make_watch
from tests.support.world import World

COMMAND = Actor.command()


def everything() -> BulkOperation:
    return resync_many(COMMAND, AppRepository.objects.all())


def closed(operation: BulkOperation) -> BulkOperation:
    operation.refresh_from_db()
    assert operation.ended_at is not None
    return operation


def test_several_attempts_are_one_run(world: World) -> None:
    _repo, watch = world.watch({"bad.txt": b"1", "good.txt": b"2"})
    world.answer(refusing("bad.txt"))
    world.sync(watch)
    world.sync(watch)
    world.answer(None)
    world.sync(watch)
    (run,) = world.runs(watch)
    assert (run.reason, run.outcome, run.attempts) == (Reason.INITIAL, Outcome.SUCCEEDED, 3)
    assert (run.files_total, run.files_done, run.files_failed) == (2, 2, 0)
    assert {record.run_id for record in world.requests()} == {run.run_id}


def test_rescans_of_a_file_that_is_always_refused_are_one_run(world: World, settings) -> None:
    """They added 288 equal runs a day, and the watch's history showed nothing else."""
    settings.MAX_RETRY_ATTEMPTS = 2
    repo, watch = world.watch({"bad.txt": b"1", "good.txt": b"2"})
    world.answer(refusing("bad.txt"))
    for _ in range(5):  # two attempts, then one at each rescan
        world.sync(watch)
    first, retried = reversed(world.runs(watch))
    assert (first.reason, first.outcome, first.attempts) == (Reason.INITIAL, Outcome.FAILED, 2)
    assert (retried.reason, retried.outcome, retried.attempts) == (Reason.RETRY, Outcome.FAILED, 3)
    assert (retried.files_total, retried.files_done, retried.files_failed) == (1, 0, 1)
    assert retried.error == "1 file couldn't be delivered. The app returned HTTP 500."
    assert retried.ended_at > retried.started_at > first.ended_at
    assert {record.run_id for record in world.requests()[3:]} == {retried.run_id}

    retry_single(COMMAND, watch)
    for _ in range(3):  # a person's request is a run of its own, and so is what follows it
        world.sync(watch)
    repo.commit({"new.txt": b"3"})
    for _ in range(3):  # as is another commit
        world.sync(watch)
    world.answer(None)
    world.sync(watch)
    assert [(run.requested_by, run.outcome, run.attempts) for run in world.runs(watch)[:-2]] == [
        ("sweep", Outcome.SUCCEEDED, 4),
        ("sweep", Outcome.FAILED, 1),
        ("command line", Outcome.FAILED, 2),
    ]
    newest = world.runs(watch)[0]
    assert (newest.files_total, newest.files_done, newest.files_failed) == (2, 2, 0)
    assert_promise_kept(world, repo, watch)


def test_current_run_is_found_without_reading_the_earlier_ones(db, postgres_server) -> None:
    watch, now = make_watch(make_app("Portal"), "library"), timezone.now()
    ended = (
        SyncRun(watch=watch, reason="change", generation=1, outcome="succeeded", ended_at=now - timedelta(minutes=age))
        for age in range(1000)
    )
    SyncRun.objects.bulk_create(ended)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    assert runs.current_run(watch)
    assert read_rows(lambda: runs.current_run(watch), SyncRun._meta.db_table) <= 10


def test_only_checks_that_find_a_change_make_a_run(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    world.settle()
    repo.commit({"a.txt": b"1"})
    world.settle()
    assert world.outcomes(watch) == [("initial", "succeeded"), ("change", "succeeded")]
    assert {record.reason for record in world.requests() if record.path == "a.txt"} == {"change"}


def test_later_resync_supersedes_an_earlier_one(world: World) -> None:
    _, watch = world.watch()
    world.settle()
    first, second = everything(), everything()
    world.sync(watch)
    assert world.outcomes(watch)[1:] == [("resync", "superseded"), ("resync", "succeeded")]
    progress = live.of_operation(closed(first))
    assert (progress.superseded, progress.succeeded, progress.completed, progress.total) == (1, 0, 1, 1)
    assert live.of_operation(closed(second)).succeeded == 1


def test_superseded_run_has_no_error_of_the_later_one(world: World) -> None:
    _, watch = world.watch({"bad.txt": b"1"})
    world.sync(watch)
    first, second = (resync_single(COMMAND, watch) for _ in range(2))
    world.answer(refusing("bad.txt"))
    for _ in range(5):
        world.sync(watch)
    for run in (first, second):
        run.refresh_from_db()
    assert (first.outcome, first.error) == (Outcome.SUPERSEDED, "")
    assert (second.outcome, "HTTP 500" in second.error) == (Outcome.FAILED, True)


def test_resync_supersedes_the_run_in_progress(world: World) -> None:
    repo, watch = world.watch({f"{number:02}.txt": b"x" for number in range(20)})
    world.answer(at_notification(3, lambda: resync_single(COMMAND, watch)))
    world.sync(watch)
    assert [outcome for _, outcome in world.outcomes(watch)] == ["", ""]
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert world.outcomes(watch) == [("initial", "superseded"), ("resync", "succeeded")]


def test_cancelled_resync_does_not_supersede_an_earlier_one(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    resync_single(COMMAND, watch)
    resync_single(COMMAND, watch)
    assert cancel_request(COMMAND, watch) == 1
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert world.outcomes(watch)[1:] == [("resync", "succeeded"), ("resync", "cancelled")]
    assert len(world.requests()) == 2


@pytest.mark.parametrize("ending", ["succeeded", "failed", "cancelled", "ended", "paused"])
def test_every_outcome_ends_the_run_and_its_operation(world: World, settings, ending: str) -> None:
    settings.MAX_RETRY_ATTEMPTS = 1
    _, watch = world.watch({f"{number}.txt": b"x" for number in range(4)})
    world.settle()
    operation = everything()
    status = {"failed": 500, "paused": 410}.get(ending)
    if status:
        world.answer(refusing("0.txt", "1.txt", "2.txt", "3.txt", status=status))
    if ending == "cancelled":
        cancel_operation(COMMAND, operation)
    elif ending == "ended":
        unwatch_repository(COMMAND, watch)
    else:
        world.sync(watch)
    run = SyncRun.objects.get(operation=operation)
    assert run.outcome == ending
    assert run.ended_at is not None
    progress = live.of_operation(closed(operation))
    counted = {"ended": "cancelled", "paused": "failed"}.get(ending, ending)
    assert getattr(progress, counted) == progress.completed == 1
    assert progress.finished
    assert (progress.percent == 100) is (ending == "succeeded")


def test_operation_ends_when_the_request_of_its_last_repository_is_cancelled(watches) -> None:
    operation = everything()
    for watch in watches:
        assert operation.ended_at is None
        assert cancel_request(COMMAND, watch) == 1
        operation.refresh_from_db()
    assert closed(operation).runs.filter(outcome=Outcome.CANCELLED).count() == len(watches)


def test_operation_ends_with_its_last_run(world: World) -> None:
    watches = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(3)]
    world.settle()
    operation = everything()
    for done, watch in enumerate(watches):
        operation.refresh_from_db()
        assert operation.ended_at is None
        assert live.of_operation(operation).completed == done
        world.sync(watch)
    progress = live.of_operation(closed(operation))
    assert (progress.succeeded, progress.files_done, progress.files_total, progress.percent) == (3, 3, 3, 100)


def test_database_that_ends_the_session_after_a_run_hides_no_progress(
    world: World, caplog: pytest.LogCaptureFixture, postgres_server: PostgresServer
) -> None:
    """A traceback was logged, and the operation's progress lacked the run until the operation ended."""
    watches = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(2)]
    world.settle()
    operation = everything()

    def end_session() -> None:
        with psycopg.connect(**connection.get_connection_params()) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.connection.info.backend_pid])

    with transaction.atomic():
        transaction.on_commit(end_session)
        runs.end_all_runs([watches[0].pk], Outcome.SUCCEEDED)
    assert "Error calling" not in caplog.text
    assert live.of_operation(operation).completed == 1


def test_sweep_closes_an_operation_after_a_crash(world: World) -> None:
    _, _watch = world.watch()
    operation = everything()
    SyncRun.objects.filter(operation=operation).update(outcome=Outcome.SUCCEEDED, ended_at=operation.created_at)
    still_open = everything()
    runs.close_abandoned_operations()
    closed(operation)
    still_open.refresh_from_db()
    assert still_open.ended_at is None


def test_cancelling_an_ended_operation_changes_nothing(world: World) -> None:
    _, watch = world.watch()
    operation = everything()
    world.sync(watch)
    assert cancel_operation(COMMAND, operation) == 0
    assert closed(operation).cancelled_at is None
    assert cancel_request(COMMAND, watch) == 0


def test_resync_of_a_paused_app_runs_on_resume(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    App.objects.update(paused=True)
    operation = everything()
    sent = len(world.requests())
    world.sync(watch)
    assert len(world.requests()) == sent
    operation.refresh_from_db()
    assert operation.ended_at is None
    App.objects.update(paused=False)
    assert AppRepository.objects.due().get() == watch
    world.sync(watch)
    assert len(world.requests()) == sent + 1
    assert_promise_kept(world, repo, watch)
    assert live.of_operation(closed(operation)).succeeded == 1


def test_last_two_runs_ending_together_close_the_operation(world: World) -> None:
    """Neither transaction sees that the other ended its run, so both once left the operation open, with its bar at 99%."""
    watches = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(2)]
    world.settle()
    operation = everything()
    ended = threading.Barrier(2)

    def end(watch: AppRepository) -> None:
        watch.refresh_from_db()
        with transaction.atomic():
            runs.end_runs(watch.pk, watch.generation, Outcome.SUCCEEDED)
            with contextlib.suppress(threading.BrokenBarrierError):
                ended.wait(0.5)  # times out if the second waits for the first one's commit

    in_threads(*[functools.partial(end, watch) for watch in watches])
    closed(operation)
