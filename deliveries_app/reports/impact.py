"""Impact of a re-sync, retry or removal, for the confirmation pages."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Case, Count, F, OuterRef, Q, Subquery, Sum, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from deliveries_app.models import AppRepository, AppRepositoryQuerySet, Delivery, Status, SyncRun
from repositories_app.models import Repository, Snapshot

SAMPLE = 10
COUNTED_RECORDS = 10_000
_RECENT_RUNS = 50
_APPS_APART = 100
_NAMED_ONE_BY_ONE = 1000  # repositories; above this, count all: a query naming thousands is slower


@dataclass(frozen=True)
class Impact:
    """`watches` watched repositories of `apps` apps, with their files; `seconds` at the apps' recent pace, if there is
    one. `sample` holds the first rows, each with `files` and `size`."""

    watches: int
    apps: int
    files: int
    size: int
    syncing: int
    paused: int
    seconds: float | None
    sample: Sequence[AppRepository]

    @property
    def more(self) -> int:
        return self.watches - len(self.sample)


@dataclass(frozen=True)
class RetryImpact:
    """`watches` failing repositories of `apps` apps, and the `files` that were not accepted. Of `unknown` of them it is
    not known how much is left: their last attempt ended before it had tried everything."""

    watches: int
    apps: int
    files: int
    unknown: int
    syncing: int
    paused: int
    sample: Sequence[AppRepository]

    @property
    def more(self) -> int:
        return self.watches - len(self.sample)


@dataclass(frozen=True)
class Removal:
    """What is removed with watches: their delivery `records` (exact up to `COUNTED_RECORDS`, otherwise estimated from their
    trees), and `orphans`, the repositories that no other app watches, with their mirrors. A worker is syncing `syncing` of
    the watches now."""

    watches: int
    syncing: int
    records: int
    records_are_exact: bool
    orphans: int
    orphan_names: Sequence[str]
    sample: Sequence[AppRepository]

    @property
    def more(self) -> int:
        return self.watches - len(self.sample)

    @property
    def more_orphans(self) -> int:
        return self.orphans - len(self.orphan_names)


def removal_of(watches: AppRepositoryQuerySet) -> Removal:
    """Estimate a removal in a constant number of queries, with a bounded count of records."""
    watches = watches.alive()
    rows = list(watches.order_by().values_list("repository_id", "tree_files"))
    orphans = _watched_by_these_alone(Counter(repository for repository, _ in rows))
    ids = watches.order_by().values("pk")
    records = Delivery.objects.filter(watch__in=ids).order_by()[: COUNTED_RECORDS + 1].count()
    exact = records <= COUNTED_RECORDS
    return Removal(
        watches=len(rows),
        syncing=watches.leased().count(),
        records=records if exact else max(records, sum(files for _, files in rows)),
        records_are_exact=exact,
        orphans=len(orphans),
        orphan_names=[str(repository) for repository in Repository.objects.filter(pk__in=orphans[:SAMPLE])],
        sample=list(watches.select_related("app", "repository")[:SAMPLE]),
    )


def _watched_by_these_alone(counted: Counter[int]) -> list[int]:
    """Return the repositories that only these watches use."""
    watches = AppRepository.objects.alive().order_by()
    if len(counted) <= _NAMED_ONE_BY_ONE:
        watches = watches.filter(repository__in=counted)
    watched = dict(watches.values_list("repository").annotate(Count("pk")))
    return sorted(repository for repository, count in counted.items() if watched.get(repository) == count)


def impact_of(watches: AppRepositoryQuerySet) -> Impact:
    """Estimate a re-sync in a constant number of queries."""
    counted = _with_sizes(watches.alive())
    found = counted.aggregate(
        watches=Count("pk"),
        apps=Count("app", distinct=True),
        files_in_all=Coalesce(Sum("files"), 0),
        size_in_all=Coalesce(Sum("size"), 0),
        syncing=Count("pk", filter=Q(status=Status.SCANNING)),
        paused=Count("pk", filter=Q(app__paused=True)),
    )
    sample = list(counted.select_related("app", "repository")[:SAMPLE])
    files = found.pop("files_in_all")
    pace = _recent_pace(watches, found["apps"])
    return Impact(
        files=files, size=found.pop("size_in_all"), seconds=files / pace if pace else None, sample=sample, **found
    )


def retry_impact_of(watches: AppRepositoryQuerySet) -> RetryImpact:
    """Estimate a retry of failing `watches`."""
    found = watches.aggregate(
        watches=Count("pk"),
        apps=Count("app", distinct=True),
        files=Coalesce(Sum("files_failing"), 0),
        unknown=Count("pk", filter=Q(base_commit="")),
        syncing=Count("pk", filter=Q(status=Status.SCANNING)),
        paused=Count("pk", filter=Q(app__paused=True)),
    )
    return RetryImpact(sample=list(watches.select_related("app", "repository")[:SAMPLE]), **found)


def _with_sizes(watches: AppRepositoryQuerySet) -> AppRepositoryQuerySet:
    """Annotate the watch's sizes, or the newest snapshot's before its first sync."""
    newest = Snapshot.objects.filter(repository=OuterRef("repository")).order_by("-created_at", "-pk")
    return watches.annotate(
        files=Case(
            When(tree_files__gt=0, then=F("tree_files")),
            default=Coalesce(Subquery(newest.values("file_count")[:1]), 0),
        ),
        size=Case(
            When(tree_files__gt=0, then=F("tree_bytes")),
            default=Coalesce(Subquery(newest.values("total_bytes")[:1]), 0),
        ),
    )


def _recent_pace(watches: AppRepositoryQuerySet, apps: int) -> float | None:
    """Return files per second over the apps' latest runs; for many apps, over all latest runs."""
    ended = SyncRun.objects.filter(files_done__gt=0, started_at__isnull=False, ended_at__isnull=False)
    recent = ended.filter(created_at__gt=timezone.now() - timedelta(days=7)).order_by("-created_at")
    if apps <= _APPS_APART:  # literal keys give a good query plan even before ANALYZE
        recent = recent.filter(watch__app__in=list(watches.order_by().values_list("app", flat=True).distinct()))
    files, seconds = 0, 0.0
    for done, started, over in recent.values_list("files_done", "started_at", "ended_at")[:_RECENT_RUNS]:
        if started and over:
            files += done
            seconds += (over - started).total_seconds()
    return files / seconds if seconds > 0 else None
