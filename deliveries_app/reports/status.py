"""Sync status of all apps or one, for the `status` command."""

from dataclasses import dataclass
from typing import Any

from django.db.models import Case, F, Q, When
from django.db.models.functions import Now

from deliveries_app.models import App, AppRepository, Status, SyncPause
from deliveries_app.monitoring.counts import WatchCounts, count_watches
from deliveries_app.progress.context import open_progress
from deliveries_app.reports.next_attempt import NextAttempt, next_attempt_of
from deliveries_app.services import current_pause
from docora.redis import heartbeat
from docora.redis.heartbeat import Signs
from repositories_app.models import HostOutage

_IS_SCANNING = Q(status=Status.SCANNING)
_IS_LISTED = Q(failing_since__isnull=False) | Q(next_sync_at__lte=Now()) | Q(arriving=True) | _IS_SCANNING


@dataclass(frozen=True)
class Line:
    """A watch that is failing, syncing or waiting. `percent` is the progress of a running sync."""

    watch: AppRepository
    percent: int | None
    next: NextAttempt

    def as_dict(self) -> dict[str, Any]:
        return watch_fields(self.watch) | {
            "state": self.watch.state.value,
            "failing_since": self.watch.failing_since,
            "root_cause": self.watch.root_cause or None,
            "percent": self.percent,
            "next": self.next.message,
            "next_at": self.next.at,
        }


@dataclass(frozen=True)
class StatusReport:
    """`signs` is None if Redis does not respond or rejects writes. `lines` lists failing, then syncing, then waiting watches.

    `hosts_down` are the git hosts to which no connection can be made; empty in the report of one app.
    """

    pause: SyncPause | None
    signs: Signs | None
    hosts_down: list[HostOutage]
    counts: WatchCounts
    lines: list[Line]

    def as_dict(self) -> dict[str, Any]:
        return {
            "paused": self.pause is not None,
            "workers": len(self.signs.workers) if self.signs else None,
            "sweep_seconds": self.signs.sweep_age if self.signs else None,
            "watches": self.counts.watches,
            "failing": self.counts.failing,
            "given_up": self.counts.given_up,
            "syncing": self.counts.syncing,
            "waiting": self.counts.waiting,
            "arriving": self.counts.importing,
            "lines": [line.as_dict() for line in self.lines],
        }


def read_status(app: App | None, at_most: int) -> StatusReport:
    """Read the status in a constant number of queries."""
    counts, pause = count_watches(app), current_pause()
    watches = AppRepository.objects.alive().filter(_IS_LISTED)
    if app:
        watches = watches.filter(app=app)
    listed = watches.with_state().for_list()
    failing_first = F("failing_since").asc(nulls_last=True)
    syncing_first = Case(When(_IS_SCANNING, then=0), default=1)
    rows: list[Any] = list(listed.order_by(failing_first, syncing_first, "next_sync_at", "pk")[:at_most])
    progress = open_progress(watch for watch in rows if watch.is_syncing)
    percents = {pk: of_run.percent for pk, of_run in progress.items()}
    lines = [Line(watch, percents.get(watch.pk), next_attempt_of(watch)) for watch in rows]
    hosts_down = [] if app else list(HostOutage.objects.order_by("host"))
    return StatusReport(pause, heartbeat.read(), hosts_down, counts, lines)


def watch_fields(watch: AppRepository) -> dict[str, Any]:
    """Return a watch for JSON output."""
    return {
        "app_id": watch.app.app_id,
        "app_name": watch.app.name,
        "repository_id": watch.repository.repository_id,
        "github_url": watch.github_url,
        "owner": watch.repository.owner,
        "name": watch.repository.name,
        "status": watch.status,
        "retry_count": watch.retry_count,
        "last_error": watch.last_error or None,
        "last_scanned_at": watch.last_scanned_at,
        "last_synced_at": watch.last_synced_at,
        "files": watch.tree_files,
        "files_failing": watch.files_failing,
    }
