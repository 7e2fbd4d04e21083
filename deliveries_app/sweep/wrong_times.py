"""Correct times that the database wrote while its clock was ahead.

Otherwise nothing would be checked, sent or retried before those times, and counts and paces would not change, even
years after the clock was corrected (`engine.md` §4).
"""

import logging
from functools import reduce
from operator import or_
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Model, Q
from django.db.models.functions import Now

from deliveries_app.models import AlertChannel, App, AppRepository, ContactMail, Notice
from deliveries_app.monitoring.alerts.contacts import GATHER_SECONDS as MAILS_SECONDS
from deliveries_app.monitoring.alerts.notify import GATHER_SECONDS as ALERTS_SECONDS
from deliveries_app.sweep.head_checks import TAKEN_SECONDS
from deliveries_app.sync.lease import TOO_FAR_AHEAD
from docora.backoff import MAX_WAIT_SECONDS
from docora.db.clock import from_now
from docora.db.locks import lock_rows
from repositories_app.models import HostOutage, Repository

logger = logging.getLogger(__name__)

_DUE: dict[type[Model], dict[str, Any]] = {
    AppRepository: {"next_check_at": Now(), "next_sync_at": Now()},
    App: {"cooldown_until": None},
    Repository: {"circuit_open_until": Now()},
    HostOutage: {"retry_at": Now()},
    Notice: {"due_at": Now()},
    AlertChannel: {"due_at": None},
    ContactMail: {"due_at": None},
}
"""Columns of times until which something waits, and the replacement for a time that is too far ahead."""
_PAST: dict[type[Model], dict[str, Any]] = {
    AppRepository: {"doubt_until": None, "pushed_at": None, "slots_requested_at": None, "failing_since": Now()},
    App: {"paced_at": None, "resyncs_used_at": Now()},
    Repository: {"last_failure_at": Now()},
    HostOutage: {"since": Now()},
    AlertChannel: {"reminded_at": Now()},
    ContactMail: {"sent_at": Now()},
}
"""The same for times of past events. `doubt_until` is never more than `HOLD_AFTER_TIMEOUT` after such an event."""


def _is_checked_too_late() -> Q:
    """Select watches without a due sync whose next check is later than it ever is without a failure.

    After a failure, a git host can ask for an hour. Without this, no push would be found during the hour that a clock was
    ahead.
    """
    latest = from_now(2 * max(settings.RESCAN_INTERVAL_SECONDS, TAKEN_SECONDS))
    return Q(next_sync_at=None, next_check_at__gt=latest)


def _gathers_for_too_long() -> Q:
    """Select channels and mails that wait without a failure, for longer than messages are gathered.

    Without this, no alert would be sent during the hour that a clock was ahead.
    """
    return Q(attempts=0, due_at__gt=from_now(2 * max(ALERTS_SECONDS, MAILS_SECONDS)))


def correct_wrong_times() -> int:
    """Correct times that are further ahead than Docora ever waits. Return how many there were."""
    longest = max(MAX_WAIT_SECONDS, settings.RESCAN_INTERVAL_SECONDS, settings.CIRCUIT_BREAKER_COOLDOWN_SECONDS)
    corrected = 0
    for model, due in _DUE.items():
        past = _PAST.get(model, {})
        # The longest wait varies by a fraction.
        wrong = {column: Q(**{f"{column}__gt": from_now(2 * longest)}) for column in due}
        wrong |= {column: Q(**{f"{column}__gt": from_now(TOO_FAR_AHEAD)}) for column in past}
        if model is AppRepository:
            wrong["next_check_at"] |= _is_checked_too_late()
        if model in {AlertChannel, ContactMail}:
            wrong["due_at"] |= _gathers_for_too_long()
        rows = model._default_manager.filter(reduce(or_, wrong.values()))
        if not rows.exists():
            continue
        with transaction.atomic():
            locked = model._default_manager.filter(pk__in=lock_rows(rows))
            for column, replacement in (due | past).items():
                corrected += locked.filter(wrong[column]).update(**{column: replacement})
    if corrected:
        logger.warning("wrong_times_corrected", extra={"times": corrected})
    return corrected
