"""Force re-sync (engine.md §3): whatever the watch is doing, everything is sent again, and nothing is ever lost."""

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
    """Small batches and one file at a time, so that "halfway" is a certain place."""
    settings.RECORD_BATCH, world.app.max_in_flight = BATCH, 1
    world.app.save()
    return world


def resync(watch: AppRepository) -> SyncRun:
    return resync_single(Actor.command(), watch).run


def cancel(watch: AppRepository) -> int:
    return cancel_request(Actor.command(), watch)


def sent_in(world: World, run: SyncRun) -> Counter[str]:
    """How often each path was sent by this run."""
    return Counter(record.path for record in world.requests() if record.run_id == run.run_id)


def outcomes(world: World, watch: AppRepository) -> list[tuple[str, str]]:
    """Reason and outcome of each run, the oldest first."""
    return [(run.reason, run.outcome) for run in SyncRun.objects.filter(watch=watch).order_by("pk")]


def numbers(watch: AppRepository) -> tuple[int, int]:
    watch.refresh_from_db()
    return watch.generation, watch.resend_floor


# --- In any status -------------------------------------------------------------------------------------------------------


def test_while_idle_everything_is_sent_again_as_creates_and_the_rows_count_from_the_new_floor(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    run = resync(watch)
    assert numbers(watch) == (2, 2)
    assert watch.status == Status.PENDING
    world.settle()
    assert sent_in(world, run) == dict.fromkeys(FILES, 1)
    assert {(record.kind, record.reason) for record in world.requests() if record.run_id == run.run_id} == {
        ("create", "resync")
    }
    assert_promise_kept(world, repo, watch)
    assert outcomes(world, watch) == [("initial", "succeeded"), ("resync", "succeeded")]


def test_while_queued_the_job_is_not_doubled_its_id_is_returned_and_everything_is_sent_once(world: World) -> None:
    repo, watch = world.watch(FILES)
    assert queues.waiting("high") == 1
    answer = resync_single(Actor.command(), watch)
    assert answer.job_id == f"{watch.app.app_id}-{watch.repository.repository_id}"
    assert queues.waiting("high") == 1
    world.settle()
    assert Counter(record.path for record in world.requests()) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)
    assert outcomes(world, watch) == [("initial", "superseded"), ("resync", "succeeded")]


@pytest.mark.parametrize("number", [1, 4, 8], ids=["at its first file", "halfway", "at its last file"])
def test_while_being_sent_the_worker_is_superseded_and_everything_is_sent_again(world: World, number: int) -> None:
    """Else the files that were sent already would wait for some later rescan, while the status says synced."""
    repo, watch = world.watch(FILES)
    made: list[SyncRun] = []
    world.answer(at_notification(number, lambda: made.append(resync(watch))))
    watch = world.sync(watch)
    assert len(world.requests()) <= number + BATCH  # it finds out at its next batch at the latest
    assert watch.status == Status.PENDING
    assert watch.lease_until is None  # the next worker need not wait
    assert Delivery.objects.filter(watch=watch, acknowledged=True).count() < number  # and records nothing more
    world.settle()
    assert sent_in(world, made[0]) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)
    assert outcomes(world, watch) == [("initial", "superseded"), ("resync", "succeeded")]


def test_between_the_last_file_and_the_end_of_the_run_it_is_not_lost_either(world: World, monkeypatch) -> None:
    repo, watch = world.watch(FILES)
    made: list[SyncRun] = []
    keep_base = Mirror.keep_base

    def and_press(*arguments) -> None:
        keep_base(*arguments)
        if not made:
            made.append(resync(watch))

    monkeypatch.setattr(Mirror, "keep_base", and_press)
    world.settle()
    assert sent_in(world, made[0]) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_while_git_is_asked_and_fetches_it_is_not_lost(world: World) -> None:
    repo, watch = world.watch(FILES)
    made: list[SyncRun] = []

    def press_once(method: str, target: str) -> None:
        if not made:
            made.append(resync(watch))
            connection.close()

    world.git.server.on_request = press_once
    world.settle()
    assert sent_in(world, made[0]) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_while_retrying_the_count_and_the_error_are_gone_and_everything_is_sent(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.answer(refusing("3.txt"))
    world.sync(watch)
    watch = world.sync(watch)
    assert (watch.retry_count, watch.status) == (2, Status.PENDING)
    assert watch.last_error
    run = resync(watch)
    watch.refresh_from_db()
    assert (watch.retry_count, watch.last_error, watch.last_error_cause) == (0, "", "")
    world.answer(None)
    world.settle()
    assert sent_in(world, run) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_while_failed_everything_is_sent_and_the_watch_has_all_its_attempts_again(world: World, settings) -> None:
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
    assert sent_in(world, run) == {path: 2 if path == "3.txt" else 1 for path in FILES}
    assert_promise_kept(world, repo, watch)


def test_with_the_circuit_open_it_is_the_probe_and_success_closes_the_circuit(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    rows = type(watch.repository).objects.filter(pk=watch.repository_id)
    rows.update(consecutive_failures=5, circuit_open_until=timezone.now() + timedelta(hours=1))
    run = resync(watch)
    world.sync(watch)
    assert sent_in(world, run) == dict.fromkeys(FILES, 1)
    assert rows.values_list("consecutive_failures", "circuit_open_until").get() == (0, None)
    assert_promise_kept(world, repo, watch)


def test_after_a_worker_was_killed_halfway_everything_is_sent_again(world: World) -> None:
    repo, watch = world.watch(FILES)
    kill_worker(world, watch, lambda note: note.path == "4.txt")
    run = resync(watch)
    world.settle()
    assert sent_in(world, run) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_twice_in_a_row_everything_is_sent_once_and_the_first_says_superseded(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    first, second = resync(watch), resync(watch)
    world.settle()
    assert not sent_in(world, first)
    assert sent_in(world, second) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)
    assert [outcome for _, outcome in outcomes(world, watch)] == ["succeeded", "superseded", "succeeded"]


def test_twice_while_being_sent_the_second_starts_it_over(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    resync(watch)
    made: list[SyncRun] = []
    world.answer(at_notification(3, lambda: made.append(resync(watch))))
    world.settle()
    assert sent_in(world, made[0]) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


# --- What vanished -------------------------------------------------------------------------------------------------------


def test_files_deleted_upstream_before_the_resync_are_deleted_at_the_client(world: World) -> None:
    """The old rows stay below the floor: they alone know what the client may hold."""
    repo, watch = world.watch(FILES)
    world.sync(watch)
    repo.commit({"1.txt": None, "2.txt": None, "new.txt": b"new"})
    run = resync(watch)
    world.settle()
    assert sorted(record.path for record in world.requests("delete")) == ["1.txt", "2.txt"]
    assert sent_in(world, run) == dict.fromkeys([*FILES, "new.txt"], 1)
    assert_promise_kept(world, repo, watch)


def test_a_file_that_vanishes_while_a_resync_is_halfway_is_deleted_by_the_next_run(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    resync(watch)
    world.answer(at_notification(3, lambda: (repo.commit({"0.txt": None, "7.txt": None}), resync(watch))))
    world.settle()
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize("status", [404, 410])
def test_a_client_that_lost_everything_may_say_so_to_the_deletes_of_a_resync(world: World, status: int) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    repo.commit({"1.txt": None})
    resync(watch)
    world.answer(lambda note: Answer(status, process=True) if note.kind == "delete" else None)
    watch = world.sync(watch)
    assert_promise_kept(world, repo, watch)


# --- Taking it back ------------------------------------------------------------------------------------------------------


def test_cancelled_before_the_first_file_nothing_is_sent(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    told = len(world.requests())
    resync(watch)
    assert cancel(watch) == 1
    assert numbers(watch) == (3, 1)
    world.settle()
    assert len(world.requests()) == told
    assert_promise_kept(world, repo, watch)
    assert outcomes(world, watch) == [("initial", "succeeded"), ("resync", "cancelled")]
    assert cancel(watch) == 0


@pytest.mark.parametrize("number", [1, 5], ids=["its first file", "its fifth file"])
def test_cancelled_while_it_sends_what_was_sent_counts_and_the_rest_is_left_alone(world: World, number: int) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    run = resync(watch)
    world.answer(at_notification(number, lambda: cancel(watch)))
    world.settle()
    told = sum(sent_in(world, run).values())
    assert number <= told <= number + BATCH
    # What was in doubt when the worker was superseded is sent again, the other files are not.
    assert told < len(world.requests()) - len(FILES) <= told + BATCH + 1
    assert_promise_kept(world, repo, watch)
    assert numbers(watch) == (3, 1)
    assert [run.outcome for run in world.runs(watch) if run.reason == "resync"] == [Outcome.CANCELLED]


def test_a_change_pushed_before_the_cancel_is_delivered_by_the_ordinary_check(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    resync(watch)
    repo.commit({"0.txt": None, "1.txt": b"changed"})
    cancel(watch)
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert len(world.requests()) == len(FILES) + 2


def test_cancelling_the_second_of_two_keeps_the_first_ones_floor(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    first, second = resync(watch), resync(watch)
    assert cancel(watch) == 1
    assert numbers(watch) == (4, 2)
    world.settle()
    assert not sent_in(world, second)
    assert sent_in(world, first) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)
    assert [outcome for _, outcome in outcomes(world, watch)] == ["succeeded", "succeeded", "cancelled"]


def test_cancelling_the_second_while_the_first_was_halfway_finishes_the_first(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    first = resync(watch)
    world.answer(at_notification(5, lambda: resync(watch)))
    world.sync(watch)
    cancel(watch)
    world.settle()
    assert set(sent_in(world, first)) == set(FILES)  # what the first had recorded counts, all else is sent by it now
    assert sum(sent_in(world, first).values()) < 2 * len(FILES)
    assert_promise_kept(world, repo, watch)


def test_cancelling_both_leaves_nothing_to_send(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    resync(watch)
    resync(watch)
    assert (cancel(watch), cancel(watch)) == (1, 1)
    assert numbers(watch) == (5, 1)
    world.settle()
    assert len(world.requests()) == len(FILES)
    assert_promise_kept(world, repo, watch)


def test_a_worker_of_a_cancelled_request_can_record_nothing_for_the_next_one(world: World) -> None:
    """Taking the number back would make the two requests look the same to it."""
    repo, watch = world.watch(FILES)
    world.sync(watch)
    resync(watch)
    made: list[SyncRun] = []
    world.answer(at_notification(5, lambda: (cancel(watch), made.append(resync(watch)))))
    world.sync(watch)
    assert not Delivery.objects.filter(watch=watch, generation__gte=made[0].generation).exists()
    world.settle()
    assert sent_in(world, made[0]) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_a_generation_is_never_used_twice(world: World) -> None:
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


# --- Its price -----------------------------------------------------------------------------------------------------------


def queries_of(action: Callable[[], object]) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        action()
    return [query["sql"] for query in captured.captured_queries]


def test_clearing_the_records_is_one_update_of_one_row_however_many_files_were_delivered(world: World) -> None:
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
    assert Delivery.objects.filter(watch=watch, acknowledged=True).count() == 1000  # they still tell what may be held


def test_nothing_below_the_floor_or_in_doubt_counts_as_delivered(world: World) -> None:
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
