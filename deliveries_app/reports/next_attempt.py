"""Say when a watch is tried next, or what it is waiting for."""

from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries_app.models import AppRepository, StateDetail, WatchState
from docora.templatetags.docora import upcoming


@dataclass(frozen=True)
class NextAttempt:
    """A message, and the time `at` to show after it, if any: "Next try" and "in 40 s"."""

    message: str
    at: datetime | None = None

    @property
    def text(self) -> SafeString | str:
        """`Next try in 40 s`, with the exact time on hover, or only the message."""
        return format_html("{} {}", self.message, upcoming(self.at)) if self.at else self.message


_MESSAGES = {
    StateDetail.SYNCING: "Syncing now",
    StateDetail.ALL_PAUSED: "Continues when syncing is resumed",
    StateDetail.APP_PAUSED: "Continues when the app is resumed",
    StateDetail.WATCH_PAUSED: "Continues when the repository is resumed",
    StateDetail.IMPORTING: "Starts when its records are imported",
    StateDetail.WAITS_FOR_SLOT: "Starts when the app has a free slot",
}


def due_at(watch: AppRepository, hold_until: datetime | None = None) -> datetime | None:
    """Return when a worker can claim the watch: once it is due and nothing holds it back.

    `hold_until` is the time until which a file is held. Return None if nothing is due, or during a pause, which has no planned
    end. The watch must be loaded as for `next_attempt_of`.
    """
    if watch.next_sync_at is None or watch.detail.state == WatchState.PAUSED:
        return None
    moments = [watch.next_sync_at, watch.app.cooldown_until, watch.waits_until, hold_until]
    return max(moment for moment in moments if moment is not None)


def next_check_of(watch: AppRepository) -> datetime | None:
    """Return when Docora reads HEAD next, or None if only the next sync does. During a pause, it does neither.

    A failing watch that waits for its next attempt is checked meanwhile. The watch must be read `with_state`.
    """
    if watch.next_sync_at is None:
        return _check_at(watch)
    is_due = watch.next_sync_at <= timezone.now()
    if not is_due and watch.state in {WatchState.RETRYING, WatchState.FAILED}:
        return min(_check_at(watch), watch.next_sync_at)
    return None


def _check_at(watch: AppRepository) -> datetime:
    """Return when the regular check is made: not before a host that is down is tried again, or while the circuit is open."""
    moments = [watch.next_check_at, watch.host_retry_at, watch.repository.circuit_open_until]
    return max(moment for moment in moments if moment is not None)


def next_attempt_of(watch: AppRepository, *, hold_until: datetime | None = None) -> NextAttempt:
    """Return when the watch is tried next, or, with `hold_until`, one of its files that is held until then.

    The watch must be loaded `with_state` and with its app and repository.
    """
    detail = watch.detail
    if detail in _MESSAGES:
        return NextAttempt(_MESSAGES[detail])
    if detail == StateDetail.HOST_DOWN and watch.host_retry_at:
        return _planned("Next try", watch.host_retry_at, "is due")
    at = due_at(watch, hold_until)
    if at is None:
        return _planned("Next check", _check_at(watch), "is due")
    message = "Next try" if watch.is_failing or detail.state == WatchState.ON_HOLD else "Next sync"
    return _planned(message, at, "when a worker is free")


def _planned(message: str, at: datetime, once_due: str) -> NextAttempt:
    return NextAttempt(message, at) if at > timezone.now() else NextAttempt(f"{message} {once_due}")
