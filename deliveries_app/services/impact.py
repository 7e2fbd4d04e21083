"""What a re-sync, a retry or a removal would mean: the numbers of the confirmation pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Case, Count, Exists, F, OuterRef, Q, Subquery, Sum, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from deliveries_app.models import AppRepository, AppRepositoryQuerySet, Delivery, Status, SyncRun
from repositories_app.models import Repository, Snapshot

SAMPLE = 10
COUNTED_RECORDS = 10_000
_RECENT_RUNS = 50


@dataclass(frozen=True)
class Impact:
    """`pairs` watched repositories of `apps` apps, with their files; `seconds` at the apps' recent pace, if there is
    one. `sample` holds the first rows, each with `files` and `size`."""

    pairs: int
    apps: int
    files: int
    size: int
    syncing: int
    paused: int
    seconds: float | None
    sample: Sequence[AppRepository]

    @property
    def more(self) -> int:
        return self.pairs - len(self.sample)


@dataclass(frozen=True)
class Backlog:
    """`pairs` failing repositories of `apps` apps, and the `files` that were not accepted. Of `unknown` of them it is
    not known how much is left: their last attempt ended before it had tried everything."""

    pairs: int
    apps: int
    files: int
    unknown: int
    syncing: int
    paused: int
    sample: Sequence[AppRepository]

    @property
    def more(self) -> int:
        return self.pairs - len(self.sample)


@dataclass(frozen=True)
class Removal:
    """What goes with watched repositories that are removed: their delivery `records` (exact up to `COUNTED_RECORDS`,
    beyond that about what their trees hold), and `orphans`, repositories that nobody else watches, with their mirrors.
    `syncing` of them are being sent by a worker right now."""

    pairs: int
    syncing: int
    records: int
    records_are_exact: bool
    orphans: int
    orphan_names: Sequence[str]
    sample: Sequence[AppRepository]

    @property
    def more(self) -> int:
        return self.pairs - len(self.sample)

    @property
    def more_orphans(self) -> int:
        return self.orphans - len(self.orphan_names)


def removal_of(pairs: AppRepositoryQuerySet) -> Removal:
    """Counted by the database in a constant number of queries; a table of millions is never counted."""
    ids = pairs.alive().order_by().values("pk")
    others = AppRepository.objects.alive().filter(repository=OuterRef("pk")).exclude(pk__in=ids)
    orphans = Repository.objects.filter(Exists(AppRepository.objects.filter(repository=OuterRef("pk"), pk__in=ids)))
    orphans = orphans.filter(~Exists(others))
    found = pairs.alive().aggregate(pairs=Count("pk"), files=Coalesce(Sum("tree_files"), 0))
    records = Delivery.objects.filter(pair__in=ids).order_by()[: COUNTED_RECORDS + 1].count()
    exact = records <= COUNTED_RECORDS
    return Removal(
        pairs=found["pairs"],
        syncing=pairs.alive().leased().count(),
        records=records if exact else max(records, found["files"]),
        records_are_exact=exact,
        orphans=orphans.count(),
        orphan_names=[str(repository) for repository in orphans[:SAMPLE]],
        sample=list(pairs.alive().select_related("app", "repository")[:SAMPLE]),
    )


def impact_of(pairs: AppRepositoryQuerySet) -> Impact:
    """Counted by the database in a constant number of queries, however many pairs."""
    counted = _with_sizes(pairs.alive())
    found = counted.aggregate(
        pairs=Count("pk"),
        apps=Count("app", distinct=True),
        files_in_all=Coalesce(Sum("files"), 0),
        size_in_all=Coalesce(Sum("size"), 0),
        syncing=Count("pk", filter=Q(status=Status.SCANNING)),
        paused=Count("pk", filter=Q(app__paused=True)),
    )
    sample = list(counted.select_related("app", "repository")[:SAMPLE])
    files = found.pop("files_in_all")
    pace = _recent_pace(pairs)
    return Impact(
        files=files, size=found.pop("size_in_all"), seconds=files / pace if pace else None, sample=sample, **found
    )


def backlog_of(pairs: AppRepositoryQuerySet) -> Backlog:
    """Counted by the database; `pairs` are failing."""
    found = pairs.aggregate(
        pairs=Count("pk"),
        apps=Count("app", distinct=True),
        files=Coalesce(Sum("files_failing"), 0),
        unknown=Count("pk", filter=Q(base_commit="")),
        syncing=Count("pk", filter=Q(status=Status.SCANNING)),
        paused=Count("pk", filter=Q(app__paused=True)),
    )
    return Backlog(sample=list(pairs.select_related("app", "repository")[:SAMPLE]), **found)


def _with_sizes(pairs: AppRepositoryQuerySet) -> AppRepositoryQuerySet:
    """The pair's own numbers; before its first sync those of the repository's newest snapshot."""
    newest = Snapshot.objects.filter(repository=OuterRef("repository")).order_by("-created_at", "-pk")
    return pairs.annotate(
        files=Case(
            When(tree_files__gt=0, then=F("tree_files")),
            default=Coalesce(Subquery(newest.values("file_count")[:1]), 0),
        ),
        size=Case(
            When(tree_files__gt=0, then=F("tree_bytes")),
            default=Coalesce(Subquery(newest.values("total_bytes")[:1]), 0),
        ),
    )


def _recent_pace(pairs: AppRepositoryQuerySet) -> float | None:
    """Files per second over the apps' latest runs."""
    apps = pairs.order_by().values("app")
    recent = (
        SyncRun.objects.filter(
            pair__app__in=apps,
            files_done__gt=0,
            started_at__isnull=False,
            ended_at__gt=timezone.now() - timedelta(days=7),
        )
        .order_by("-created_at")
        .values_list("files_done", "started_at", "ended_at")[:_RECENT_RUNS]
    )
    files, seconds = 0, 0.0
    for done, started, ended in recent:
        if started and ended:
            files += done
            seconds += (ended - started).total_seconds()
    return files / seconds if seconds > 0 else None
