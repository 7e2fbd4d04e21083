"""Correct times that the database wrote while its clock was ahead.

Nothing would be checked, sent or retried before them, even years after the clock was set right (`engine.md` §4).
"""

import logging
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Model
from django.db.models.functions import Now

from deliveries_app.models import App, AppRepository
from docora.backoff import MAX_WAIT_SECONDS
from docora.db.clock import from_now
from docora.db.locks import lock_rows
from repositories_app.models import HostOutage, Repository

logger = logging.getLogger(__name__)

_TIMES: list[tuple[type[Model], str, Any]] = [
    (AppRepository, "next_check_at", Now()),
    (AppRepository, "next_sync_at", Now()),
    (AppRepository, "doubt_until", None),
    (App, "cooldown_until", None),
    (Repository, "circuit_open_until", Now()),
    (HostOutage, "retry_at", Now()),
]
"""Columns, and what replaces a time that is too far ahead."""


def correct_wrong_times() -> int:
    """Correct the times that are further ahead than Docora ever waits, and return how many there were."""
    longest = max(MAX_WAIT_SECONDS, settings.RESCAN_INTERVAL_SECONDS, settings.CIRCUIT_BREAKER_COOLDOWN_SECONDS)
    too_far = from_now(2 * longest)  # the longest wait varies by a fraction
    corrected = 0
    for model, column, replacement in _TIMES:
        rows = model._default_manager
        with transaction.atomic():
            if wrong := lock_rows(rows.filter(**{f"{column}__gt": too_far})):
                corrected += rows.filter(pk__in=wrong).update(**{column: replacement})
    if corrected:
        logger.warning("wrong_times_corrected", extra={"times": corrected})
    return corrected
