"""Impact of a re-sync, retry, resend or removal, for the confirmation pages."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import BigIntegerField, Count, F, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

from deliveries_app.models import AppRepository, AppRepositoryQuerySet, Delivery, SyncRun
from deliveries_app.models.watches import is_leased, is_syncing
from deliveries_app.services import MAX_RESENT_AT_ONCE
from docora.text import counted, format_bytes
from repositories_app.models import Repository

SAMPLE = 10
COUNTED_RECORDS = 1000
_RECENT_RUNS = 50
_MAX_APPS_NAMED = 100
_COUNTS = {
    "watches": Count("pk"),
    "apps": Count("app", distinct=True),
    "paused": Count("pk", filter=Q(app__paused=True) | Q(paused_at__isnull=False)),
}
_MAX_REPOSITORIES_NAMED = 1000  # above this, count all watches: a query that names thousands is slower


@dataclass(frozen=True)
class Impact:
    """What an operation sends: `files` of `watches` of `apps` apps. `paused` watches are paused, or their app is.

    - `sample`: the first watches, of a resend those with the most files. They have `files` and `size`.
    - `size`: bytes, unknown for a retry.
    - Re-sync: `seconds` is estimated from the apps' recent pace. It is None without one, and if files have to wait for a
      resume or their number is unknown. `syncing` of the watches are being synced now.
    - `unknown`: watches whose number of files is unknown. Those of a re-sync have not been synced yet; the last attempt of
      those of a retry ended before it had tried every file.
    - Resend: `deliveries` are the primary keys, at most one more than `MAX_RESENT_AT_ONCE`.
    """

    watches: int
    sample: Sequence[AppRepository]
    apps: int
    files: int
    paused: int
    size: int = 0
    seconds: float | None = None
    syncing: int = 0
    unknown: int = 0
    deliveries: Sequence[int] = ()

    @property
    def more(self) -> int:
        return self.watches - len(self.sample)

    @property
    def amount(self) -> str:
        """What a re-sync sends, for a sentence: `30 files (4 kB)`, or `files` if their number is unknown."""
        return "files" if self.unknown else f"{counted(self.files, 'file')} ({format_bytes(self.size)})"

    @property
    def plus_unknown(self) -> str:
        """What is not in `files`, for the total: `plus 2 repositories with an unknown number of files`, or empty."""
        return f"plus {counted(self.unknown, 'repository')} with an unknown number of files" if self.unknown else ""


@dataclass(frozen=True)
class Removal:
    """What is removed together with `watches` watches.

    - `sample` has the first of them. `at_client` of each says how many files its app may hold.
    - `pks` and `files`: the watches, and the number of files in their newest trees. `syncing` of them are being synced now.
    - `records_text`: the number of their delivery records, for a sentence: `1,200 delivery records`. Above `COUNTED_RECORDS`,
      it is estimated from the number of files: `about 12,000 delivery records`.
    - `orphans`: repositories that no other app watches. Their mirrors are removed too.
    """

    watches: int
    sample: Sequence[AppRepository]
    pks: Sequence[int]
    files: int
    syncing: int
    records_text: str
    orphans: int
    orphan_names: Sequence[str]

    @property
    def more(self) -> int:
        return self.watches - len(self.sample)

    @property
    def more_orphans(self) -> int:
        return self.orphans - len(self.orphan_names)


def removal_of(watches: AppRepositoryQuerySet) -> Removal:
    """Estimate a removal in a constant number of queries, with a bounded count of records."""
    watches = watches.alive()
    leased = watches.order_by().annotate(leased=is_leased())
    rows = list(leased.values_list("pk", "repository_id", "tree_files", "leased"))
    orphans = _orphans(Counter(repository for _, repository, *_ in rows))
    files = sum(files for *_, files, _ in rows)
    ids = watches.order_by().values("pk")
    records = Delivery.objects.filter(watch__in=ids).order_by()[: COUNTED_RECORDS + 1].count()
    is_exact = records <= COUNTED_RECORDS
    records_text = counted(records if is_exact else max(records, files), "delivery record")
    return Removal(
        watches=len(rows),
        pks=[pk for pk, *_ in rows],
        files=files,
        syncing=sum(bool(leased) for *_, leased in rows),
        records_text=records_text if is_exact else f"about {records_text}",
        orphans=len(orphans),
        orphan_names=[str(repository) for repository in Repository.objects.filter(pk__in=orphans[:SAMPLE])],
        sample=_with_files_at_client(_sample(watches)),
    )


def _with_files_at_client(sample: list[AppRepository]) -> list[AppRepository]:
    """Set `at_client` of each watch: how many files its app may hold, as text.

    With a base, these are the files that were delivered. Without one, a sync did not try its whole plan, and they are those
    with a record, counted up to `COUNTED_RECORDS`.
    """
    own = Delivery.objects.filter(watch=OuterRef("pk")).order_by().values("pk")[: COUNTED_RECORDS + 1]
    unfinished = AppRepository.objects.filter(pk__in=[watch.pk for watch in sample], base_commit="").order_by()
    records = dict(unfinished.values_list("pk", _Rows(own)))
    for watch in sample:
        count = records.get(watch.pk, watch.files_delivered)
        is_exact = watch.pk not in records or count <= COUNTED_RECORDS
        watch.at_client = f"{count:,}" if is_exact else f"more than {COUNTED_RECORDS:,}"  # type: ignore[attr-defined]
    return sample


class _Rows(Subquery):
    """The number of rows of a query."""

    template = "(SELECT count(*) FROM (%(subquery)s) AS found)"
    output_field = BigIntegerField()


def _orphans(removed: Counter[int]) -> list[int]:
    """Return the repositories that have no watches other than those `removed`."""
    watches = AppRepository.objects.alive().order_by()
    if len(removed) <= _MAX_REPOSITORIES_NAMED:
        watches = watches.filter(repository__in=removed)
    watched = dict(watches.values_list("repository").annotate(Count("pk")))
    return sorted(repository for repository, count in removed.items() if watched.get(repository) == count)


def impact_of(watches: AppRepositoryQuerySet) -> Impact:
    """Estimate a re-sync in a constant number of queries."""
    sized = watches.alive().with_sizes()
    found = sized.aggregate(
        **_COUNTS,
        total_files=Coalesce(Sum("files"), 0),
        total_size=Coalesce(Sum("size"), 0),
        syncing=Count("pk", filter=is_syncing()),
        unknown=Count("pk", filter=Q(files=None)),
    )
    sample = _sample(sized)
    files = found.pop("total_files")
    pace = None if found["unknown"] or found["paused"] else _recent_pace(watches, found["apps"])
    return Impact(
        files=files, size=found.pop("total_size"), seconds=files / pace if pace else None, sample=sample, **found
    )


def retry_impact_of(watches: AppRepositoryQuerySet) -> Impact:
    """Estimate a retry of failing `watches`."""
    is_unknown = Q(base_commit="") | Q(files_failing=0)  # see `files_undelivered`
    found = watches.aggregate(
        **_COUNTS,
        files=Coalesce(Sum("files_failing", filter=~is_unknown), 0),
        unknown=Count("pk", filter=is_unknown),
    )
    return Impact(sample=_sample(watches), **found)


def resend_impact_of(deliveries: QuerySet[Delivery]) -> Impact:
    """Return what a resend of these deliveries sends, up to one file above the limit, in three queries."""
    rows = list(deliveries.values_list("pk", "watch_id", "size")[: MAX_RESENT_AT_ONCE + 1])
    files, sizes = Counter(watch for _, watch, _ in rows), Counter[int]()
    for _, watch_pk, size in rows:
        sizes[watch_pk] += size
    largest = [watch for watch, _ in files.most_common(SAMPLE)]
    watches = AppRepository.objects.order_by()
    apps = watches.filter(pk__in=list(files)).values_list("app_id", "app__paused", "paused_at")
    known: dict[int, Any] = watches.for_list().in_bulk(largest)
    for pk, watch in known.items():
        watch.files, watch.size = files[pk], sizes[pk]
    return Impact(
        deliveries=[pk for pk, _, _ in rows],
        files=len(rows),
        size=sizes.total(),
        watches=len(files),
        apps=len({app for app, *_ in apps}),
        paused=sum(is_paused or paused_at is not None for _, is_paused, paused_at in apps),
        sample=[known[pk] for pk in largest if pk in known],
    )


def _sample(watches: AppRepositoryQuerySet) -> list[AppRepository]:
    """Return the first watches with their sizes. Sorting only the keys takes half as long as sorting whole rows."""
    first = AppRepository.objects.filter(pk__in=watches.values("pk")[:SAMPLE])
    return list(first.with_sizes().with_state().for_list())


def _recent_pace(watches: AppRepositoryQuerySet, apps: int) -> float | None:
    """Return files per second over the apps' latest runs; for many apps, over all latest runs.

    Runs with several attempts don't count, because their time includes the waits in between, which may be hours.
    """
    sending = SyncRun.objects.filter(
        files_done__gt=0, attempts__lte=1, started_at__isnull=False, ended_at__isnull=False
    )
    recent = sending.filter(created_at__gt=timezone.now() - timedelta(days=7)).order_by("-created_at")
    if apps <= _MAX_APPS_NAMED:  # literal keys lead to a good query plan even before ANALYZE
        recent = recent.filter(watch__app__in=list(watches.order_by().values_list("app", flat=True).distinct()))
    sums = recent[:_RECENT_RUNS].aggregate(files=Sum("files_done"), time=Sum(F("ended_at") - F("started_at")))
    seconds = sums["time"].total_seconds() if sums["time"] else 0.0
    return sums["files"] / seconds if seconds > 0 else None
