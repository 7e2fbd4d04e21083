"""Gradual operations with real processes: kills at every change, concurrent actions, and workers with a sweep."""

import os
import signal
import threading
from collections.abc import Callable

import pytest
from django.db import connection, transaction

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, CanaryState, Outcome, SyncRun
from deliveries_app.progress import runs
from deliveries_app.services import Rollout, cancel_operation, continue_operation, resync_many, unwatch_repository
from deliveries_app.services.rollout import release_due
from tests.support.histories import assert_promise_kept
from tests.support.processes import Daemons, forked, in_threads, reap
from tests.support.receiver import wait_for
from tests.support.staff import make_app, make_watch
from tests.support.world import World

COMMAND = Actor.command()
CANARY = Rollout(canary=True)


def start(canary: Outcome) -> BulkOperation:
    """Start an operation of four repositories whose canary has ended with this outcome. Nothing else is released yet."""
    app = make_app(f"App {BulkOperation.objects.count()}")
    watches = [make_watch(app, f"{app.name}-{number}") for number in range(4)]
    operation = resync_many(COMMAND, AppRepository.objects.filter(app=app), rollout=CANARY)
    runs.end_runs(watches[0].pk, 2, canary, "It failed.")
    return operation


def check(operation: BulkOperation) -> None:
    """Assert that each repository either has a run and its generation, or is untouched and not released."""
    released = set(operation.runs.values_list("watch", flat=True))
    unreleased = set(operation.pending.values_list("watch", flat=True))
    assert not released & unreleased
    assert operation.runs.count() == len(released)
    assert set(AppRepository.objects.filter(pk__in=released).values_list("generation", flat=True)) <= {2, 3}
    assert set(AppRepository.objects.filter(pk__in=unreleased).values_list("generation", flat=True)) <= {1}
    operation.refresh_from_db()
    is_open = bool(unreleased) or operation.runs.filter(outcome="").exists()
    assert (operation.ended_at is None) == is_open


def killed_at(change: int, act: Callable[[], object]) -> bool:
    """Call `act` in a process that dies right before or after its change number `change`. Return False if it makes fewer.

    Dying between two queries is the same as dying before the second.
    """
    left = iter(range(change))
    is_change = False

    def count(execute: Callable[..., object], sql: str, *arguments: object) -> object:
        nonlocal is_change
        was_change, is_change = is_change, not sql.startswith("SELECT")
        if (was_change or is_change) and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return execute(sql, *arguments)

    def work() -> None:
        with connection.execute_wrapper(count):
            act()

    return os.WIFSIGNALED(reap(forked(work)))


def finish(operation: BulkOperation) -> None:
    for _ in range(3):
        release_due()
        for run in operation.runs.filter(outcome=""):
            runs.end_runs(run.watch_id or 0, run.generation, Outcome.SUCCEEDED)
    operation.refresh_from_db()


def test_sweep_killed_at_any_change_of_a_release(transactional_db: None) -> None:
    change = 0
    while True:
        operation = start(Outcome.SUCCEEDED)
        if not killed_at(change, release_due):
            break
        check(operation)
        assert operation.runs.count() in {1, 4}
        finish(operation)
        assert (operation.ended_at is None, operation.runs.filter(outcome=Outcome.SUCCEEDED).count()) == (False, 4)
        change += 1
    assert change > 6


@pytest.mark.parametrize("act", [cancel_operation, continue_operation])
def test_process_killed_at_any_change_of_a_cancel_or_continue(
    transactional_db: None, act: Callable[[Actor, BulkOperation], int]
) -> None:
    change = 0
    while True:
        operation = start(Outcome.FAILED)
        release_due()
        operation.refresh_from_db()
        assert operation.is_held
        if not killed_at(change, lambda operation=operation: act(COMMAND, operation)):  # type: ignore[misc]
            break
        check(operation)
        operation.refresh_from_db()
        assert operation.is_held or operation.ended_at or operation.canaries.get().state == CanaryState.CONTINUED
        cancel_operation(COMMAND, operation)
        check(operation)
        change += 1
    assert change > 5


@pytest.mark.parametrize("other", ["cancel", "unwatch", "sweep"])
def test_concurrent_action_while_a_sweep_releases(transactional_db: None, other: str) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite lets only one transaction write")
    operation = start(Outcome.SUCCEEDED)
    last = operation.pending.order_by("position").last()
    assert last is not None
    has_released = threading.Event()

    def release() -> None:
        with transaction.atomic():
            assert release_due() == 3
            has_released.set()
            wait_for(waits_for_a_lock, 10)

    def act() -> object:
        assert has_released.wait(10)
        if other == "cancel":
            return cancel_operation(COMMAND, operation)
        return unwatch_repository(COMMAND, last.watch) if other == "unwatch" else release_due()

    _, done = in_threads(release, act)
    check(operation)
    outcomes = sorted(operation.runs.values_list("outcome", flat=True))
    assert (outcomes, done) == {
        "cancel": ([*[Outcome.CANCELLED] * 3, Outcome.SUCCEEDED], 3),
        "unwatch": (["", "", Outcome.ENDED, Outcome.SUCCEEDED], None),
        "sweep": (["", "", "", Outcome.SUCCEEDED], 0),
    }[other]


def waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])


def test_canary_with_real_workers_and_a_sweep(world: World, daemons: Daemons) -> None:
    watched = [world.watch({f"{index}.txt": b"1" for index in range(3)}, name=f"acme/{name}") for name in "abc"]
    world.settle()
    before = len(world.requests())
    daemons.sweep()
    daemons.worker()
    operation = resync_many(COMMAND, AppRepository.objects.all(), rollout=CANARY)
    wait_for(lambda: BulkOperation.objects.filter(ended_at__isnull=False).exists(), 60)
    canary, *others = SyncRun.objects.filter(operation=operation).order_by("pk")
    assert [run.outcome for run in (canary, *others)] == [Outcome.SUCCEEDED] * 3
    assert canary.ended_at
    assert all(0 <= (run.created_at - canary.ended_at).total_seconds() < 5 for run in others)
    assert {record.run_id for record in world.requests()[before : before + 3]} == {canary.run_id}
    assert len(world.requests()) == before + 9
    for repo, watch in watched:
        watch.refresh_from_db()
        assert_promise_kept(world, repo, watch)
    assert "Traceback" not in daemons.logs(), daemons.logs().partition("Traceback")[2][:3000]
