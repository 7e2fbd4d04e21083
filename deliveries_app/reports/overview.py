"""The state at a glance, for the admin's first page. Reads only; what a user may not see is None, and is not read."""

from dataclasses import dataclass

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Count, Q, Window
from django.db.models.functions import RowNumber
from django.utils import timezone

from deliveries_app.actors import can_view_operations
from deliveries_app.models import AlertChannel, App, AppRepository, BulkOperation, RootCause, Status, SyncRun
from deliveries_app.monitoring import alerts
from deliveries_app.progress import live
from deliveries_app.progress.live import Progress
from deliveries_app.reports import traffic
from deliveries_app.reports.traffic import Day
from docora.redis import heartbeat
from docora.redis.heartbeat import Signs
from repositories_app.models import Repository

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
    """Watched repositories. `failing`: the last attempt did not end well; `given_up` of these wait for the rescan.
    `oldest_due` has waited longest of all that could be synced now."""

    total: int
    failing: int
    given_up: int
    syncing: int
    oldest_due: AppRepository | None


@dataclass(frozen=True)
class Jobs:
    """`delayed` are watched repositories that are synced at a time to come. Without Redis only these are known."""

    waiting: int | None
    active: int | None
    delayed: int


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
        """There is nothing yet that could be synced."""
        return (self.apps is not None and not self.apps.total) or (self.watches is not None and not self.watches.total)


def can_view(user: AbstractBaseUser | AnonymousUser) -> bool:
    """Whether anything of it would be shown."""
    parts = (VIEW_APPS, VIEW_PAIRS, VIEW_DELIVERIES, VIEW_QUEUE, VIEW_REPOSITORIES)
    return can_view_operations(user) or any(user.has_perm(part) for part in parts)  # type: ignore[union-attr]


def of_user(user: AbstractBaseUser | AnonymousUser) -> Overview:
    """In a number of queries that does not grow with what there is."""
    signs = heartbeat.read()
    may = user.has_perm  # type: ignore[union-attr]
    watches = _watches() if may(VIEW_PAIRS) else None
    return Overview(
        signs=signs,
        apps=_apps() if may(VIEW_APPS) else None,
        watches=watches,
        circuits=_circuits() if may(VIEW_REPOSITORIES) else None,
        jobs=_jobs(signs) if may(VIEW_QUEUE) else None,
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


def _watches() -> Watches:
    alive = AppRepository.objects.alive()
    counts = alive.aggregate(
        total=Count("pk"),
        failing=Count("pk", Q(failing_since__isnull=False)),
        given_up=Count("pk", Q(failing_since__isnull=False, status=Status.FAILED)),
        syncing=Count("pk", Q(status=Status.SCANNING)),
    )
    due = AppRepository.objects.due().free().select_related("app", "repository").order_by("next_sync_at", "pk")
    return Watches(**counts, oldest_due=due.first())


def _circuits() -> int:
    return Repository.objects.filter(circuit_open_until__gt=timezone.now()).count()


def _jobs(signs: Signs | None) -> Jobs:
    delayed = AppRepository.objects.scheduled().count()
    return Jobs(signs.waiting if signs else None, signs.active if signs else None, delayed)


def _running(watches: Watches | None, *, operations: bool) -> Running:
    found = list(BulkOperation.objects.filter(ended_at=None)[: OPERATIONS_SHOWN + 1]) if operations else []
    syncing = _syncing() if watches and watches.syncing else []
    newest = {
        run.watch_id: run for run in SyncRun.objects.filter(watch__in=syncing, outcome="").order_by("generation", "pk")
    }
    bars = live.of_runs(newest.values())
    return Running(
        operations=tuple((operation, live.of_operation(operation)) for operation in found[:OPERATIONS_SHOWN]),
        more_operations=len(found) > OPERATIONS_SHOWN,
        watches=tuple((watch, bars[newest[watch.pk].pk] if watch.pk in newest else None) for watch in syncing),
        more_watches=max(0, watches.syncing - len(syncing)) if watches else 0,
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
