"""What an unfinished operation or sync is doing now: making progress, with its rate, or waiting, with the reason.

The rate and the estimated time left are shown only while files are being acknowledged. Both come from the last seconds
(`docora.redis.live_counters`), because an average since the start changes too slowly.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

from django.db.models import Min, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone

from deliveries_app.models import (
    AppRepository,
    BulkOperation,
    CanaryState,
    Result,
    StateDetail,
    SyncRun,
    WatchState,
    is_in_progress,
)
from deliveries_app.models.watches import is_syncing
from deliveries_app.progress.live import Progress
from docora.db.compiled import compiled
from docora.redis.connection import write_problem
from docora.text import format_estimate

STALLED_SECONDS = 20.0
_PAUSES = (StateDetail.ALL_PAUSED, StateDetail.APP_PAUSED, StateDetail.WATCH_PAUSED)
_ORDER = [
    StateDetail.WAITS_FOR_WORKER,
    StateDetail.WAITS_FOR_SLOT,
    StateDetail.SCHEDULED,
    StateDetail.RETRYING,
    StateDetail.COOLDOWN,
    StateDetail.CIRCUIT_OPEN,
    StateDetail.HOST_DOWN,
    StateDetail.IMPORTING,
    *_PAUSES,
]
"""An operation shows the first of these that one of its repositories is in: the one closest to making progress."""


def _latest(*holds: str) -> Greatest:
    """Return an expression for when a watch is due and these holds are over."""
    return Greatest("next_sync_at", *(Coalesce(hold, "next_sync_at") for hold in holds))


_NEXT_TRIES: dict[StateDetail, Any] = {
    StateDetail.RETRYING: Min("next_sync_at"),
    StateDetail.COOLDOWN: Min(_latest("app__cooldown_until")),
    StateDetail.CIRCUIT_OPEN: Min(_latest("app__cooldown_until", "repository__circuit_open_until")),
    StateDetail.HOST_DOWN: Min("host_retry_at"),
}
"""When the first of the watches in each of these details is tried next, by the rules of `reports.next_attempt`."""


@dataclass(frozen=True)
class Activity:
    """`style` and `label` are those of the badge; `text` gives details, such as the reason for waiting.

    `rate` is in files per second, `seconds_left` is an estimate. Both are None unless files are being acknowledged.
    `next_try` is when the first repository of an operation that is on hold or retrying is tried next.
    """

    style: str
    label: str
    text: str = ""
    rate: float | None = None
    seconds_left: float | None = None
    next_try: datetime | None = None

    @classmethod
    def of(cls, state: Result | WatchState, text: str = "") -> Self:
        """Return an activity with the badge of this state."""
        return cls(state.value, str(state.label), text)

    @property
    def pace(self) -> str:
        """`12 files/s`, `0.4 files/s`, or an empty string while nothing moves."""
        if self.rate is None:
            return ""
        return f"{self.rate:,.0f} files/s" if self.rate >= 9.5 else f"{self.rate:.1f} files/s"

    @property
    def time_left(self) -> str:
        """`about 3 min left`, or an empty string if unknown."""
        if self.seconds_left is None:
            return ""
        return f"{format_estimate(self.seconds_left)} left"


def of_operation(operation: BulkOperation, progress: Progress) -> Activity | None:
    """Return what an operation is doing, or None once it has ended. One query while it moves, a few while it waits."""
    if progress.finished:
        return None
    moves = progress.movement is not None and progress.movement.idle < STALLED_SECONDS
    # `_details` also shows whether a watch is syncing, but takes longer.
    is_syncing = moves and bool(_a_syncing_watch(operation.pk))
    details = {StateDetail.SYNCING: {}} if is_syncing else {row["state_detail"]: row for row in _details(operation.pk)}
    if StateDetail.SYNCING in details:
        doing = _syncing(progress)
        if doing.seconds_left is None or not progress.unreleased:
            return doing
        if not operation.pace:  # unreleased watches wait only for a canary
            return replace(doing, seconds_left=None)
        return replace(doing, seconds_left=max(doing.seconds_left, progress.unreleased * 60 / operation.pace))
    if not details and progress.unreleased:
        open_canaries = operation.canaries.filter(state=CanaryState.RUNNING, run__outcome="")
        if not open_canaries.exists():
            return _releasing(operation)
        return Activity.of(WatchState.QUEUED, "waiting for a later request for the first repository")
    if not details and operation.runs.filter(outcome="").exists():
        return Activity.of(Result.SUPERSEDED, "a later request is in progress")
    detail = next((detail for detail in _ORDER if detail in details), StateDetail.WAITS_FOR_WORKER)
    next_try = details[detail][detail.name] if detail in _NEXT_TRIES else None
    return replace(_waiting(detail), next_try=next_try if next_try and next_try > timezone.now() else None)


@compiled
def _details(operation_pk: int) -> QuerySet[AppRepository, dict[str, Any]]:
    """Return the different details of the watches with an open run, unless a later request superseded it.

    Each comes with the times of `_NEXT_TRIES`, by the names of their details.
    """
    watches: Any = AppRepository.objects.filter(pk__in=_open_runs(operation_pk).values("watch"))
    next_tries = {detail.name: expression for detail, expression in _NEXT_TRIES.items()}
    return watches.with_state().order_by().values("state_detail").annotate(**next_tries)  # type: ignore[no-any-return]


@compiled
def _a_syncing_watch(operation_pk: int) -> QuerySet[AppRepository]:
    # Start from the few watches that are syncing, and read the newest open run of each. With `_open_runs`, PostgreSQL would read
    # all open runs of the operation for each of them, because its statistics usually know of few.
    open_runs = SyncRun.objects.filter(watch=OuterRef("pk"), outcome="").order_by("-generation", "-pk")
    syncing = AppRepository.objects.filter(is_syncing()).alias(current=Subquery(open_runs.values("operation")[:1]))
    return syncing.filter(current=operation_pk).order_by().only("pk")[:1]


def _open_runs(operation_pk: int) -> QuerySet[SyncRun]:
    return SyncRun.objects.filter(is_in_progress(), operation=operation_pk).order_by()


def _releasing(operation: BulkOperation) -> Activity:
    """Return what an operation without open runs is waiting for before it releases more."""
    if operation.is_held:
        return Activity.of(Result.HELD)
    watches: Any = AppRepository.objects.filter(pending_releases__operation=operation)
    if not watches.unpaused().exists():
        details = set(watches.with_state().order_by().values_list("state_detail", flat=True))
        return _waiting(next((detail for detail in _PAUSES if detail in details), StateDetail.IMPORTING))
    text = "releasing the next repository shortly"
    seconds = (operation.next_release_at - timezone.now()).total_seconds() if operation.next_release_at else 0.0
    if seconds > 1:
        text = f"next repository in {_exact(seconds)}"
    return Activity.of(WatchState.QUEUED, text)


def of_run(run: SyncRun, watch: AppRepository, progress: Progress) -> Activity | None:
    """Return what the newest run of a watch is doing, or None once it has ended. The watch must be read `with_state`."""
    if run.outcome:
        return None
    if watch.state == WatchState.SYNCING:
        return _syncing(progress)
    return _waiting(watch.detail)


def _waiting(detail: StateDetail) -> Activity:
    text = str(detail.label)
    if detail == StateDetail.RETRYING:
        text = "waiting for the next attempt"
    elif detail == StateDetail.WAITS_FOR_WORKER and write_problem():  # workers get their jobs from it
        text = "waiting for Redis, which isn't responding or rejects writes"
    return Activity.of(detail.state, text)


def _syncing(progress: Progress) -> Activity:
    if progress.started_at is None:
        return Activity.of(WatchState.SYNCING, "reading the repository")
    movement = progress.movement
    if movement and movement.idle >= STALLED_SECONDS:
        return Activity("stalled", "Stalled", f"nothing acknowledged for {_exact(movement.unacknowledged)}")
    rate = movement.rate if movement else None
    left = progress.files_left / rate if rate else None
    return replace(Activity.of(WatchState.SYNCING), rate=rate, seconds_left=left)


def _exact(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min"
