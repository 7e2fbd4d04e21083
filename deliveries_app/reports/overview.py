"""Data for the admin's overview page. Parts the user cannot view are None and are not queried."""

from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Count, Min, Q, Window
from django.db.models.functions import RowNumber

from deliveries_app.actors import can_view_operations
from deliveries_app.models import AlertChannel, App, AppRepository, BulkOperation, WatchState
from deliveries_app.models.root_causes import label_of
from deliveries_app.monitoring import alerts
from deliveries_app.monitoring.counts import WatchCounts, count_open_circuits, count_watches
from deliveries_app.permissions import Permission
from deliveries_app.progress import context as progress_context
from deliveries_app.progress.live import Progress
from deliveries_app.reports import checklist, history, traffic
from deliveries_app.reports.checklist import Apps, Checklist
from deliveries_app.reports.system import System, read_system
from deliveries_app.reports.traffic import Day
from repositories_app.models import HostOutage

OPERATIONS_SHOWN, WATCHES_SHOWN, CAUSES_SHOWN, HOSTS_SHOWN = 4, 6, 5, 3


@dataclass(frozen=True)
class Running:
    """The first few operations and running syncs, and whether there are more of each.

    The operations are in progress or held, but not superseded.
    """

    operations: list[dict[str, Any]]
    more_operations: bool
    watches: list[tuple[AppRepository, Progress | None]]
    more_watches: bool


@dataclass(frozen=True)
class Failing:
    """`count` watches that fail with the same root cause. `newest` is the one that started failing last."""

    cause: str
    count: int
    newest: AppRepository

    @property
    def label(self) -> str:
        return label_of(self.cause)


@dataclass(frozen=True)
class Overview:
    """The parts of the page. A part is None if the user cannot view it.

    `hosts_down` are the first git hosts to which no connection can be made; empty if the user cannot view git repositories.
    `oldest_due` is the watch that has been due longest. `failing` has the most frequent causes. `undelivered`, which every user
    sees, lists the channels that fail to send alerts. `checklist` is None once the instance is in use.
    """

    system: System
    hosts_down: list[HostOutage]
    more_hosts_down: bool
    apps: Apps | None
    watches: WatchCounts | None
    oldest_due: AppRepository | None
    circuits: int | None
    queue: WatchCounts | None
    day: Day | None
    running: Running | None
    failing: tuple[Failing, ...] | None
    more_causes: int
    undelivered: list[AlertChannel]
    checklist: Checklist | None

    @property
    def is_fresh(self) -> bool:
        """Whether there is nothing to sync yet: no app, or no watched repository."""
        return (self.apps is not None and not self.apps.total) or (
            self.watches is not None and not self.watches.watches
        )


def can_view(user: User | AnonymousUser) -> bool:
    """Return whether the user can view any part."""
    parts = (
        Permission.VIEW_APPS,
        Permission.VIEW_WATCHES,
        Permission.VIEW_DELIVERIES,
        Permission.VIEW_QUEUE,
        Permission.VIEW_REPOSITORIES,
    )
    return can_view_operations(user) or any(user.has_perm(part) for part in parts)


def of_user(user: User | AnonymousUser) -> Overview:
    """Build the overview in a constant number of queries."""
    can = user.has_perm
    counts = count_watches() if can(Permission.VIEW_WATCHES) or can(Permission.VIEW_QUEUE) else None
    watches = counts if can(Permission.VIEW_WATCHES) else None
    sees_operations = can_view_operations(user)
    due = AppRepository.objects.for_pages().due().free().in_state(WatchState.QUEUED)
    apps = _apps() if can(Permission.VIEW_APPS) else None
    outages = HostOutage.objects.order_by("since", "pk")
    failing = _failing() if watches else None
    hosts_down = list(outages[: HOSTS_SHOWN + 1]) if can(Permission.VIEW_REPOSITORIES) else []
    return Overview(
        system=read_system(counts.due_since if counts else None),
        hosts_down=hosts_down[:HOSTS_SHOWN],
        more_hosts_down=len(hosts_down) > HOSTS_SHOWN,
        apps=apps,
        watches=watches,
        oldest_due=due.order_by("next_sync_at", "pk").first() if watches else None,
        circuits=count_open_circuits() if can(Permission.VIEW_REPOSITORIES) else None,
        queue=counts if can(Permission.VIEW_QUEUE) else None,
        day=traffic.of_last_day() if can(Permission.VIEW_DELIVERIES) else None,
        running=_running(watches, operations=sees_operations) if watches or sees_operations else None,
        failing=failing and failing[:CAUSES_SHOWN],
        more_causes=len((failing or ())[CAUSES_SHOWN:]),
        undelivered=alerts.undelivered(),
        checklist=checklist.of_user(user, apps, watches.watches) if apps and watches else None,
    )


def _apps() -> Apps:
    alive = App.objects.filter(ended_at=None)
    counts = {"total": Count("pk"), "paused": Count("pk", Q(paused=True)), "pinged": Count("pinged_at")}
    return Apps(**alive.aggregate(**counts, first=Min("pk"), registered_at=Min("created_at")))


def _running(watches: WatchCounts | None, *, operations: bool) -> Running:
    is_shown = history.OPERATIONS["running"][1] | history.OPERATIONS["held"][1]
    open_operations = list(BulkOperation.objects.filter(is_shown)[: OPERATIONS_SHOWN + 1]) if operations else []
    rows = AppRepository.objects.for_pages().in_state(WatchState.SYNCING)
    syncing = list(rows[:WATCHES_SHOWN]) if watches and watches.syncing else []
    progress = progress_context.open_progress(syncing)
    return Running(
        operations=[progress_context.of_operation(operation) for operation in open_operations[:OPERATIONS_SHOWN]],
        more_operations=len(open_operations) > OPERATIONS_SHOWN,
        watches=[(watch, progress.get(watch.pk)) for watch in syncing],
        more_watches=watches is not None and watches.syncing > len(syncing),
    )


def _failing() -> tuple[Failing, ...]:
    """Return the failures by root cause, most frequent first."""
    newest = AppRepository.objects.failing().annotate(
        place=Window(RowNumber(), partition_by="root_cause", order_by=["-failing_since", "-pk"]),
        cause_count=Window(Count("pk"), partition_by="root_cause"),
    )
    counts = dict(newest.filter(place=1).order_by().values_list("pk", "cause_count"))
    watches = AppRepository.objects.filter(pk__in=counts).for_list()
    found = [Failing(watch.root_cause, counts[watch.pk], watch) for watch in watches if watch.root_cause]
    return tuple(sorted(found, key=lambda failing: (failing.count, failing.newest.failing_since), reverse=True))
