"""Retry: send what is not acknowledged, now, with all attempts before it again. What the app holds stays as it is:
whoever wants everything sent again wants a re-sync."""

from collections.abc import Sequence

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from deliveries_app import scheduling
from deliveries_app.actors import RETRY_PERMISSION, Actor
from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    BulkOperation,
    OperationKind,
    Reason,
    Status,
    SyncRun,
)
from deliveries_app.progress import runs
from deliveries_app.services import audit, requests
from deliveries_app.services.requests import Requested


class NotFailed(ValueError):
    """Nothing is to be retried; the message is the wire contract's."""


def retry_single(actor: Actor, watch: AppRepository) -> Requested:
    """Try one failing watch again now. `NotFailed` when it is not failing (any more), or is not watched."""
    actor.require(RETRY_PERMISSION)
    actor.require_watch(watch)
    with transaction.atomic():
        made = _request(actor, [watch.pk], None)
        if not made:
            raise NotFailed("Only failed entries can be retried")
        watch.refresh_from_db()
        audit.record(actor, [watch], f"Retry of {watch}")
        scheduling.enqueue(watch, "high")
    return Requested(made[0], watch.job_id)


def retry_by_app(actor: Actor, app: App) -> BulkOperation:
    """Try every failing watch of one app again now."""
    actor.require_app(app)
    watches = AppRepository.objects.filter(app=app)
    nothing = "No failed notifications for this app"
    return retry_many(actor, watches, f"Retry all failed · {app.name}", app=app, nothing=nothing)


def retry_all(actor: Actor) -> BulkOperation:
    """Try whatever is failing again now."""
    return retry_many(actor, AppRepository.objects.all(), "Retry all failed")


def retry_many(
    actor: Actor,
    watches: AppRepositoryQuerySet,
    title: str = "",
    *,
    app: App | None = None,
    nothing: str = "No failed notifications found",
) -> BulkOperation:
    """Try those of these watches that are failing, as one operation that can be watched and cancelled."""
    return requests.start(
        actor, OperationKind.RETRY, watches.failing(), _request, title=title, app=app, nothing=nothing
    )


def _request(actor: Actor, pks: Sequence[int], operation: BulkOperation | None) -> list[SyncRun]:
    """No generation is drawn: what is acknowledged stays so, and a worker that is at it goes on. The request takes
    over what was open; its bar counts what is sent from now on."""
    locked = requests.lock(pks, AppRepository.objects.failing())
    left = runs.supersede(locked)
    rows = AppRepository.objects.filter(pk__in=locked)
    rows.update(retry_count=0, request_count=F("request_count") + 1, next_sync_at=Now())
    rows.filter(status=Status.FAILED).update(status=Status.PENDING)
    return requests.open_runs(actor, locked, Reason.RETRY, operation, left)
