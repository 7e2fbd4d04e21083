"""Questions to the history that stay cheap when it holds a million runs.

An index carries the watch, the operation, what is open, and the time. Whatever else is asked (an outcome, a part of a name)
is looked for in a window: the newest `WINDOW` rows before the end of the period. Names are first looked for among what is
watched, which is a small table, and lead to its runs by their index.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Min, Model, Q, QuerySet, Sum
from django.utils import timezone

from deliveries_app.models import AppRepository, BulkOperation, Outcome, SyncRun

WINDOW = 20_000
MOST_PAIRS = 500  # that an index is asked for; beyond that there is enough among the newest
_MOST_FORGOTTEN = 500
_PAGE = 1000


@dataclass(frozen=True)
class Search:
    """What a search means: `condition` is true for what is found, `in_window` when it asks for more than indexes carry."""

    condition: Q
    in_window: bool = False


def edge[M: Model](rows: QuerySet[M], until: datetime | None) -> datetime | None:
    """Where the window begins that ends at `until` (None: now); None when it holds all there is."""
    before = rows.filter(created_at__lt=until) if until else rows
    first = before.order_by("-created_at", "-pk").values_list("created_at", flat=True)[WINDOW - 1 : WINDOW]
    return next(iter(first), None)


def search_runs(term: str) -> Search:
    """A run's or an operation's id, or a part of the name of an app or a repository."""
    term = term.strip()
    if not term:
        return Search(Q())
    if term.startswith("run_"):
        return Search(Q(run_id=term))
    if term.startswith("bulk_"):
        return Search(Q(operation__operation_id=term))
    named = Q(app_name__icontains=term) | Q(repository_name__icontains=term)
    watches = list(_watches_named(term).order_by().values_list("pk", flat=True)[: MOST_PAIRS + 1])
    if len(watches) > MOST_PAIRS:
        return Search(named, in_window=True)
    # What is not watched any more has nothing left but the names in its runs. Their keys, and not the question itself:
    # an OR of the two is answered by two indexes only where both sides are known to be few.
    forgotten = SyncRun.objects.filter(named, watch=None)
    if since := edge(SyncRun.objects.all(), None):
        forgotten = forgotten.filter(created_at__gte=since)
    found = list(forgotten.order_by("-created_at", "-pk").values_list("pk", flat=True)[:_MOST_FORGOTTEN])
    return Search(Q(watch__in=watches) | Q(pk__in=found))


def _watches_named(term: str) -> QuerySet[AppRepository]:
    owner, slash, name = term.partition("/")
    repository = Q(repository__owner__icontains=term) | Q(repository__name__icontains=term)
    if slash:
        repository = Q(repository__owner__iendswith=owner, repository__name__istartswith=name)
    return AppRepository.objects.filter(Q(app__name__icontains=term) | repository)


def search_operations(term: str) -> Search:
    """An operation's id, or a part of its title or of who asked for it."""
    term = term.strip()
    if not term:
        return Search(Q())
    if term.startswith("bulk_"):
        return Search(Q(operation_id=term))
    return Search(Q(title__icontains=term) | Q(requested_by__icontains=term), in_window=True)


def concerning(apps: Sequence[int]) -> Q:
    """Operations for these apps, and those that concerned them among others. Asked once: a list says it twice."""
    runs = SyncRun.objects.filter(watch__app__in=apps, operation__isnull=False)
    return Q(app__in=apps) | Q(pk__in=list(runs.order_by().values_list("operation", flat=True).distinct()))


def pages[M: Model](rows: QuerySet[M]) -> Iterator[list[M]]:
    """All of the rows, the newest first, in bounded memory: each page begins where the one before ended."""
    rows, after = rows.order_by("-created_at", "-pk"), None
    while True:
        rest: Any = rows
        if after is not None:
            rest = rows.filter(created_at__lte=after.created_at).exclude(created_at=after.created_at, pk__gte=after.pk)
        page: list[Any] = list(rest[:_PAGE])
        if not page:
            return
        yield page
        after = page[-1]


def seconds(of: SyncRun | BulkOperation) -> float | None:
    """How long it took, or takes by now: a run since its first attempt, an operation since it was asked for."""
    begun = of.started_at if isinstance(of, SyncRun) else of.created_at
    return ((of.ended_at or timezone.now()) - begun).total_seconds() if begun else None


_TAKEN_BACK = Q(outcome__in=[Outcome.CANCELLED, Outcome.ENDED])
PARTS: dict[str, tuple[str, Q]] = {
    "full": ("sent in full", Q(outcome=Outcome.SUCCEEDED)),
    "failed": ("failed", Q(outcome__in=[Outcome.FAILED, Outcome.PAUSED])),
    "part": ("sent in part", _TAKEN_BACK & Q(started_at__isnull=False)),
    "untouched": ("not touched", _TAKEN_BACK & Q(started_at=None)),
    "superseded": ("taken over by a later request", Q(outcome=Outcome.SUPERSEDED)),
    "open": ("open", Q(outcome="")),
}
"""What became of an operation's repositories: a name for addresses, the words, and the runs. None belongs to two."""


def sent(run: SyncRun) -> str:
    """What of one repository was sent for an operation, in words."""
    part = f"{run.files_done:,} of {run.files_total:,} files"
    if run.outcome == Outcome.SUCCEEDED:
        return "sent in full"
    if run.outcome and run.started_at is None:
        return "not touched"
    return part


@dataclass(frozen=True)
class Outcomes:
    """What became of an operation's repositories: how many are in each of `PARTS`, and what was sent in all."""

    counts: Mapping[str, int]
    files_done: int = 0
    files_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    started_at: datetime | None = None

    @property
    def words(self) -> str:
        """`11 sent in full, 1 failed`."""
        return ", ".join(f"{self.counts[name]:,} {words}" for name, (words, _) in PARTS.items() if self.counts[name])


def outcomes(operations: Iterable[BulkOperation]) -> dict[int, Outcomes]:
    """Of each operation, by primary key, in one query."""
    sums = ("files_done", "files_total", "bytes_done", "bytes_total")
    found: Any = (
        SyncRun.objects.filter(operation__in=[operation.pk for operation in operations])
        .order_by()
        .values("operation")
        .annotate(
            **{name: Count("pk", filter=part) for name, (_, part) in PARTS.items()},
            **{f"sum_{name}": Sum(name) for name in sums},
            begun=Min("started_at"),
        )
    )
    made = {
        row["operation"]: Outcomes(
            {name: row[name] for name in PARTS},
            **{name: row[f"sum_{name}"] for name in sums},
            started_at=row["begun"],
        )
        for row in found
    }
    nothing = Outcomes(dict.fromkeys(PARTS, 0))
    return {operation.pk: made.get(operation.pk, nothing) for operation in operations}
