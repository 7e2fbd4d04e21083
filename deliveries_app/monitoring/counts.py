"""Count watches: failing, syncing, due, held back, scheduled.

Every page, command and metric takes these numbers from here, so they agree.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from django.db.models import Count, Min, Q
from django.db.models.functions import Now

from deliveries_app.models import App, AppRepository, StateDetail, Status, WatchState
from deliveries_app.models.watches import app_is_full, is_leased
from docora.db.clock import from_now
from repositories_app.models import HostOutage, Repository

OVERDUE_SECONDS = 60.0


@dataclass(frozen=True)
class WatchCounts:
    """Numbers of watches. They overlap: a failing watch can also be due.

    `by_status`: `Status` value → watches, and `by_state`: `WatchState` value → watches, 0 included.
    `failing`: the last attempt failed. `given_up` of these wait for the next rescan.
    `leased`: a worker owns them now.
    `due`: free, due now, and waiting only for a worker or for a slot of their app.
    `held`: free and due now, but paused, on hold, or not completely imported.
    `waiting`: due or held, except those that are not completely imported yet.
    `overdue`: due for more than `OVERDUE_SECONDS` although their app has a free slot, so another worker would help.
    `scheduled`: free, and due later.
    `importing`: not completely imported yet.
    `due_since`: when the longest waiting due watch whose app has a free slot became due.
    """

    watches: int
    by_status: Mapping[str, int]
    by_state: Mapping[str, int]
    failing: int
    given_up: int
    leased: int
    due: int
    held: int
    waiting: int
    overdue: int
    scheduled: int
    importing: int
    due_since: datetime | None

    @property
    def syncing(self) -> int:
        """Watches that a worker is syncing now."""
        return self.by_state[WatchState.SYNCING]


def count_watches(app: App | None = None) -> WatchCounts:
    """Count the watches of all apps, or of one, in one statement that reads each row once."""
    watches = AppRepository.objects.alive()
    if app is not None:
        watches = watches.filter(app=app)
    conditions = {
        "is_failing": Q(failing_since__isnull=False),
        "is_leased": is_leased(),
        "is_ready": Q(next_sync_at__lte=Now()),
        "is_overdue": Q(next_sync_at__lte=from_now(-OVERDUE_SECONDS)),
        "is_scheduled": Q(next_sync_at__gt=Now()),
        "has_slot": ~app_is_full(),
    }
    rows: Any = watches.order_by().with_state().annotate(**conditions)
    rows = rows.values("status", "state_detail", "arriving", *conditions)  # a condition on an empty column is None
    groups = [SimpleNamespace(**row) for row in rows.annotate(number=Count("pk"), ready_since=Min("next_sync_at"))]
    free = [group for group in groups if not group.is_leased]
    ready = [group for group in free if group.is_ready]
    due = [group for group in ready if not StateDetail(group.state_detail).is_held_back]
    held = [group for group in ready if StateDetail(group.state_detail).is_held_back]

    def total(found: Iterable[SimpleNamespace]) -> int:
        return sum(group.number for group in found)

    return WatchCounts(
        watches=total(groups),
        by_status={status: total(group for group in groups if group.status == status) for status in Status.values},
        by_state={
            state: total(group for group in groups if StateDetail(group.state_detail).state == state)
            for state in WatchState
        },
        failing=total(group for group in groups if group.is_failing),
        given_up=total(group for group in groups if group.is_failing and group.status == Status.FAILED),
        leased=total(group for group in groups if group.is_leased),
        due=total(due),
        held=total(held),
        waiting=total(group for group in ready if not group.arriving),
        overdue=total(group for group in due if group.is_overdue and group.has_slot),
        scheduled=total(group for group in free if group.is_scheduled),
        importing=total(group for group in groups if group.arriving),
        due_since=min((group.ready_since for group in due if group.ready_since and group.has_slot), default=None),
    )


def count_open_circuits() -> int:
    """Count the repositories whose circuit is open."""
    return Repository.objects.filter(circuit_open_until__gt=Now()).count()


def count_hosts_down() -> int:
    """Count the git hosts to which no connection can be made."""
    return HostOutage.objects.count()
