"""Retry: send what is not acknowledged, now, with all attempts before it again. What the app holds stays as it is:
whoever wants everything sent again wants a re-sync."""

from collections.abc import Sequence

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from deliveries_app import runs
from deliveries_app.actors import Actor
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
from deliveries_app.services import audit, operations, waking
from deliveries_app.services.operations import RETRY_PERMISSION, Requested


class NotFailed(ValueError):
    """Nothing is to be retried; the message is the wire contract's."""


def retry_single(actor: Actor, pair: AppRepository) -> Requested:
    """Try one failing pair again now. `NotFailed` when it is not failing (any more), or is not watched."""
    actor.require(RETRY_PERMISSION)
    actor.require_pair(pair)
    with transaction.atomic():
        made = _request(actor, [pair.pk], None)
        if not made:
            raise NotFailed("Only failed entries can be retried")
        pair.refresh_from_db()
        audit.record(actor, [pair], f"Retry of {pair}")
        waking.enqueue(pair, "high")
    return Requested(made[0], pair.job_id)


def retry_by_app(actor: Actor, app: App) -> BulkOperation:
    """Try every failing pair of one app again now."""
    actor.require_app(app)
    pairs = AppRepository.objects.filter(app=app)
    nothing = "No failed notifications for this app"
    return retry_many(actor, pairs, f"Retry all failed · {app.name}", app=app, nothing=nothing)


def retry_all(actor: Actor) -> BulkOperation:
    """Try whatever is failing again now."""
    return retry_many(actor, AppRepository.objects.all(), "Retry all failed")


def retry_many(
    actor: Actor,
    pairs: AppRepositoryQuerySet,
    title: str = "",
    *,
    app: App | None = None,
    nothing: str = "No failed notifications found",
) -> BulkOperation:
    """Try those of these pairs that are failing, as one operation that can be watched and cancelled."""
    return operations.start(
        actor, OperationKind.RETRY, pairs.failing(), _request, title=title, app=app, nothing=nothing
    )


def _request(actor: Actor, pks: Sequence[int], operation: BulkOperation | None) -> list[SyncRun]:
    """No generation is drawn: what is acknowledged stays so, and a worker that is at it goes on. The request takes
    over what was open; its bar counts what is sent from now on."""
    locked = operations.lock(pks, AppRepository.objects.failing())
    left = runs.supersede(locked)
    rows = AppRepository.objects.filter(pk__in=locked)
    rows.update(retry_count=0, wanted=F("wanted") + 1, next_sync_at=Now())
    rows.filter(status=Status.FAILED).update(status=Status.PENDING)
    return operations.open_runs(actor, locked, Reason.RETRY, operation, left)
