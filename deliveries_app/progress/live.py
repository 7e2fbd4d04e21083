"""The numbers behind progress bars: live counters in Redis, or the rows if Redis lost the counters."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, DateTimeField, F, Min, Q, Sum, Value
from django.utils import timezone

from deliveries_app.models import BulkOperation, Outcome, PendingRelease, Result, SyncRun
from docora.redis import live_counters
from docora.redis.live_counters import Movement

_COUNTS = ("files_total", "files_done", "files_failed", "bytes_total", "bytes_done")
_COUNTED_AS = {
    result.value: Outcome.with_result(result)
    for result in (Result.SUCCEEDED, Result.FAILED, Result.CANCELLED, Result.SUPERSEDED)
}
_ENDINGS = ("completed", *_COUNTED_AS)


@dataclass(frozen=True)
class Progress:
    """The state of a progress bar. `percent` is an integer, and 100 only once everything is acknowledged."""

    files_total: int
    files_done: int
    files_failed: int
    bytes_total: int
    bytes_done: int
    started_at: datetime | None
    ended_at: datetime | None
    total: int = 1
    completed: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    superseded: int = 0
    files_left: int = 0
    """Files that unfinished runs still have to send. The total also has those that ended runs have not sent."""
    unreleased: int | None = None
    """Watches of a gradual operation that are not released yet, or never were; None for all others."""
    movement: Movement | None = None
    """Recent movement. None after the end, without counters in Redis, and from `of_runs`, which does not read it."""

    @property
    def finished(self) -> bool:
        return self.ended_at is not None

    @property
    def percent(self) -> int:
        if self.files_total and not (self.finished and self.unreleased):
            share = min(1.0, self.files_done / self.files_total)
        else:
            share = self.succeeded / self.total if self.total else 1.0
        whole = int(100 * share)
        return whole if self.finished and self.succeeded == self.total else min(99, whole)

    @property
    def tens(self) -> int:
        """The percentage in steps of ten, so screen readers announce only those."""
        return self.percent // 10 * 10

    def as_dict(self) -> dict[str, int]:
        """Return the numbers for scripts: the admin JSON and the commands."""
        names = ("total", *_ENDINGS, *_COUNTS, "percent", "finished")
        gradual = {} if self.unreleased is None else {"unreleased": self.unreleased}
        return {name: getattr(self, name) for name in names} | gradual


def run_counts(run: SyncRun) -> dict[str, int]:
    return {name: getattr(run, name) for name in _COUNTS}


def _endings(run: SyncRun) -> dict[str, int]:
    """Return for each of `_ENDINGS` whether it applies to the run, as 0 or 1."""
    ended_as = {name: int(run.outcome in outcomes) for name, outcomes in _COUNTED_AS.items()}
    return {"completed": int(run.outcome != "")} | ended_as


def of_run(run: SyncRun) -> Progress:
    """Return the progress of a run, with its movement."""
    counts, movement = (None, None) if run.ended_at else live_counters.read_moving(run.run_id)
    return _run_progress(run, counts, movement)


def of_runs(runs: Iterable[SyncRun]) -> dict[int, Progress]:
    """Return the progress of each run, by primary key, without movement."""
    runs = list(runs)
    live = dict(zip(runs, live_counters.read([run.run_id for run in runs]), strict=True))
    return {run.pk: _run_progress(run, live[run]) for run in runs}


def _run_progress(run: SyncRun, live: dict[str, int] | None, movement: Movement | None = None) -> Progress:
    counts = run_counts(run)
    # The row is newer if Redis was down, or rejected writes, when the last attempt ended.
    if live and not run.ended_at and live.get("files_done", 0) > counts["files_done"]:
        counts |= live
    counts = _clamped({name: counts[name] for name in _COUNTS})
    return Progress(
        **counts,
        files_left=_files_left(run, counts),
        started_at=run.started_at,
        ended_at=run.ended_at,
        **_endings(run),
        movement=movement,
    )


def _files_left(run: SyncRun, counts: Mapping[str, int]) -> int:
    return 0 if run.outcome else max(0, counts["files_total"] - counts["files_done"])


def of_ended_operations(operations: Sequence[BulkOperation]) -> dict[int, Progress]:
    """Return the progress of these ended operations, by primary key. One query."""
    counts = _counted(operations)
    return {operation.pk: _progress(operation, counts[operation.pk]) for operation in operations}


def of_operation(operation: BulkOperation) -> Progress:
    """Return the progress of a bulk operation: from its counters while it is open, else from the rows.

    This never sets the counters. The operation may have ended since the caller read its row, and counters that are
    set after the end would never be removed. Those of a gradual operation only measure its rate, because a release writes
    rows and no counters.
    """
    if operation.ended_at:
        return of_ended_operations([operation])[operation.pk]
    counts, movement = live_counters.read_moving(operation.operation_id)
    if counts is None or operation.is_gradual:
        counts = _counted([operation])[operation.pk]
        if not operation.is_gradual:
            # Another process may have set the counters since, from slightly older rows. If this poll showed the newer rows,
            # the next one, which shows those counters, would move the bar back.
            counts = live_counters.read([operation.operation_id])[0] or counts
    return _progress(operation, counts, movement)


def _progress(operation: BulkOperation, counts: Mapping[str, int], movement: Movement | None = None) -> Progress:
    started = counts.get("started", 0)
    unreleased = None
    if operation.is_gradual:
        unreleased = (
            max(0, operation.total - counts.get("completed", 0)) if operation.ended_at else counts["unreleased"]
        )
    return Progress(
        **_clamped({name: counts.get(name, 0) for name in _COUNTS}),
        **{name: min(counts.get(name, 0), operation.total) for name in _ENDINGS},
        files_left=max(0, counts.get("files_left", 0)),
        started_at=datetime.fromtimestamp(started / 1000, tz=timezone.get_current_timezone()) if started else None,
        ended_at=operation.ended_at,
        total=operation.total,
        unreleased=unreleased,
        movement=movement,
    )


def show_in_operation(run: SyncRun, operation: BulkOperation) -> None:
    """Update the operation's counters from this run's row. Call after the commit.

    A superseded run has ended even if its worker still sends files: its share of the operation no longer changes.
    """
    part = _part(run)
    if not live_counters.put(operation.operation_id, str(run.pk), part):
        seed_operation(operation)
        # Another worker may have seeded them from rows read before this run was committed.
        live_counters.put(operation.operation_id, str(run.pk), part)


def _part(run: SyncRun) -> dict[str, int]:
    """Return a run's share of its operation's numbers."""
    counts = run_counts(run)
    left = _files_left(run, counts)
    return {**counts, **_endings(run), "files_left": left, "started": _milliseconds(run.started_at)}


def seed_operation(operation: BulkOperation) -> None:
    """Set an open operation's counters from the rows if Redis has none. Call only where the rows are written.

    The operation may end at the same time. Its end removes the counters after its commit. If they are set here after that,
    the end is already visible, and they are removed here.
    """
    parts = {str(run.pk): _part(run) for run in operation.runs.only("outcome", "started_at", *_COUNTS)}
    counts = {name: sum(part[name] for part in parts.values()) for name in (*_COUNTS, *_ENDINGS, "files_left")}
    counts["started"] = min((part["started"] for part in parts.values() if part["started"]), default=0)
    live_counters.seed(operation.operation_id, counts, parts)
    if not BulkOperation.objects.filter(pk=operation.pk, ended_at=None).exists():
        live_counters.finish(operation.operation_id)


_SUMS: dict[str, Any] = {
    **{f"sum_{name}": Sum(name) for name in _COUNTS},  # prefixed, because the columns have these names
    "files_left": Sum(F("files_total") - F("files_done"), filter=Q(outcome=""), default=0),
    "started": Min("started_at"),
    "completed": Count("pk", filter=~Q(outcome="")),
    **{name: Count("pk", filter=Q(outcome__in=outcomes)) for name, outcomes in _COUNTED_AS.items()},
}

_OF_UNRELEASED: dict[str, Any] = {  # their files are estimates
    "sum_files_total": Sum("files"),
    "sum_bytes_total": Sum("size"),
    "files_left": Sum("files"),
    "started": Value(None, DateTimeField()),
}


def _counted(operations: Sequence[BulkOperation]) -> dict[int, Counter[str]]:
    counts = {operation.pk: Counter[str]() for operation in operations}
    for row in aggregate(operations, _SUMS):
        row["started"] = _milliseconds(row["started"])
        counts[row.pop("operation")].update({name.removeprefix("sum_"): value for name, value in row.items()})
    return counts


def aggregate(operations: Sequence[BulkOperation], of_runs: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Aggregate the runs of operations, and their unreleased watches, in one statement.

    Return up to two rows for each operation, with its primary key as `operation`, the aggregates by name, and the number of
    `unreleased` watches. What `_OF_UNRELEASED` lacks is 0 for these. In two statements, a release between them would be counted
    twice or not at all, and a bar would go back.
    """
    pks = [operation.pk for operation in operations]
    runs: Any = SyncRun.objects.filter(operation__in=pks).order_by().values("operation")
    unreleased = PendingRelease.objects.filter(operation__in=pks).order_by().values("operation")
    counted = {name: _OF_UNRELEASED.get(name, Value(0)) for name in of_runs} | {"unreleased": Count("pk")}
    rows: Iterable[dict[str, Any]]
    rows = runs.annotate(**of_runs, unreleased=Value(0)).union(unreleased.annotate(**counted), all=True).order_by()
    return rows


def _milliseconds(moment: datetime | None) -> int:
    return int(moment.timestamp() * 1000) if moment else 0


def _clamped(counts: dict[str, int]) -> dict[str, int]:
    """Clamp counts to their totals: counters that Redis lost during the run may be wrong."""
    counts = {name: max(0, count) for name, count in counts.items()}
    return counts | {
        f"{what}_done": min(counts[f"{what}_done"], counts[f"{what}_total"]) for what in ("files", "bytes")
    }
