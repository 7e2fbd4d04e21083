"""Owning a watch for a while: claim, extend, share the app's slots, release (`engine.md` §4 and §7).

Lock order everywhere: app, watch, runs, operation. The app's row is locked without its key: rows that refer to it may
be written meanwhile, or a cancel that holds the watch and a claim that holds the app would wait for each other.

The lease is a column with the database's time, taken and kept by conditional UPDATE. There is no lock server, and a
worker that is frozen or cut off cannot record anything after another one has claimed.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import (
    BooleanField,
    Count,
    Exists,
    ExpressionWrapper,
    F,
    Min,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Value,
)
from django.db.models.functions import Coalesce, Least, Now

from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    Delivery,
    DeliveryFailure,
    DriftCheck,
    Notice,
    NoticeKind,
    Status,
)
from deliveries_app.models.apps import (
    MAX_SHARED_CRASHES,
    SLOT_REQUEST_SECONDS,
    app_is_full,
    has_no_cooldown,
    is_free,
    is_unpaused,
)
from deliveries_app.scheduling import in_bulk
from deliveries_app.sync import pace
from deliveries_app.sync.exceptions import Paused, Superseded
from docora.db.clock import DatabaseClock, boot_seconds, from_now
from docora.db.compiled import compiled, compiled_and_prepared
from docora.process import has_ended, process_name
from docora.redis import queues
from docora.server.worker import identity

logger = logging.getLogger(__name__)

SEND_MARGIN_SECONDS = 5.0
HOLD_AFTER_TIMEOUT = 30.0
"""How many seconds the app may still be processing a request after its timeout."""
TOO_FAR_AHEAD = 2 * HOLD_AFTER_TIMEOUT
"""A `hold_until` or `doubt_until` further ahead than this was written while the database's clock was ahead."""
_WAITING_SECONDS = 5.0  # a watch that has asked for a slot within this time waits for one
_REBALANCE_SECONDS = 1.0, 0.25
"""How often a run that has all of the app's slots checks its share, and how often any other run does.

The first check is a second after the claim, when the sync of a small repository has ended.
"""
_OVERDUE_SECONDS = 60.0


@dataclass
class Lease:
    """A claim on one watch.

    `slots` is how many notifications may be in flight. It changes as other runs of the app start and end. `written_slots` is
    the number in the watch's row. It is higher than a reduced `slots` until the requests beyond that have settled.
    """

    watch: AppRepository
    fencing_token: int
    generation: int
    slots: int
    written_slots: int
    sequence_high: int
    clock: DatabaseClock
    extended_at: float  # boot-time clock, taken *before* the UPDATE that extended
    had_failed: bool  # the watch's status before the claim was "failed"
    rebalance_at: float  # boot-time clock; a claim takes half of the free slots
    had_notices: bool
    had_listed: bool  # files that failed or are skipped
    had_check: bool  # for differences
    is_due_again: bool = False
    """Whether a sync was requested between the claim and the end."""
    seen_commit: str = ""
    """HEAD as the host named it, once it has been read."""

    @property
    def doubt_seconds(self) -> float:
        """Seconds for which the app may still be processing requests whose response was lost."""
        until = self.watch.doubt_until
        seconds = (until - self.clock.now()).total_seconds() if until else 0.0
        return max(0.0, seconds) if seconds <= TOO_FAR_AHEAD else 0.0

    @property
    def circuit_seconds(self) -> float:
        """For how many seconds the repository's circuit is open, as of the claim."""
        until = self.watch.repository.circuit_open_until
        return max(0.0, (until - self.clock.now()).total_seconds()) if until else 0.0

    @property
    def gap(self) -> float:
        """Seconds between the starts of two notifications."""
        return self.watch.app.pace_gap

    def slow_down(self) -> None:
        self._adopt(pace.slow_down(self.watch.app))

    def speed_up(self, after: float = pace.FASTER_AFTER) -> None:
        if self.watch.app.is_slowed_down:
            self._adopt(pace.speed_up(self.watch.app, after))

    def _adopt(self, app: App) -> None:
        """Follow the app's pace. If more slots are allowed, the next `rebalance` takes its share of them."""
        self.watch.app.pace_slots, self.watch.app.pace_gap = app.pace_slots, app.pace_gap
        self.slots = min(self.slots, app.slots_allowed)

    def can_send(self) -> bool:
        """Return whether a request can start now: not if another worker may have claimed the watch.

        The HTTP client asks again just before the first byte, because this process may have been frozen meanwhile.
        """
        return boot_seconds() <= self.extended_at + settings.LEASE_SECONDS - SEND_MARGIN_SECONDS

    @property
    def extension_is_due(self) -> bool:
        return boot_seconds() >= self.extended_at + settings.LEASE_SECONDS / 6

    def reserve_sequences(self, count: int) -> int:
        """Reserve `count` new sequence numbers and return the first. The next `extend` stores them."""
        first = max(self.sequence_high + 1, _microseconds(self.clock))
        self.sequence_high = first + count - 1
        return first

    def extend(self, **changes: Any) -> None:
        """Check that the watch is still ours, extend the lease by `LEASE_SECONDS` and write `changes`.

        Raises `Superseded` if it is not. This is the first statement of every transaction that records something.
        """
        started = boot_seconds()
        until = from_now(settings.LEASE_SECONDS)
        if _own.update(*self._claim, lease_until=until, sequence_high=self.sequence_high, **changes) != 1:
            raise Superseded
        self.extended_at = started

    @property
    def _claim(self) -> tuple[int, int, int]:
        """The arguments of `_own` and `_own_unless_requested`."""
        return self.watch.pk, self.fencing_token, self.generation

    def keep_alive(self) -> None:
        """Keep the watch from being claimed while requests of a superseded claim settle. Records nothing."""
        started = boot_seconds()
        AppRepository.objects.filter(pk=self.watch.pk, fencing_token=self.fencing_token).update(
            lease_until=from_now(settings.LEASE_SECONDS)
        )
        self.extended_at = started

    def release(self, *, in_doubt: bool = False) -> None:
        """Release the watch after being superseded. The new request is due at once.

        `in_doubt`: the app may still be processing a request, so nothing else may be sent for a while.
        """
        doubt = {"doubt_until": from_now(HOLD_AFTER_TIMEOUT)} if in_doubt else {}
        AppRepository.objects.filter(pk=self.watch.pk, fencing_token=self.fencing_token).update(
            lease_until=None, lease_slots=0, **doubt
        )

    def finish(self, *, next_sync_in: float | None, **changes: Any) -> None:
        """Record the end and release the watch. Raises `Superseded`.

        The watch is due again in `next_sync_in` seconds (None: nothing to do), or earlier for a notice that could not be
        sent. If a sync was requested after the claim, it stays due.
        """
        changes |= {
            "lease_until": None,
            "lease_slots": 0,
            "sequence_high": self.sequence_high,
            "seen_commit": self.seen_commit,
        }
        if _own_unless_requested.update(*self._claim, next_sync_at=self._next_sync(next_sync_in), **changes) != 1:
            if _own.update(*self._claim, **changes) != 1:
                raise Superseded
            self.is_due_again = True

    def _next_sync(self, seconds: float | None) -> Any:
        planned: Any = None if seconds is None else from_now(seconds)
        if not self.had_notices:  # a notice added after the claim also requests a sync
            return planned
        waiting = Notice.objects.filter(watch=self.watch, kind=NoticeKind.SYNC_FAILED).aggregate(at=Min("due_at"))["at"]
        if waiting is None:
            return planned
        # An overdue notice could not be sent, for example because a key is lost. The watch must not be claimed in a loop.
        wake: Any = Value(waiting) if waiting > self.clock.now() else from_now(_OVERDUE_SECONDS)
        return wake if seconds is None else Least(planned, wake)

    def retry_was_requested(self) -> bool:
        """Return whether a person has requested a retry since the claim, which resets the number of attempts.

        Locks the watch. Call this inside the transaction that ends the attempt.
        """
        row = AppRepository.objects.select_for_update().filter(pk=self.watch.pk)
        attempts = row.values_list("retry_count", flat=True).first()
        return attempts is not None and attempts < self.watch.retry_count

    def endpoint_answers(self) -> None:
        """Record that the endpoint works, so that all repositories of an app that was down continue."""
        if self.watch.app.down_count:
            App.objects.filter(pk=self.watch.app_id, down_count__gt=0).update(down_count=0, cooldown_until=None)
            self.watch.app.down_count = 0

    def rebalance(self, in_flight: int, *, at_once: bool = False) -> None:
        """Take the fair share of the app's slots: every `_REBALANCE_SECONDS` or `at_once`.

        A smaller share is written once no more than that is in flight, so that slots are free before another run takes them.
        Until then, nothing new is sent. Raises `Paused` if the watch, its app or all syncing was paused meanwhile, if another
        run has put the app on hold, if its base URL has changed, or if it now allows fewer notifications than it has runs.
        """
        if not at_once and boot_seconds() < self.rebalance_at:
            return
        if not self.slots == self.written_slots == self._share():
            with transaction.atomic():
                App.objects.select_for_update(no_key=True).only("pk").get(pk=self.watch.app_id)
                self.slots = self._share()  # again: other runs may have changed theirs before this one had the lock
                self.written_slots = max(self.slots, in_flight)
                rows = AppRepository.objects.filter(pk=self.watch.pk, fencing_token=self.fencing_token)
                rows.update(lease_slots=self.written_slots)
        self.rebalance_at = boot_seconds() + _REBALANCE_SECONDS[self.slots < self.watch.app.slots_allowed]

    def without_slot(self) -> AppRepositoryQuerySet:
        """Return the app's watches that have waited for a slot for a second and that this run can't give one to without ending.

        Those of bulk operations are left out: they wait for runs, as in the queue. None if this run has several slots, because
        it shares them.
        """
        if self.slots > 1:
            return AppRepository.objects.none()
        due = AppRepository.objects.due().free().filter(app_is_full(), ~in_bulk(), app=self.watch.app_id)
        return due.filter(next_sync_at__lt=from_now(-SLOT_REQUEST_SECONDS))

    def _share(self) -> int:
        """Return the run's share of the app's slots: one part for each run, and one for all watches that wait for a slot.

        Waiting watches get their slots one after another: if slots were kept for several at once, some would stay unused.
        Slots left over go to the watches with the lowest primary keys. Adopts the app's pace. Raises `Paused`.
        """
        app: Any
        [app] = _app_with_runs(self.watch.app_id, self.watch.pk)
        is_moved = app.base_url != self.watch.app.base_url
        if not app.may_continue or is_moved or app.earlier >= app.max_in_flight:
            raise Paused  # again at every call, because some callers ignore it
        self._adopt(app)
        share, left_over = divmod(app.slots_allowed, 1 + app.others + app.waits)
        share += app.earlier < left_over
        # No more than the limit at the claim: the run's client may have no more connections.
        return max(1, int(min(share, app.slots_allowed - app.taken, self.watch.app.max_in_flight)))


def claim(watch_pk: int, *, alone: bool = True) -> Lease | None:
    """Claim the watch if it is due and free. Return None if it is not, or if the app has no free slot.

    In the latter case, ask for a slot: the app's running watches then share theirs. `alone`: this process syncs no other
    watch meanwhile. Otherwise, a watch that needs its own process is not claimed.
    """
    started = boot_seconds()
    with transaction.atomic():
        # Two statements, so that the second sees what others have committed while the first waited for the app's row.
        apps = _locked_app(watch_pk)
        due: list[Any] = _locked_if_due(watch_pk)
        if not apps or not due or (due[0].needs_own_process and not alone):
            return None
        [app], [watch] = apps, due
        watch.app = app
        # An endpoint that was down gets one request from one watch before all the others continue.
        free = app.slots_allowed - watch.taken if not app.down_count else (1 if not watch.taken else 0)
        if free < 1:
            AppRepository.objects.filter(pk=watch_pk).update(slots_requested_at=Now())
            return None
        # Take half of the free slots, so that the next watch finds some. A small sync ends before slots are shared again.
        return _take(watch, max(1, free // 2), started)


@compiled_and_prepared
def _watch(watch_pk: int) -> QuerySet[AppRepository]:
    return AppRepository.objects.filter(pk=watch_pk)


@compiled_and_prepared
def _own(watch_pk: int, fencing_token: int, generation: int) -> QuerySet[AppRepository]:
    """Return the watch if that claim still owns it."""
    return AppRepository.objects.filter(pk=watch_pk, fencing_token=fencing_token, generation=generation)


@compiled_and_prepared
def _own_unless_requested(watch_pk: int, fencing_token: int, generation: int) -> QuerySet[AppRepository]:
    """Return the watch if that claim still owns it and no sync was requested since."""
    rows = AppRepository.objects.filter(pk=watch_pk, fencing_token=fencing_token, generation=generation)
    return rows.filter(request_count=F("claimed_request_count"))


@compiled_and_prepared
def _locked_app(watch_pk: int) -> QuerySet[App]:
    return App.objects.select_for_update(of=("self",), no_key=True).filter(watches=watch_pk)


@compiled_and_prepared
def _locked_if_due(watch_pk: int) -> QuerySet[AppRepository]:
    """Return the watch, locked, if it is due and free, with everything else that a claim reads."""
    own = {"watch_id": OuterRef("pk")}
    others = _other_leases(OuterRef("app_id"), OuterRef("pk"))
    taken = others.order_by().values("app_id").annotate(taken=Sum("lease_slots")).values("taken")
    due = AppRepository.objects.filter(pk=watch_pk).due().free().select_related("repository")
    return due.select_for_update(of=("self",)).annotate(
        database_now=Now(),
        taken=Coalesce(Subquery(taken), 0),
        had_notices=Exists(Notice.objects.filter(**own)),
        had_listed=Exists(DeliveryFailure.objects.filter(**own)),
        had_check=Exists(DriftCheck.objects.open().filter(**own)),
    )


def _take(watch: Any, slots: int, started: float) -> Lease:
    """Write the claim into the row, which is locked, and into `watch`, which has the annotations of `_locked_if_due`.

    An attempt whose process died counts only if the process synced no other watch: any of them could have killed it. Only
    deaths let the count exceed the limit, even if the limit was lowered since the last attempt.
    """
    died = watch.lease_until is not None
    died_in_shared_process = died and watch.crash_count < MAX_SHARED_CRASHES
    had_failed = watch.status == Status.FAILED
    attempts = watch.retry_count if died else min(watch.retry_count, settings.MAX_RETRY_ATTEMPTS - 1)
    changes = {
        "fencing_token": watch.fencing_token + 1,
        "claimed_request_count": watch.request_count,
        # At least 1, because a person may have set it to 0 before the process died.
        "retry_count": max(1, attempts + (0 if died_in_shared_process else 1)),
        "crash_count": watch.crash_count + (1 if died_in_shared_process else 0),
        "status": Status.SCANNING,
        "lease_slots": slots,
        "lease_owner": identity()[:100],
        "lease_process": process_name(),
        "slots_requested_at": None,
        "doubt_until": _doubt_until(watch) if died else watch.doubt_until,
    }
    _watch.update(watch.pk, lease_until=from_now(settings.LEASE_SECONDS), **changes)
    for name, value in changes.items():
        setattr(watch, name, value)
    clock = DatabaseClock(watch.database_now)
    high = max(watch.sequence_high + 1, _microseconds(clock))  # written by `extend`, before anything is sent
    return Lease(
        watch,
        watch.fencing_token,
        watch.generation,
        slots,
        slots,
        high,
        clock,
        started,
        had_failed,
        started + _REBALANCE_SECONDS[0],
        watch.had_notices,
        watch.had_listed,
        watch.had_check,
    )


def _doubt_until(watch: Any) -> datetime | None:
    """Return until when the app may still be processing requests of the process that held the lease, or None.

    This may be later than the end of a short lease. The process sent nothing after its next extension was due.
    """
    known: datetime | None = watch.doubt_until
    if not _was_sending(watch):
        return known
    extension_was_due = watch.lease_until - timedelta(seconds=settings.LEASE_SECONDS * 5 / 6)
    until: datetime = min(extension_was_due, watch.database_now) + timedelta(seconds=HOLD_AFTER_TIMEOUT)
    return max(until, known or until)


def _was_sending(watch: AppRepository) -> bool:
    """Return whether the last process may have sent something that the app has not answered."""
    return (
        Delivery.objects.filter(watch=watch, acknowledged=False).exists()
        or Notice.objects.filter(watch=watch, sequence__isnull=False).exists()
    )


def end_dead_leases() -> int:
    """End the leases of processes that died on this machine, so that their watches can be claimed at once.

    A watch whose lease has ended is shown as pending, not as syncing. Return how many leases were ended.
    """
    ended = 0
    held: list[Any] = _held()
    for watch in held:
        rows = AppRepository.objects.filter(pk=watch.pk, fencing_token=watch.fencing_token)
        if not watch.is_over and has_ended(watch.lease_process):
            watch.is_over = True
            doubt = {"doubt_until": from_now(HOLD_AFTER_TIMEOUT)} if _was_sending(watch) else {}
            if rows.leased().update(lease_until=Now(), **doubt):  # otherwise another process has just done it
                ended += 1
                queues.forget(watch.job_id, watch.lease_owner)
                logger.warning("process_died", extra={"watch": watch.pk, "worker": watch.lease_owner})
        if watch.is_over and watch.status == Status.SCANNING:
            rows.free().filter(status=Status.SCANNING).update(status=Status.PENDING)
    return ended


@compiled
def _app_with_runs(app_pk: int, watch_pk: int) -> QuerySet[App]:
    """Return the app's pace, with everything that a run of the watch needs to take its share of the slots.

    - `may_continue`: no pause and no cooldown of the endpoint stops this run.
    - `others` is the number of the app's other runs, and `taken` the number of their slots.
    - `earlier` is how many of the other runs are of watches with a lower primary key.
    - `waits`: another watch waits for a slot.
    """
    others = _other_leases(OuterRef("pk"), watch_pk).order_by().values("app_id")
    asking = AppRepository.objects.alive().free().filter(app_id=OuterRef("pk")).exclude(pk=watch_pk)
    own = AppRepository.objects.filter(is_unpaused() & has_no_cooldown(), pk=watch_pk)
    number = Count("pk")
    return (
        App.objects.filter(pk=app_pk)
        .only("base_url", "pace_slots", "pace_gap", "max_in_flight")
        .annotate(
            may_continue=Exists(own),
            others=Coalesce(Subquery(others.annotate(n=number).values("n")), 0),
            earlier=Coalesce(Subquery(others.filter(pk__lt=watch_pk).annotate(n=number).values("n")), 0),
            taken=Coalesce(Subquery(others.annotate(n=Sum("lease_slots")).values("n")), 0),
            waits=Exists(asking.filter(slots_requested_at__gt=from_now(-_WAITING_SECONDS))),
        )
    )


@compiled_and_prepared
def _held() -> QuerySet[AppRepository]:
    """Return the watches that have a lease or are shown as syncing. `is_over`: they have no live lease."""
    held = AppRepository.objects.filter(Q(status=Status.SCANNING) | Q(lease_until__isnull=False))
    is_over = ExpressionWrapper(is_free(), output_field=BooleanField())
    return held.select_related("app", "repository").annotate(is_over=is_over)


def _other_leases(app_pk: int | OuterRef, watch_pk: int | OuterRef) -> QuerySet[AppRepository]:
    return AppRepository.objects.filter(app_id=app_pk).leased().exclude(pk=watch_pk)


def _microseconds(clock: DatabaseClock) -> int:
    """Return the clock's time in Unix microseconds, which is the lower limit of new sequences.

    They stay below 2**53 until the year 2255, and also grow when the database is restored or a repository is watched again.
    """
    return int(clock.now().timestamp() * 1_000_000)
