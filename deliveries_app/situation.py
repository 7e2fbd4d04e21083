"""How syncing stands, of all apps or of one: what fails, runs and waits, for people and monitoring at a command line."""

from dataclasses import dataclass
from typing import Any

from django.db.models import Case, Count, F, Q, When
from django.db.models.functions import Now

from deliveries_app import failing, tallies
from deliveries_app.api import watch_facts
from deliveries_app.models import App, AppRepository, Status, SyncPause, SyncRun
from deliveries_app.services import current_pause
from deliveries_app.waiting import NextTry, next_try
from docora import heartbeat
from docora.heartbeat import Signs

NUMBERS = ("watches", "failing", "given_up", "syncing", "waiting", "arriving")

_FAILS = Q(failing_since__isnull=False)
_SYNCS = Q(status=Status.SCANNING)
_ARRIVES = Q(arriving=True)
_WAITS = Q(next_sync_at__lte=Now()) & ~_SYNCS & ~_ARRIVES


@dataclass(frozen=True)
class Line:
    """A watch that fails, is synced or waits. `state`: one of `failing.State`, `syncing`, `waiting`, or `arriving` where it
    waits for the rest of its import; `percent` is of what is synced now."""

    pair: AppRepository
    state: str
    percent: int | None
    next: NextTry

    def as_dict(self) -> dict[str, Any]:
        facts = {
            "state": self.state,
            "failing_since": self.pair.failing_since,
            "root_cause": self.pair.root_cause or None,
        }
        return (
            watch_facts(self.pair) | facts | {"percent": self.percent, "next": self.next.words, "next_at": self.next.at}
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
    pairs = AppRepository.objects.alive()
    if app:
        pairs = pairs.filter(app=app)
    counts = pairs.aggregate(
        watches=Count("pk"),
        failing=Count("pk", _FAILS),
        given_up=Count("pk", _FAILS & Q(status=Status.FAILED)),
        syncing=Count("pk", _SYNCS),
        waiting=Count("pk", _WAITS),
        arriving=Count("pk", _ARRIVES),
    )
    pause = current_pause()
    told = failing.with_state(pairs.filter(_FAILS | _SYNCS | _WAITS | _ARRIVES)).select_related("app", "repository")
    first = F("failing_since").asc(nulls_last=True)
    then = Case(When(_SYNCS, then=0), default=1)
    rows: list[Any] = list(told.order_by(first, then, "next_sync_at", "pk")[:at_most])
    percents = _percents(rows)
    lines = [Line(pair, _state(pair), percents.get(pair.pk), next_try(pair, pause)) for pair in rows]
    return Situation(pause=pause, signs=heartbeat.read(), lines=lines, **counts)


def _state(pair: Any) -> str:
    if pair.is_failing:
        return str(failing.State(pair.state).label)
    if pair.arriving:
        return "arriving"
    return "syncing" if pair.status == Status.SCANNING else "waiting"


def _percents(pairs: list[AppRepository]) -> dict[int, int]:
    """Of what is synced now, by the pair's key."""
    syncing = [pair.pk for pair in pairs if pair.status == Status.SCANNING]
    newest = {
        run.pair_id: run for run in SyncRun.objects.filter(pair__in=syncing, outcome="").order_by("generation", "pk")
    }
    found = tallies.of_runs(newest.values())
    return {pk: found[run.pk].percent for pk, run in newest.items() if pk}
