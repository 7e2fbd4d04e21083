"""When a watch is tried next, and what it is waiting for."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone

from deliveries_app.models import AppRepository, Status, SyncPause

_A_MOMENT = timedelta(seconds=10)  # less reads like "just now"


@dataclass(frozen=True)
class NextTry:
    """`message`, followed by the time `at` if there is one: `next try` in 40 s."""

    message: str
    at: datetime | None = None


def next_try(watch: AppRepository, pause: SyncPause | None, *, hold_until: datetime | None = None) -> NextTry:
    """Return the next attempt. The file in question is held until `hold_until`. Load the watch with app and repository."""
    if watch.status == Status.SCANNING:
        return NextTry("syncing now")
    if pause is not None:
        return NextTry("waits until syncing is resumed")
    if watch.app.paused:
        return NextTry("waits until the app is resumed")
    if watch.arriving:
        return NextTry("waits until its records are imported")
    if watch.next_sync_at is None:
        return NextTry("next check", watch.next_check_at)
    held = [watch.next_sync_at, watch.app.cooldown_until, hold_until]
    if watch.retry_count:  # the first attempt of a request is the circuit's probe
        held.append(watch.repository.circuit_open_until)
    at = max(moment for moment in held if moment is not None)
    what = "next try" if watch.is_failing else "next sync"
    return NextTry(what, at) if at > timezone.now() + _A_MOMENT else NextTry(f"{what} as soon as a worker is free")
