"""Own a watch for a while: check that it is still ours, extend the lease, release it (`engine.md` §4).

The lease is a column with the database's time, taken under the row's lock and kept by conditional UPDATE. There is no
lock server, and a worker that is frozen or cut off cannot record anything after another one has claimed.
"""

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import F, Min, QuerySet, Value
from django.db.models.functions import Least

from deliveries_app.models import AppRepository, Notice, NoticeKind
from deliveries_app.sync.exceptions import Superseded
from deliveries_app.sync.slots import Slots
from docora.db.clock import DatabaseClock, boot_seconds, from_now
from docora.db.compiled import compiled_and_prepared

SEND_MARGIN_SECONDS = 5.0
HOLD_AFTER_TIMEOUT = 30.0
"""How many seconds the app may still be processing a request after its timeout."""
TOO_FAR_AHEAD = 2 * HOLD_AFTER_TIMEOUT
"""A `hold_until` or `doubt_until` further ahead than this was written while the database's clock was ahead."""
_OVERDUE_SECONDS = 60.0


@dataclass
class Lease:
    """A claim on one watch, made by `claim`."""

    watch: AppRepository
    fencing_token: int
    generation: int
    slots: Slots
    sequence_high: int
    clock: DatabaseClock
    extended_at: float  # boot-time clock, taken *before* the UPDATE that extended
    had_failed: bool  # the watch's status before the claim was "failed"
    had_notices: bool
    had_listed: bool  # there was a list of failed or skipped files
    had_check: bool  # a check for differences was open
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

    def can_send(self) -> bool:
        """Return whether a request can start now: not if another worker may have claimed the watch.

        The HTTP client asks again just before the first byte, because this process may have been frozen meanwhile.
        """
        return boot_seconds() <= self.extended_at + settings.LEASE_SECONDS - SEND_MARGIN_SECONDS

    @property
    def has_expired(self) -> bool:
        """Return whether another worker may have claimed the watch."""
        return boot_seconds() > self.extended_at + settings.LEASE_SECONDS

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
        """Release the watch after being superseded. The request that superseded this claim is due already.

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
        row = AppRepository.objects.select_for_update(no_key=True).filter(pk=self.watch.pk)
        attempts = row.values_list("retry_count", flat=True).first()
        return attempts is not None and attempts < self.watch.retry_count


@compiled_and_prepared
def _own(watch_pk: int, fencing_token: int, generation: int) -> QuerySet[AppRepository]:
    """Return the watch if that claim still owns it."""
    return AppRepository.objects.filter(pk=watch_pk, fencing_token=fencing_token, generation=generation)


@compiled_and_prepared
def _own_unless_requested(watch_pk: int, fencing_token: int, generation: int) -> QuerySet[AppRepository]:
    """Return the watch if that claim still owns it and no sync was requested since."""
    rows = AppRepository.objects.filter(pk=watch_pk, fencing_token=fencing_token, generation=generation)
    return rows.filter(request_count=F("claimed_request_count"))


def _microseconds(clock: DatabaseClock) -> int:
    """Return the clock's time in Unix microseconds, which is the lower limit of new sequences.

    They stay below 2**53 until the year 2255, and also grow when the database is restored or a repository is watched again.
    """
    return int(clock.now().timestamp() * 1_000_000)
