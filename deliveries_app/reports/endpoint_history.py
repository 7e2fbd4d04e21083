"""An app's endpoint hour by hour: accepted notifications, response times, and re-syncs, key rotations and pauses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from django.db.models import Q

from deliveries_app.models import ActorKind, App, AuditAction, AuditEntry, HourlyTraffic, OperationKind
from deliveries_app.progress import context as progress_context
from deliveries_app.reports import chart
from deliveries_app.reports.traffic import Hour, Hours, read_hours

PERIODS = {"day": ("24 hours", 24), "week": ("7 days", 168)}
"""Name in the query string → label and hours."""
CELLS = 24
"""Number of cells in the row of marks above the chart, for every period."""
READ = 200
"""Maximum number of re-syncs to read, and of audit log entries. The newest are read."""


_OF_APP: dict[str, str] = {
    AuditAction.KEY_STARTED: "key",
    AuditAction.KEY_RETIRED: "key",
    AuditAction.KEY_DISCARDED: "key",
    AuditAction.APP_PAUSED: "pause",
    AuditAction.APP_RESUMED: "pause",
}
_OF_ALL: dict[str, str] = {AuditAction.ALL_PAUSED: "pause", AuditAction.ALL_RESUMED: "pause"}
_ICONS = {**_OF_APP, **_OF_ALL, AuditAction.RESYNC: "resync"}
"""Action of the audit log → icon."""


@dataclass(frozen=True)
class Mark:
    """An event that may explain a change in the chart. `x` is its position in the chart.

    `operation` is the primary key of a re-sync that the user can view.
    """

    at: datetime
    icon: str
    text: str
    operation: int | None = None
    x: float = 0.0


@dataclass(frozen=True)
class History(Hours):
    """The hours, and the marks, newest first. `cells` has the marks to show above each part of the chart."""

    marks: Sequence[Mark]
    cells: Sequence[Sequence[Mark]]
    shows_shares = True

    @property
    def worst(self) -> Hour:
        """The hour with the smallest share."""
        return min(self.hours, key=lambda hour: 100.0 if hour.share is None else hour.share)

    @property
    def slowest(self) -> Hour:
        return max(self.hours, key=lambda hour: hour.seconds or 0.0)

    @property
    def latency(self) -> str:
        """The SVG path of the average request time of each hour."""
        return chart.steps([hour.seconds for hour in self.hours])

    @property
    def ticks(self) -> list[datetime]:
        """Four times for the axis."""
        return [self.hours[index * len(self.hours) // 4].begin for index in range(4)]


def of_app(app: App, hours: int, *, names_operations: bool = True) -> History:
    """Read the last hours of an app in three queries.

    Without `names_operations`, for users who can't view bulk operations, omit the title and the requester of re-syncs.
    """
    found = read_hours(HourlyTraffic.objects.filter(app=app), hours)
    begin, end = found[0].begin, found[-1].end
    marks = [
        replace(mark, x=round(chart.WIDTH * ((mark.at - begin) / (end - begin)), 2))
        for mark in sorted(_marks(app, begin, names_operations=names_operations), key=lambda mark: mark.at)
    ]
    cells: list[dict[str, Mark]] = [{} for _ in range(CELLS)]
    for mark in marks:
        cell = min(CELLS - 1, int(mark.x * CELLS / chart.WIDTH))
        cells[cell][mark.icon] = mark  # the last mark of each kind, because there is no space for more
    return History(found, marks[::-1], [list(cell.values()) for cell in cells])


def _marks(app: App, since: datetime, *, names_operations: bool) -> list[Mark]:
    """Return the marks since then: re-syncs that involve the app, and entries of the audit log."""
    resyncs = progress_context.involving(app).filter(kind=OperationKind.RESYNC, created_at__gte=since)
    # A re-sync of one repository, for example by the app.
    single = Q(app_id=app.app_id, action=AuditAction.RESYNC, operation_id="")
    about = Q(app_id=app.app_id, action__in=list(_OF_APP)) | Q(action__in=list(_OF_ALL)) | single
    entries = AuditEntry.objects.filter(about, created_at__gte=since)
    return [
        *(
            Mark(
                operation.created_at,
                "resync",
                f"{operation.title}, by {operation.requested_by}" if names_operations else "Re-sync",
                operation.pk if names_operations else None,
            )
            for operation in resyncs[:READ]
        ),
        *(
            Mark(entry.created_at, _ICONS[entry.action], _text(entry, names_resync=names_operations))
            for entry in entries[:READ]
        ),
    ]


def _text(entry: AuditEntry, *, names_resync: bool) -> str:
    if entry.action == AuditAction.RESYNC and not names_resync:
        return "Re-sync"
    actor = "the app" if entry.actor_kind == ActorKind.APP else entry.actor
    return f"{entry.message.removesuffix('.')}, by {actor}"
