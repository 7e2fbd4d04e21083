"""Say when a watch is tried next, or what it is waiting for."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone

from deliveries_app.models import AppRepository, Status, SyncPause
from repositories_app.models import HostOutage

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


def outage_of(watch: AppRepository, outages: Iterable[HostOutage]) -> HostOutage | None:
    """Return the outage of the watch's git host, if it is among these."""
    return next((outage for outage in outages if watch.repository.canonical_url.startswith(outage.host)), None)


def next_try(
    watch: AppRepository,
    pause: SyncPause | None,
    outages: Iterable[HostOutage],
    *,
    hold_until: datetime | None = None,
) -> NextTry:
    """Return when the watch is tried next, or one of its files that is held until `hold_until`.

    The watch must be loaded with its app and repository. `outages` are those of all git hosts.
    """
    if watch.status == Status.SCANNING:
        return NextTry("syncing now")
    if pause is not None:
        return NextTry("waits until syncing is resumed")
    if watch.app.paused:
        return NextTry("waits until the app is resumed")
    if watch.arriving:
        return NextTry("waits until its records are imported")
    if outage := outage_of(watch, outages):
        return NextTry("on hold until its git host can be reached, next try", outage.retry_at)
    if watch.waits_for_first_commit:
        return NextTry("waits for the first commit, next check", watch.next_check_at)
    at = due_at(watch, hold_until)
    if at is None:
        return NextTry("next check", watch.next_check_at)
    what = "next try" if watch.is_failing else "next sync"
    return NextTry(what, at) if at > timezone.now() + _SOON else NextTry(f"{what} as soon as a worker is free")
