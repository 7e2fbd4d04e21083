"""Retry: send unacknowledged files now, with all attempts available again.

Delivery records stay as they are. To send everything again, use a re-sync.
"""

from collections.abc import Sequence

from deliveries_app import scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    BulkOperation,
    OperationKind,
    Reason,
    SyncRun,
)
from deliveries_app.permissions import Permission
from deliveries_app.progress import runs
from deliveries_app.services import requests


class NotFailed(ValueError):
    """There is nothing to retry. The wire contract defines the message."""


def retry_single(actor: Actor, watch: AppRepository) -> SyncRun:
    """Retry one failing watch now. Raises `NotFailed` if it is not failing or not watched."""
    actor.require(Permission.RETRY)
    error = NotFailed("Only failed entries can be retried")
    return requests.start_single(actor, OperationKind.RETRY, watch, _request, error=error)


def retry_by_app(actor: Actor, app: App) -> BulkOperation:
    """Retry every failing watch of one app now."""
    actor.require_app(app)
    return retry_many(actor, AppRepository.objects.filter(app=app), f"Retry all failed · {app.name}", app=app)


def retry_all(actor: Actor) -> BulkOperation:
    """Retry every failing watch of all apps now."""
    return retry_many(actor, AppRepository.objects.all(), "Retry all failed")


def retry_many(
    actor: Actor, watches: AppRepositoryQuerySet, title: str = "", *, app: App | None = None
) -> BulkOperation:
    """Retry the failing watches among these as one operation. Pass `app` if they are all of its watches.

    Raises `NotFound` if none is failing.
    """
    empty_message = "No failed notifications for this app" if app else "No failed notifications found"
    return requests.start_bulk(
        actor, OperationKind.RETRY, watches.failing(), _request, title=title, app=app, empty_message=empty_message
    )


def _request(actor: Actor, pks: Sequence[int], operation: BulkOperation | None) -> list[SyncRun]:
    """Retry these watches and return one open run for each, which replaces the watch's open runs.

    The generation stays the same: acknowledged files stay acknowledged, and a worker that is syncing continues. The
    progress of the new run counts what is sent from now on.
    """
    locked = requests.lock_watches(pks, AppRepository.objects.failing())
    remaining = runs.supersede(locked)
    AppRepository.objects.filter(pk__in=locked).update(**scheduling.ALL_ATTEMPTS, **scheduling.DUE_NOW)
    return requests.open_runs(actor, locked, Reason.RETRY, operation, remaining)
