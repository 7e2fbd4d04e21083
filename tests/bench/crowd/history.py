"""The sync runs, bulk operations and hourly traffic of the last thirty days."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from random import Random
from typing import Any

from deliveries_app.models import App, BulkOperation, OperationKind, Outcome, Reason
from tests.bench.crowd.deliveries import WatchRow
from tests.bench.crowd.layout import Amounts, Role
from tests.bench.crowd.tables import FAILURES

DAYS = timedelta(days=30)
RUN_COLUMNS = (
    "run_id", "watch_id", "app_name", "repository_name", "operation_id", "reason", "requested_by", "user_id", "generation",
    "attempts", "created_at", "started_at", "ended_at", "outcome", "commit_sha", "files_total", "files_done",
    "files_failed", "files_skipped", "left_out", "bytes_total", "bytes_done", "error",
)  # fmt: skip
TRAFFIC_COLUMNS = ("app_id", "hour", "files", "bytes", "failed", "requests", "milliseconds", "acknowledged_at")
_PEOPLE = ("anna", "boris", "chiara", "command line")
_REASONS = ([Reason.CHANGE, Reason.RESYNC, Reason.RETRY, Reason.INITIAL], [92, 94, 97, 100])
_OUTCOMES = (
    [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.CANCELLED, Outcome.SUPERSEDED, Outcome.ENDED, Outcome.PAUSED],
    [945, 980, 990, 995, 998, 1000],
)
_OPEN_REASONS = {
    Role.REQUESTED: Reason.RESYNC,
    Role.SENDING: Reason.RESYNC,
    Role.RETRYING: Reason.CHANGE,
    Role.NEW: Reason.INITIAL,
}


@dataclass(frozen=True)
class Operation:
    """A bulk operation with its row and its watches. `open_` holds the watches that an open operation has not finished."""

    row: BulkOperation
    watched: list[WatchRow]
    open_: frozenset[int] = frozenset()


def make_operations(amounts: Amounts, watched: list[WatchRow], now: datetime) -> list[Operation]:
    """Create the operations, oldest first, with at most a quarter of all runs together.

    One is for all watches, one for the largest app, many for one app or a selection, and the last one is still open.
    """
    dice, left = amounts.dice("operations"), amounts.runs // 4
    settled = [one for one in watched if one.role not in _OPEN_REASONS]
    by_app: dict[int, list[WatchRow]] = {}
    for one in settled:
        by_app.setdefault(one.drawn.app, []).append(one)
    groups = [settled, by_app.get(0, [])]
    for number in range(max(8, amounts.runs // 2000)):
        some = dice.sample(settled, min(len(settled), dice.randrange(2, 200)))
        groups.append(some if number % 3 == 0 else dice.choice(list(by_app.values())))
    requested = [one for one in watched if one.role in {Role.REQUESTED, Role.SENDING}]
    chosen = []
    for group in groups:
        if group and len(group) <= left:
            chosen.append(group)
            left -= len(group)
    made = [
        Operation(_operation(dice, number, group, now - DAYS * (1 - (number + 1) / (len(chosen) + 1))), group)
        for number, group in enumerate(chosen)
    ]
    if requested and len(requested) * 2 <= left:
        group = [*settled[: len(requested)], *requested]
        row = _operation(dice, 1, group, now - timedelta(minutes=5))
        row.ended_at = None
        made.append(Operation(row, group, frozenset(one.watch.pk for one in requested)))
    BulkOperation.objects.bulk_create([operation.row for operation in made], batch_size=500)
    return made


def _operation(dice: Random, number: int, group: list[WatchRow], at: datetime) -> BulkOperation:
    """Make an operation: every fourth is a retry, and every seventh was cancelled."""
    apps = {one.watch.app for one in group}
    app = apps.pop() if len(apps) == 1 else None
    kind = OperationKind.RETRY if number % 4 == 3 else OperationKind.RESYNC
    ended, cancelled, by = at + timedelta(minutes=1 + len(group) // 50), number % 7 == 6, dice.choice(_PEOPLE)
    return BulkOperation(
        operation_id=f"bulk_{dice.getrandbits(64):016x}",
        kind=kind,
        title=f"{kind.label.capitalize()} · {app.name if app else f'{len(group):,} repositories'}",
        app=app,
        requested_by=by,
        total=len(group),
        created_at=at,
        ended_at=ended,
        cancelled_at=ended if cancelled else None,
        cancelled_by=by if cancelled else "",
    )


def runs(
    amounts: Amounts, watched: list[WatchRow], operations: list[Operation], now: datetime
) -> Iterator[tuple[Any, ...]]:
    """Yield all runs in the order of their creation: single runs, and the runs of each operation when it started."""
    dice = amounts.dice("runs")
    settled = [one for one in watched if one.role not in _OPEN_REASONS]
    in_operations = {pk for operation in operations for pk in operation.open_}
    waiting = [one for one in watched if one.role in _OPEN_REASONS and one.watch.pk not in in_operations]
    single = amounts.runs - sum(len(operation.watched) for operation in operations) - len(waiting)
    if single < 0:  # not enough runs for every open request
        waiting, single = waiting[: max(0, len(waiting) + single)], 0
    popularity = list(accumulate(1 / (rank + 1) ** 0.6 for rank in range(len(settled))))
    dice.shuffle(settled)
    due = list(reversed(operations))
    for number in range(single if settled else 0):
        at = now - DAYS * (1 - number / single)
        while due and due[-1].row.created_at <= at:
            yield from _of_operation(dice, due.pop())
        one = dice.choices(settled, cum_weights=popularity)[0]
        reason = dice.choices(_REASONS[0], cum_weights=_REASONS[1])[0]
        by = "sweep" if reason == Reason.CHANGE else dice.choice(_PEOPLE)
        yield _run(dice, one, reason, by, at, dice.choices(_OUTCOMES[0], cum_weights=_OUTCOMES[1])[0])
    while due:
        yield from _of_operation(dice, due.pop())
    for one in waiting:
        yield _run(dice, one, _OPEN_REASONS[one.role], dice.choice(_PEOPLE), now - timedelta(minutes=4), None)


def _of_operation(dice: Random, operation: Operation) -> Iterator[tuple[Any, ...]]:
    row = operation.row
    reason = Reason.RETRY if row.kind == OperationKind.RETRY else Reason.RESYNC
    for number, one in enumerate(operation.watched):
        outcome: Outcome | None = Outcome.FAILED if number % 40 == 39 else Outcome.SUCCEEDED
        if one.watch.pk in operation.open_:
            outcome = None
        elif row.cancelled_at and number > len(operation.watched) // 2:
            outcome = Outcome.CANCELLED
        yield _run(dice, one, reason, row.requested_by, row.created_at, outcome, row.pk)


def _run(
    dice: Random,
    watched: WatchRow,
    reason: Reason,
    by: str,
    at: datetime,
    outcome: Outcome | None,
    operation: int | None = None,
) -> tuple[Any, ...]:
    """Make a run; without an outcome, it is open. A change sends a few files, a re-sync the whole tree."""
    watch, tree = watched.watch, watched.drawn.tree
    total = tree.files if reason in {Reason.RESYNC, Reason.INITIAL} else dice.randrange(1, 30)
    done = total if outcome == Outcome.SUCCEEDED else total // 2
    begun = outcome is not None or watched.role != Role.REQUESTED
    if not begun:
        done = 0
    failed = min(total - done, 2) if outcome == Outcome.FAILED else 0
    size = tree.size // max(1, tree.files)
    started = at + timedelta(seconds=dice.randrange(1, 20)) if begun else None
    failure = dice.choice(list(FAILURES.values())).message if outcome == Outcome.FAILED else ""
    return (
        f"run_{dice.getrandbits(96):024x}",
        watch.pk,
        watch.app.name,
        str(watch.repository),
        operation,
        reason.value,
        by,
        None,
        dice.randrange(1, watch.generation + 1) if outcome else watch.generation,
        int(begun),
        at,
        started,
        started + timedelta(seconds=1 + done // 50) if started and outcome else None,
        outcome.value if outcome else "",
        f"{dice.getrandbits(160):040x}" if begun else "",
        total,
        done,
        failed,
        0,
        {},
        total * size,
        done * size,
        failure,
    )


def traffic(amounts: Amounts, apps: list[App], now: datetime) -> Iterator[tuple[Any, ...]]:
    """Yield the traffic of each hour: always for a few apps, sometimes for the others, and more by day than by night."""
    dice = amounts.dice("traffic")
    this_hour = now.replace(minute=0, second=0, microsecond=0)
    for hours in range(24 * DAYS.days - 1, -1, -1):
        hour = this_hour - timedelta(hours=hours)
        daytime_factor = 4 if 7 <= hour.hour < 19 else 1
        for rank, app in enumerate(apps):
            if rank >= 50 and dice.random() > 0.05:
                continue
            files = dice.randrange(1, 60) * daytime_factor * (20 if rank < 5 else 1)
            failed = dice.randrange(files) if dice.random() < 0.03 else 0
            took = files * dice.randrange(8, 60 if rank % 37 else 900)
            acknowledged_at = min(now, hour + timedelta(minutes=59))
            yield (app.pk, hour, files, files * 4_000, failed, files + failed, took, acknowledged_at)
