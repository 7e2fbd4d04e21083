"""Prepare the deletion of users. Their runs, bulk operations and checks are kept, with the copied name."""

from collections.abc import Iterable
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from deliveries_app.models import BulkOperation, DriftCheck, SyncRun

_SLICE = 1000


def detach_history(users: Iterable[Any]) -> None:
    """Clear these users from their runs, bulk operations and checks. Call this outside a transaction, before deleting them.

    Django's deletion would do so in one transaction that locks operations before runs. Everything else locks them the other
    way round, so it could deadlock with a worker or a cancel.
    """
    pks = [user.pk for user in users]
    for model in (SyncRun, BulkOperation, DriftCheck):
        while _detach_slice(model._default_manager.filter(user__in=pks).order_by()):
            pass


def _detach_slice(rows: QuerySet[Any]) -> int:
    """Clear the user of some rows in a transaction that never waits for a lock while it holds another. Return their number."""
    with transaction.atomic():
        free = rows.select_for_update(skip_locked=True, no_key=True).values_list("pk", flat=True)
        locked = rows.select_for_update(no_key=True).values_list("pk", flat=True)
        return rows.filter(pk__in=list(free[:_SLICE]) or list(locked[:1])).update(user=None)
