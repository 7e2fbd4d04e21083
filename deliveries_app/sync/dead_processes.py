"""Processes that died while they synced: end their leases, and wait for what the app may still be processing (`engine.md` §4)."""

import logging
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import BooleanField, ExpressionWrapper, Q, QuerySet
from django.db.models.functions import Now

from deliveries_app.models import AppRepository, Delivery, Notice, Status
from deliveries_app.models.watches import is_free
from deliveries_app.sync.lease import HOLD_AFTER_TIMEOUT
from docora.db.clock import from_now
from docora.db.compiled import compiled_and_prepared
from docora.process import has_ended
from docora.redis import queues

logger = logging.getLogger(__name__)


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
            # It updates no row if another process has just done this.
            if rows.leased().update(lease_until=Now(), **doubt_from_now(watch)):
                ended += 1
                queues.forget(watch.job_id, watch.lease_owner)
                logger.warning("process_died", extra={"watch": watch.pk, "worker": watch.lease_owner})
        if watch.is_over and watch.status == Status.SCANNING:
            rows.free().filter(status=Status.SCANNING).update(status=Status.PENDING)
    return ended


@compiled_and_prepared
def _held() -> QuerySet[AppRepository]:
    """Return the watches that have a lease or are shown as syncing. `is_over`: they have no live lease."""
    held = AppRepository.objects.filter(Q(status=Status.SCANNING) | Q(lease_until__isnull=False))
    is_over = ExpressionWrapper(is_free(), output_field=BooleanField())
    return held.select_related("app", "repository").annotate(is_over=is_over)


def doubt_from_now(watch: AppRepository) -> dict[str, Any]:
    """Return the columns to set if the watch's run ends now, while the app may still be processing its requests."""
    return {"doubt_until": from_now(HOLD_AFTER_TIMEOUT)} if _was_sending(watch) else {}


def doubt_until(watch: AppRepository, now: datetime) -> datetime | None:
    """Return until when the app may still be processing requests of the process whose lease of the watch ended, or None.

    This may be later than the end of a short lease. The process sent nothing after its next extension was due.
    """
    known = watch.doubt_until
    if not _was_sending(watch):
        return known
    assert watch.lease_until is not None
    extension_was_due = watch.lease_until - timedelta(seconds=settings.LEASE_SECONDS * 5 / 6)
    until = min(extension_was_due, now) + timedelta(seconds=HOLD_AFTER_TIMEOUT)
    return max(until, known or until)


def _was_sending(watch: AppRepository) -> bool:
    """Return whether the last process may have sent something that the app has not answered."""
    return (
        Delivery.objects.filter(watch=watch, acknowledged=False).exists()
        or Notice.objects.filter(watch=watch, sequence__isnull=False).exists()
    )
