"""How syncing stands, of all apps or of one: what fails, runs and waits, for people and monitoring at a command line."""

from dataclasses import dataclass
from typing import Any

from django.db.models import Case, Count, F, Q, When
from django.db.models.functions import Now

from deliveries_app.models import App, AppRepository, Status, SyncPause, SyncRun
from deliveries_app.progress import live
from deliveries_app.reports import failures
from deliveries_app.reports.next_attempt import NextTry, next_try
from deliveries_app.services import current_pause
from docora.redis import heartbeat
from docora.redis.heartbeat import Signs

NUMBERS = ("watches", "failing", "given_up", "syncing", "waiting", "arriving")

_FAILS = Q(failing_since__isnull=False)
_SYNCS = Q(status=Status.SCANNING)
_ARRIVES = Q(arriving=True)
_WAITS = Q(next_sync_at__lte=Now()) & ~_SYNCS & ~_ARRIVES


@dataclass(frozen=True)
class Line:
    """A watch that fails, is synced or waits. `state`: one of `failing.State`, `syncing`, `waiting`, or `arriving` where it
    waits for the rest of its import; `percent` is of what is synced now."""

    watch: AppRepository
    state: str
    percent: int | None
    next: NextTry

    def as_dict(self) -> dict[str, Any]:
        facts = {
            "state": self.state,
            "failing_since": self.watch.failing_since,
            "root_cause": self.watch.root_cause or None,
        }
        return (
            watch_facts(self.watch)
            | facts
            | {"percent": self.percent, "next": self.next.words, "next_at": self.next.at}
        )


@dataclass(frozen=True)
class Situation:
    """Numbers of watches; some of those that fail are synced or wait too. `signs` is None when Redis does not answer.
    `lines` are the first of them, what fails before what runs and what waits."""

    pause: SyncPause | None
    signs: Signs | None
    watches: int
    failing: int
    given_up: int
    syncing: int
    waiting: int
    arriving: int
    lines: list[Line]

    def as_dict(self) -> dict[str, Any]:
        return {
            "paused": self.pause is not None,
            "workers": len(self.signs.workers) if self.signs else None,
            "sweep_seconds": self.signs.sweep_age if self.signs else None,
            **{name: getattr(self, name) for name in NUMBERS},
            "lines": [line.as_dict() for line in self.lines],
        }


def look(app: App | None, at_most: int) -> Situation:
    """In a number of queries that does not grow with what there is."""
    watches = AppRepository.objects.alive()
    if app:
        watches = watches.filter(app=app)
    counts = watches.aggregate(
        watches=Count("pk"),
        failing=Count("pk", _FAILS),
        given_up=Count("pk", _FAILS & Q(status=Status.FAILED)),
        syncing=Count("pk", _SYNCS),
        waiting=Count("pk", _WAITS),
        arriving=Count("pk", _ARRIVES),
    )
    pause = current_pause()
    told = failures.with_state(watches.filter(_FAILS | _SYNCS | _WAITS | _ARRIVES)).select_related("app", "repository")
    first = F("failing_since").asc(nulls_last=True)
    then = Case(When(_SYNCS, then=0), default=1)
    rows: list[Any] = list(told.order_by(first, then, "next_sync_at", "pk")[:at_most])
    percents = _percents(rows)
    lines = [Line(watch, _state(watch), percents.get(watch.pk), next_try(watch, pause)) for watch in rows]
    return Situation(pause=pause, signs=heartbeat.read(), lines=lines, **counts)


def _state(watch: Any) -> str:
    if watch.is_failing:
        return str(failures.State(watch.state).label)
    if watch.arriving:
        return "arriving"
    return "syncing" if watch.status == Status.SCANNING else "waiting"


def _percents(watches: list[AppRepository]) -> dict[int, int]:
    """Of what is synced now, by the watch's key."""
    syncing = [watch.pk for watch in watches if watch.status == Status.SCANNING]
    newest = {
        run.watch_id: run for run in SyncRun.objects.filter(watch__in=syncing, outcome="").order_by("generation", "pk")
    }
    found = live.of_runs(newest.values())
    return {pk: found[run.pk].percent for pk, run in newest.items() if pk}


def watch_facts(watch: AppRepository) -> dict[str, Any]:
    """A watch, as scripts are told of it here and by the commands."""
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
