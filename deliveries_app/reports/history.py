"""History queries that stay cheap with a million runs.

Indexes cover the watch, the operation, open runs and the time. Other filters (outcome, part of a name) search only the
newest `WINDOW` rows of the period. Names are matched against watches first, a small table whose keys lead
to runs by index.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Exists, Model, OuterRef, Q, QuerySet, Sum
from django.utils import timezone

from deliveries_app.models import (
    AppRepository,
    BulkOperation,
    Outcome,
    PendingRelease,
    Result,
    SyncRun,
    is_in_progress,
    is_superseded,
)
from deliveries_app.progress import live
from docora.text import format_counts

WINDOW = 20_000
MAX_WATCHES = 500  # above this, search the newest rows instead of using the index
_MAX_UNLINKED = 500
_PAGE = 1000


@dataclass(frozen=True)
class Search:
    """A search condition; `in_window` if indexes do not cover it."""

    condition: Q
    in_window: bool = False


def containing(text: str, *columns: str) -> Q:
    """Match rows that have this text in any of the columns, ignoring case."""
    return Q(*((f"{column}__icontains", text) for column in columns), _connector=Q.OR)


def window_start[M: Model](rows: QuerySet[M], until: datetime | None) -> datetime | None:
    """Return the start of the window that ends at `until` (None: now), or None if the window holds every row."""
    before = rows.filter(created_at__lt=until) if until else rows
    first = before.order_by("-created_at", "-pk").values_list("created_at", flat=True)[WINDOW - 1 : WINDOW]
    return next(iter(first), None)


def search_runs(term: str) -> Search:
    """Search by run id, operation id, or part of an app or repository name."""
    if term.startswith("run_"):
        return Search(Q(run_id=term))
    if term.startswith("bulk_"):
        return Search(Q(operation__operation_id=term))
    named = containing(term, "app_name", "repository_name")
    owner, slash, name = term.rpartition("/")  # an owner may contain slashes
    of_watch = containing(term, "app__name", "repository__owner", "repository__name")
    if slash:
        of_watch |= Q(repository__owner__iendswith=owner, repository__name__istartswith=name)
    with_name = AppRepository.objects.filter(of_watch).order_by()
    watches = list(with_name.values_list("pk", flat=True)[: MAX_WATCHES + 1])
    if len(watches) > MAX_WATCHES:
        return Search(named, in_window=True)
    # Runs of removed watches keep only the names. Pass primary keys instead of the condition: the database combines
    # two indexes for an OR only if both sides are known to be small.
    unlinked = SyncRun.objects.filter(named, watch=None)
    if since := window_start(SyncRun.objects.all(), None):
        unlinked = unlinked.filter(created_at__gte=since)
    found = list(unlinked.order_by("-created_at", "-pk").values_list("pk", flat=True)[:_MAX_UNLINKED])
    return Search(Q(watch__in=watches) | Q(pk__in=found))


def search_operations(term: str) -> Search:
    """Search by operation id, or part of its title or requester."""
    if term.startswith("bulk_"):
        return Search(Q(operation_id=term))
    return Search(containing(term, "title", "requested_by"), in_window=True)


def operations_for(apps: Sequence[int]) -> Q:
    """Match operations for these apps, or for several apps including them.

    The inner query runs once, here, because lists use the condition twice.
    """
    runs = SyncRun.objects.filter(watch__app__in=apps, operation__isnull=False)
    unreleased = PendingRelease.objects.filter(watch__app__in=apps)
    found = (
        runs.order_by().values_list("operation_id").union(unreleased.order_by().values_list("operation_id")).order_by()
    )
    return Q(app__in=apps) | Q(pk__in=[pk for (pk,) in found])


def pages[M: Model](rows: QuerySet[M]) -> Iterator[list[M]]:
    """Yield all rows in pages, newest first, by keyset pagination."""
    rows, after = rows.order_by("-created_at", "-pk"), None
    while True:
        remaining: Any = rows
        if after is not None:
            remaining = rows.filter(created_at__lte=after.created_at).exclude(
                created_at=after.created_at, pk__gte=after.pk
            )
        page: list[Any] = list(remaining[:_PAGE])
        if not page:
            return
        yield page
        after = page[-1]


def seconds(row: SyncRun | BulkOperation) -> float | None:
    """Return the duration so far: of a run since its first attempt, of an operation since its request."""
    started_at = row.started_at if isinstance(row, SyncRun) else row.created_at
    return ((row.ended_at or timezone.now()) - started_at).total_seconds() if started_at else None


_CANCELLED = Q(outcome__in=Outcome.with_result(Result.CANCELLED))
PARTS: dict[str, tuple[str, Q]] = {
    "full": ("succeeded", Q(outcome=Outcome.SUCCEEDED)),
    "failed": ("failed", Q(outcome__in=Outcome.with_result(Result.FAILED))),
    "part": ("cancelled partway", _CANCELLED & Q(started_at__isnull=False)),
    "untouched": ("cancelled before the start", _CANCELLED & Q(started_at=None)),
    "superseded": ("superseded", Q(outcome=Outcome.SUPERSEDED) | is_superseded()),
    "open": ("in progress", is_in_progress()),
}
"""Outcomes of an operation's runs: name in URLs → label and condition. They are disjoint."""


def _has_run(*parts: str) -> Q:
    """Match operations with a run in one of these `PARTS`."""
    condition = Q(*(PARTS[part][1] for part in parts), _connector=Q.OR)
    return Q(Exists(SyncRun.objects.filter(condition, operation=OuterRef("pk"))))


_RUNNING = Q(ended_at=None, held_at=None)
_ENDED = Q(ended_at__isnull=False)
_WAS_CANCELLED = Q(cancelled_at__isnull=False)
_NOTHING_IN_PROGRESS = ~_has_run("open") & ~Q(Exists(PendingRelease.objects.filter(operation=OuterRef("pk"))))
_HAS_RESULT = _has_run("full", "failed")
_HAS_SUPERSEDED = _has_run("superseded")
OPERATIONS: dict[str, tuple[str, Q]] = {
    "running": ("In progress", _RUNNING & ~(_NOTHING_IN_PROGRESS & _HAS_SUPERSEDED)),
    "held": ("Held", Q(ended_at=None, held_at__isnull=False)),
    "finished": ("Succeeded or failed", _ENDED & ~_WAS_CANCELLED & _HAS_RESULT),
    "cancelled": ("Cancelled", _ENDED & (_WAS_CANCELLED | ~_HAS_RESULT & ~_HAS_SUPERSEDED)),
    "superseded": (
        "Superseded",
        _HAS_SUPERSEDED & (_RUNNING & _NOTHING_IN_PROGRESS | _ENDED & ~_WAS_CANCELLED & ~_HAS_RESULT),
    ),
}
"""Operations by their result, as `Outcomes.result_of` returns it: name in URLs → label and condition. They are disjoint."""


_SUMMED = ("files_done", "files_total", "bytes_done", "bytes_total")
_OF_RUNS: dict[str, Any] = {
    **{name: Count("pk", filter=part) for name, (_, part) in PARTS.items()},
    **{f"sum_{name}": Sum(name) for name in _SUMMED},
}


@dataclass(frozen=True)
class Outcomes:
    """Counts of an operation's runs by `PARTS` and of its unreleased watches, and totals of what was sent."""

    counts: Mapping[str, int]
    unreleased: int
    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int

    def result_of(self, operation: BulkOperation) -> Result:
        """Return how the operation ended. An open one is superseded if a later request is in progress in its place."""
        result = operation.result_of(
            succeeded=self.counts["full"], failed=self.counts["failed"], superseded=self.counts["superseded"]
        )
        is_waiting = result == Result.RUNNING and not self.counts["open"] and not self.unreleased
        return Result.SUPERSEDED if is_waiting and self.counts["superseded"] else result

    @property
    def summary(self) -> str:
        """`11 succeeded, 1 failed`."""
        counts = {label: self.counts[name] for name, (label, _) in PARTS.items()} | {"not released": self.unreleased}
        return format_counts(counts)


def outcomes(operations: Iterable[BulkOperation]) -> dict[int, Outcomes]:
    """Return the outcomes of each operation, by primary key, in one query."""
    operations = list(operations)
    found = {operation.pk: Counter[str]() for operation in operations}
    for row in live.aggregate(operations, _OF_RUNS):
        found[row.pop("operation")].update(row)
    result = {}
    for operation in operations:
        row = found[operation.pk]
        counts = {name: row[name] for name in PARTS}
        # Of an open operation, the number of rows: `total` also includes watches that were unwatched before their release.
        unreleased = row["unreleased"]
        if operation.ended_at and operation.is_gradual:
            unreleased = max(0, operation.total - sum(counts.values()))
        result[operation.pk] = Outcomes(counts, unreleased, **{name: row[f"sum_{name}"] for name in _SUMMED})
    return result
