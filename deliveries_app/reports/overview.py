"""Data for the admin's overview page. Parts the user cannot view are None and are not queried."""

from dataclasses import dataclass

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Count, Q, Window
from django.db.models.functions import RowNumber

from deliveries_app.actors import can_view_operations
from deliveries_app.models import AlertChannel, App, AppRepository, BulkOperation, RootCause, Status, SyncRun
from deliveries_app.monitoring import alerts
from deliveries_app.monitoring.counts import WatchCounts, count_open_circuits, count_watches
from deliveries_app.progress import live
from deliveries_app.progress.live import Progress
from deliveries_app.reports import traffic
from deliveries_app.reports.traffic import Day
from docora.redis import heartbeat
from docora.redis.heartbeat import Signs

OPERATIONS_SHOWN, PAIRS_SHOWN = 4, 6

VIEW_APPS = "deliveries_app.view_app"
VIEW_PAIRS = "deliveries_app.view_apprepository"
VIEW_DELIVERIES = "deliveries_app.view_delivery"
VIEW_QUEUE = "deliveries_app.view_queue"
VIEW_REPOSITORIES = "repositories_app.view_repository"


@dataclass(frozen=True)
class Apps:
    total: int
    paused: int


@dataclass(frozen=True)
class Watches:
    """Watched repositories. `oldest_due` is the one that has been due longest."""

    counts: WatchCounts
    oldest_due: AppRepository | None


@dataclass(frozen=True)
class Jobs:
    """Jobs in Redis, None if it is down, and `scheduled` watched repositories, which are synced later."""

    waiting: int | None
    active: int | None
    scheduled: int


@dataclass(frozen=True)
class Running:
    """What is going on. No more than a few of each are shown; `more_operations` says that there are others."""

    operations: tuple[tuple[BulkOperation, Progress], ...]
    more_operations: bool
    watches: tuple[tuple[AppRepository, Progress | None], ...]
    more_watches: int


@dataclass(frozen=True)
class Failing:
    """So many watched repositories fail for the same reason; `newest` is the one that began last."""

    cause: RootCause
    count: int
    newest: AppRepository


@dataclass(frozen=True)
class Overview:
    """`signs` is None when Redis is down, everything else but `undelivered`, the channels by which no alert arrives, when
    the user may not see it."""

    signs: Signs | None
    apps: Apps | None
    watches: Watches | None
    circuits: int | None
    jobs: Jobs | None
    day: Day | None
    running: Running | None
    failing: tuple[Failing, ...] | None
    undelivered: list[AlertChannel]

    @property
    def is_fresh(self) -> bool:
        """There is nothing to sync yet."""
        return (self.apps is not None and not self.apps.total) or (
            self.watches is not None and not self.watches.counts.watches
        )


def can_view(user: AbstractBaseUser | AnonymousUser) -> bool:
    """Return whether the user can view any part."""
    parts = (VIEW_APPS, VIEW_PAIRS, VIEW_DELIVERIES, VIEW_QUEUE, VIEW_REPOSITORIES)
    return can_view_operations(user) or any(user.has_perm(part) for part in parts)  # type: ignore[union-attr]


def of_user(user: AbstractBaseUser | AnonymousUser) -> Overview:
    """Build the overview in a constant number of queries."""
    signs = heartbeat.read()
    may = user.has_perm  # type: ignore[union-attr]
    counts = count_watches() if may(VIEW_PAIRS) or may(VIEW_QUEUE) else None
    watches = Watches(counts, _oldest_due()) if counts and may(VIEW_PAIRS) else None
    return Overview(
        signs=signs,
        apps=_apps() if may(VIEW_APPS) else None,
        watches=watches,
        circuits=count_open_circuits() if may(VIEW_REPOSITORIES) else None,
        jobs=_jobs(signs, counts) if counts and may(VIEW_QUEUE) else None,
        day=traffic.of_last_day() if may(VIEW_DELIVERIES) else None,
        running=_running(watches, operations=can_view_operations(user))
        if watches or can_view_operations(user)
        else None,
        failing=_failing() if watches else None,
        undelivered=alerts.undelivered(),
    )


def _apps() -> Apps:
    alive = App.objects.filter(ended_at=None)
    return Apps(**alive.aggregate(total=Count("pk"), paused=Count("pk", Q(paused=True))))


def _oldest_due() -> AppRepository | None:
    due = AppRepository.objects.due().free().select_related("app", "repository")
    return due.order_by("next_sync_at", "pk").first()


def _jobs(signs: Signs | None, counts: WatchCounts) -> Jobs:
    return Jobs(signs.waiting if signs else None, signs.active if signs else None, counts.scheduled)


def _running(watches: Watches | None, *, operations: bool) -> Running:
    found = list(BulkOperation.objects.filter(ended_at=None)[: OPERATIONS_SHOWN + 1]) if operations else []
    syncing = _syncing() if watches and watches.counts.syncing else []
    newest = {
        run.watch_id: run for run in SyncRun.objects.filter(watch__in=syncing, outcome="").order_by("generation", "pk")
    }
    bars = live.of_runs(newest.values())
    return Running(
        operations=tuple((operation, live.of_operation(operation)) for operation in found[:OPERATIONS_SHOWN]),
        more_operations=len(found) > OPERATIONS_SHOWN,
        watches=tuple((watch, bars[newest[watch.pk].pk] if watch.pk in newest else None) for watch in syncing),
        more_watches=max(0, watches.counts.syncing - len(syncing)) if watches else 0,
    )


def _syncing() -> list[AppRepository]:
    rows = AppRepository.objects.alive().filter(status=Status.SCANNING).select_related("app", "repository")
    return list(rows.order_by("app__name", "repository__owner", "repository__name", "pk")[:PAIRS_SHOWN])


def _failing() -> tuple[Failing, ...]:
    """The most frequent cause first."""
    newest = AppRepository.objects.failing().annotate(
        place=Window(RowNumber(), partition_by="root_cause", order_by=["-failing_since", "-pk"]),
        cause_count=Window(Count("pk"), partition_by="root_cause"),
    )
    counts = dict(newest.filter(place=1).order_by().values_list("pk", "cause_count"))
    watches = AppRepository.objects.filter(pk__in=counts).select_related("app", "repository")
    found = [Failing(RootCause(watch.root_cause), counts[watch.pk], watch) for watch in watches if watch.root_cause]
    return tuple(sorted(found, key=lambda failing: (failing.count, failing.newest.failing_since), reverse=True))
