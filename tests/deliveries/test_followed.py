"""Bars that many follow: their numbers are read together, and are never old."""

from collections.abc import Callable, Sequence

import pytest
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, SyncRun
from deliveries_app.progress import poll_cache, runs
from deliveries_app.progress.live import Progress
from deliveries_app.services import resync_many
from docora.redis import live_counters
from tests.support.staff import make_app, make_watch

BARS = 20


class Clock:
    """What `followed` takes for the time."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(poll_cache, "time", clock)
    monkeypatch.setattr(poll_cache, "_followed", {})
    return clock


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many counters each question to Redis was."""
    asked: list[int] = []
    read: Callable[[Sequence[str]], list[dict[str, int] | None]] = live_counters.read

    def counted(keys: Sequence[str]) -> list[dict[str, int] | None]:
        asked.append(len(keys))
        return read(keys)

    monkeypatch.setattr(live_counters, "read", counted)
    return asked


@pytest.fixture
def operations(db) -> list[BulkOperation]:
    app = make_app("Portal")
    watches = [make_watch(app, f"docs-{number}") for number in range(BARS)]
    return [resync_many(Actor.system(), AppRepository.objects.filter(pk=watch.pk)) for watch in watches]


def draw(operation: BulkOperation, progress: Progress) -> str:
    return f"{operation.operation_id}: {progress.files_done}"


def done(operation: BulkOperation) -> int:
    bar = poll_cache.read(operation.operation_id, draw)
    assert bar is not None
    assert bar.operation == operation
    assert bar.drawn in {None, draw(operation, bar.progress)}
    return bar.progress.files_done


def follow(operations: list[BulkOperation], clock: Clock, rounds: int, every: float = 1.0) -> None:
    """Each of them in its turn, evenly spread, and each moves by one in between."""
    for _ in range(rounds):
        for operation in operations:
            done(operation)
            live_counters.advance(operation.operation_id, files_done=1)
            clock.now += every / len(operations)


@pytest.mark.parametrize("every", [1.0, 1.06, 1.13])
def test_the_numbers_of_many_are_read_together(operations, clock: Clock, reads: list[int], every: float) -> None:
    follow(operations, clock, 1, every)
    reads.clear()
    follow(operations, clock, 10, every)
    assert len(reads) <= 40  # and not 200
    assert sum(reads) <= 10 * BARS + BARS  # and hardly any in vain


@pytest.fixture
def brought(operations, clock: Clock) -> BulkOperation:
    """One whose numbers have just been read with those of another."""
    follow(operations, clock, 3)
    done(operations[0])
    assert poll_cache._followed[operations[1].operation_id].ahead
    return operations[1]


def test_no_bar_is_older_than_half_a_second(brought: BulkOperation, clock: Clock) -> None:
    live_counters.advance(brought.operation_id, files_done=10)
    clock.now += 0.5
    assert done(brought) == 13


def test_what_was_read_ahead_is_used_once(brought: BulkOperation, reads: list[int]) -> None:
    live_counters.advance(brought.operation_id, files_done=10)
    assert done(brought) == 3
    assert reads == []
    assert done(brought) == 13


def test_what_ended_meanwhile_is_told_as_ended(operations, brought: BulkOperation, clock: Clock) -> None:
    now = timezone.now()
    SyncRun.objects.update(outcome="succeeded", ended_at=now, started_at=now, files_done=100)
    runs.close_operations([operation.pk for operation in operations])
    clock.now += 0.5
    for operation in operations:
        bar = poll_cache.read(operation.operation_id, draw)
        assert bar is not None
        assert bar.progress.finished


def test_what_nobody_follows_any_more_is_forgotten(operations, clock: Clock) -> None:
    follow(operations, clock, 1)
    clock.now += 120
    follow(operations[:1], clock, 2)
    assert list(poll_cache._followed) == [operations[0].operation_id]
