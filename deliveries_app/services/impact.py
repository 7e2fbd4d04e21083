"""What a re-sync would mean: the numbers of the confirmation pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Case, Count, F, OuterRef, Q, Subquery, Sum, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from deliveries_app.models import AppRepository, AppRepositoryQuerySet, Status, SyncRun
from repositories_app.models import Snapshot

SAMPLE = 10
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
