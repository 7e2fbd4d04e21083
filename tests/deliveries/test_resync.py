"""Force a re-sync (`engine.md` §3): in any state, every file is sent again and nothing is lost."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Delivery, Outcome, Status, SyncRun
from deliveries_app.receiver import Answer
from deliveries_app.services import cancel_request, resync_single, unwatch_repository
from docora.redis import queues
from repositories_app.mirror.mirror import Mirror
from tests.support.histories import assert_promise_kept, at_notification, in_doubt, kill_worker, refusing, shas
from tests.support.world import World

FILES = {f"{n}.txt": b"%d" % n for n in range(8)}
BATCH = 2


@pytest.fixture
def world(world: World, settings) -> World:
    """Small batches and one file at a time, so that progress is deterministic."""
    settings.RECORD_BATCH, world.app.max_in_flight = BATCH, 1
    world.app.save()
    return world


def resync(watch: AppRepository) -> SyncRun:
    return resync_single(Actor.command(), watch)


def cancel(watch: AppRepository) -> int:
    return cancel_request(Actor.command(), watch)


def numbers(watch: AppRepository) -> tuple[int, int]:
    watch.refresh_from_db()
    return watch.generation, watch.resend_floor


# --- In any status -------------------------------------------------------------------------------------------------------


def test_resync_of_an_idle_watch_sends_every_file(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    run = resync(watch)
    assert numbers(watch) == (2, 2)
    assert watch.status == Status.PENDING
    world.settle()
    assert world.sent_in(run) == dict.fromkeys(FILES, 1)
    assert {(record.kind, record.reason) for record in world.requests() if record.run_id == run.run_id} == {
        ("create", "resync")
    }
    assert_promise_kept(world, repo, watch)
    assert world.outcomes(watch) == [("initial", "succeeded"), ("resync", "succeeded")]


def test_resync_of_a_queued_watch_keeps_its_job(world: World) -> None:
    repo, watch = world.watch(FILES)
    assert len(queues.job_ids("high")) == 1
    resync_single(Actor.command(), watch)
    assert len(queues.job_ids("high")) == 1
    world.settle()
    assert Counter(record.path for record in world.requests()) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)
    assert world.outcomes(watch) == [("initial", "superseded"), ("resync", "succeeded")]


@pytest.mark.parametrize("number", [1, 4, 8], ids=["at its first file", "halfway", "at its last file"])
def test_resync_during_a_run_supersedes_the_worker(world: World, number: int) -> None:
    """Otherwise the files already sent would wait for a later rescan while the status is synced."""
    repo, watch = world.watch(FILES)
    runs: list[SyncRun] = []
    world.answer(at_notification(number, lambda: runs.append(resync(watch))))
    watch = world.sync(watch)
    assert len(world.requests()) <= number + BATCH  # it notices at its next batch at the latest
    assert watch.status == Status.PENDING
    assert watch.lease_until is None  # the next worker can start
    assert Delivery.objects.filter(watch=watch, acknowledged=True).count() < number  # it records nothing more
    world.settle()
    assert world.sent_in(runs[0]) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)
    assert world.outcomes(watch) == [("initial", "superseded"), ("resync", "succeeded")]


def test_resync_just_before_the_end_of_a_run(world: World, monkeypatch) -> None:
    repo, watch = world.watch(FILES)
    runs: list[SyncRun] = []
    keep_base = Mirror.keep_base

    def keep_base_and_resync(*arguments) -> None:
        keep_base(*arguments)
        if not runs:
            runs.append(resync(watch))

    monkeypatch.setattr(Mirror, "keep_base", keep_base_and_resync)
    world.settle()
    assert world.sent_in(runs[0]) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_resync_during_the_git_fetch(world: World) -> None:
    repo, watch = world.watch(FILES)
    runs: list[SyncRun] = []

    def resync_once(method: str, target: str) -> None:
        if not runs:
            runs.append(resync(watch))
            connection.close()

    world.git.server.on_request = resync_once
    world.settle()
    assert world.sent_in(runs[0]) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_resync_of_a_retrying_watch_keeps_its_error_until_it_succeeds(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.answer(refusing("3.txt"))
    world.sync(watch)
    watch = world.sync(watch)
    assert (watch.retry_count, watch.status) == (2, Status.PENDING)
    error = watch.last_error
    assert error
    run = resync(watch)
    watch.refresh_from_db()
    assert (watch.retry_count, watch.last_error) == (0, error)
    world.answer(None)
    world.settle()
    watch.refresh_from_db()
    assert (watch.last_error, watch.last_error_cause) == ("", "")
    assert world.sent_in(run) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_resync_of_a_failed_watch_grants_all_attempts(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 2
    repo, watch = world.watch(FILES)
    world.answer(refusing("3.txt"))
    world.sync(watch)
    assert world.sync(watch).status == Status.FAILED
    run = resync(watch)
    watch = world.sync(watch)
    assert (watch.status, watch.retry_count) == (Status.PENDING, 1)
    world.answer(None)
    world.settle()
    assert world.sent_in(run) == {path: 2 if path == "3.txt" else 1 for path in FILES}
    assert_promise_kept(world, repo, watch)


def test_resync_probes_an_open_circuit(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    rows = type(watch.repository).objects.filter(pk=watch.repository_id)
    rows.update(consecutive_failures=5, circuit_open_until=timezone.now() + timedelta(hours=1))
    run = resync(watch)
    world.sync(watch)
    assert world.sent_in(run) == dict.fromkeys(FILES, 1)
    assert rows.values_list("consecutive_failures", "circuit_open_until").get() == (0, None)
    assert_promise_kept(world, repo, watch)


def test_resync_after_the_worker_was_killed(world: World) -> None:
    repo, watch = world.watch(FILES)
    kill_worker(world, watch, lambda note: note.path == "4.txt")
    run = resync(watch)
    world.settle()
    assert world.sent_in(run) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_second_resync_supersedes_the_first(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    first, second = resync(watch), resync(watch)
    world.settle()
    assert not world.sent_in(first)
    assert world.sent_in(second) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)
    assert [outcome for _, outcome in world.outcomes(watch)] == ["succeeded", "superseded", "succeeded"]


def test_second_resync_during_the_first_starts_over(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    resync(watch)
    runs: list[SyncRun] = []
    world.answer(at_notification(3, lambda: runs.append(resync(watch))))
    world.settle()
    assert world.sent_in(runs[0]) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


# --- Files deleted upstream ----------------------------------------------------------------------------------------------


def test_resync_deletes_files_that_were_deleted_upstream(world: World) -> None:
    """The old rows stay, below the floor, because only they show what the client may hold."""
    repo, watch = world.watch(FILES)
    world.sync(watch)
    repo.commit({"1.txt": None, "2.txt": None, "new.txt": b"new"})
    run = resync(watch)
    world.settle()
    assert sorted(record.path for record in world.requests("delete")) == ["1.txt", "2.txt"]
    assert world.sent_in(run) == dict.fromkeys([*FILES, "new.txt"], 1)
    assert_promise_kept(world, repo, watch)


def test_file_deleted_upstream_during_a_resync(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    resync(watch)
    world.answer(at_notification(3, lambda: (repo.commit({"0.txt": None, "7.txt": None}), resync(watch))))
    world.settle()
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize("status", [404, 410])
def test_404_and_410_acknowledge_deletes_of_a_resync(world: World, status: int) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    repo.commit({"1.txt": None})
    resync(watch)
    world.answer(lambda note: Answer(status, process=True) if note.kind == "delete" else None)
    watch = world.sync(watch)
    assert_promise_kept(world, repo, watch)


# --- Cancelling ----------------------------------------------------------------------------------------------------------


def test_cancel_before_the_first_file(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    sent_before = len(world.requests())
    resync(watch)
    assert cancel(watch) == 1
    assert numbers(watch) == (3, 1)
    world.settle()
    assert len(world.requests()) == sent_before
    assert_promise_kept(world, repo, watch)
    assert world.outcomes(watch) == [("initial", "succeeded"), ("resync", "cancelled")]
    assert cancel(watch) == 0


@pytest.mark.parametrize("number", [1, 5], ids=["its first file", "its fifth file"])
def test_cancel_during_the_run_keeps_what_was_sent(world: World, number: int) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    run = resync(watch)
    world.answer(at_notification(number, lambda: cancel(watch)))
    world.settle()
    sent_before = sum(world.sent_in(run).values())
    assert number <= sent_before <= number + BATCH
    # Only files in doubt when the worker was superseded are sent again.
    assert sent_before < len(world.requests()) - len(FILES) <= sent_before + BATCH + 1
    assert_promise_kept(world, repo, watch)
    assert numbers(watch) == (3, 1)
    assert [run.outcome for run in world.runs(watch) if run.reason == "resync"] == [Outcome.CANCELLED]


def test_change_pushed_before_the_cancel_is_delivered(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    resync(watch)
    repo.commit({"0.txt": None, "1.txt": b"changed"})
    cancel(watch)
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert len(world.requests()) == len(FILES) + 2


def test_cancel_the_second_of_two_keeps_the_first_floor(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    first, second = resync(watch), resync(watch)
    assert cancel(watch) == 1
    assert numbers(watch) == (4, 2)
    world.settle()
    assert not world.sent_in(second)
    assert world.sent_in(first) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)
    assert [outcome for _, outcome in world.outcomes(watch)] == ["succeeded", "succeeded", "cancelled"]


def test_cancel_the_second_while_the_first_is_halfway(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    first = resync(watch)
    world.answer(at_notification(5, lambda: resync(watch)))
    world.sync(watch)
    cancel(watch)
    world.settle()
    assert set(world.sent_in(first)) == set(FILES)  # it keeps what it had recorded and sends the other files
    assert sum(world.sent_in(first).values()) < 2 * len(FILES)
    assert_promise_kept(world, repo, watch)


def test_cancel_both_leaves_nothing_to_send(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    resync(watch)
    resync(watch)
    assert (cancel(watch), cancel(watch)) == (1, 1)
    assert numbers(watch) == (5, 1)
    world.settle()
    assert len(world.requests()) == len(FILES)
    assert_promise_kept(world, repo, watch)


def test_cancelled_resync_records_nothing_for_the_next(world: World) -> None:
    """Reusing the generation would make the two requests look the same to the worker."""
    repo, watch = world.watch(FILES)
    world.sync(watch)
    resync(watch)
    runs: list[SyncRun] = []
    world.answer(at_notification(5, lambda: (cancel(watch), runs.append(resync(watch)))))
    world.sync(watch)
    assert not Delivery.objects.filter(watch=watch, generation__gte=runs[0].generation).exists()
    world.settle()
    assert world.sent_in(runs[0]) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_generation_is_never_reused(world: World) -> None:
    _, watch = world.watch(FILES)
    seen = [numbers(watch)[0]]
    for act in (
        resync,
        cancel,
        resync,
        resync,
        cancel,
        cancel,
        resync,
        lambda watch: unwatch_repository(Actor.command(), watch),
    ):
        act(watch)
        seen.append(numbers(watch)[0])
    assert seen == sorted(set(seen))


# --- Cost ----------------------------------------------------------------------------------------------------------------


def queries_of(action: Callable[[], object]) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        action()
    return [query["sql"] for query in captured.captured_queries]


def test_resync_updates_one_row_for_any_number_of_files(world: World) -> None:
    _, watch = world.watch({})
    one = queries_of(lambda: resync(watch))
    Delivery.objects.bulk_create(
        Delivery(watch=watch, path=f"{n}", mode="100644", kind="create", source_key="A", sha="a" * 64, size=1, sequence=n,
                 generation=2, acknowledged=True, acknowledged_sha="a" * 64, updated_at=timezone.now())
        for n in range(1000)
    )  # fmt: skip
    many = queries_of(lambda: resync(watch))
    assert len(many) == len(one)
    updates = [sql for sql in many if sql.startswith("UPDATE") and "resend_floor" in sql]
    assert len(updates) == 1
    assert not [sql for sql in many if 'deliveries_app_delivery"' in sql]
    # The old rows still show what the client may hold.
    assert Delivery.objects.filter(watch=watch, acknowledged=True).count() == 1000


def test_rows_below_the_floor_or_in_doubt_do_not_count_as_delivered(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    resync(watch)
    world.answer(refusing("0.txt"))
    watch = world.sync(watch)
    assert in_doubt(watch) == {"0.txt"}
    assert watch.status == Status.PENDING
    assert not Delivery.objects.filter(watch=watch, generation__lt=watch.resend_floor).exists()
    world.answer(None)
    world.settle()
    assert world.copy(watch) == shas(FILES)
    assert_promise_kept(world, repo, watch)
