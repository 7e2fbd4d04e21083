"""Say when a watch is tried next, or what it is waiting for."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone

from deliveries_app.models import AppRepository, Status, SyncPause

_SOON = timedelta(seconds=10)  # anything sooner is shown without a time


@dataclass(frozen=True)
class NextTry:
    """A message to show before the time `at`, if there is one: "next try" in 40 s."""

    message: str
    at: datetime | None = None


def due_at(watch: AppRepository, hold_until: datetime | None = None) -> datetime | None:
    """Return when a worker can claim the watch: once it is due and nothing holds it back. None if nothing is due."""
    if watch.next_sync_at is None:
        return None
    # The first attempt of a request is the circuit's probe; all others wait for it.
    circuit_open_until = watch.repository.circuit_open_until if watch.retry_count else None
    moments = [watch.next_sync_at, watch.app.cooldown_until, circuit_open_until, hold_until]
    return max(moment for moment in moments if moment is not None)


def next_try(watch: AppRepository, pause: SyncPause | None, *, hold_until: datetime | None = None) -> NextTry:
    """Return when the watch is tried next, or one of its files that is held until `hold_until`.

    The watch must be loaded with its app and repository.
    """
    if watch.status == Status.SCANNING:
        return NextTry("syncing now")
    if pause is not None:
        return NextTry("waits until syncing is resumed")
    if watch.app.paused:
        return NextTry("waits until the app is resumed")
    if watch.arriving:
        return NextTry("waits until its records are imported")
    if watch.waits_for_first_commit:
        return NextTry("waits for the first commit, next check", watch.next_check_at)
    at = due_at(watch, hold_until)
    if at is None:
        return NextTry("next check", watch.next_check_at)
    what = "next try" if watch.is_failing else "next sync"
    return NextTry(what, at) if at > timezone.now() + _SOON else NextTry(f"{what} as soon as a worker is free")
