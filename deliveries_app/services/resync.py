"""Force re-sync: clear the delivery records, queue a fresh snapshot job, send everything again (`engine.md` §3).

Clearing is one number: the floor below which no row counts as delivered. The old rows stay, because they tell which
files the app may hold and has to be told to delete.
"""

from collections.abc import Sequence

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.causes import NO_TROUBLE
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
from deliveries_app.services.operations import RESYNC_PERMISSION, NotFound, Requested


def resync_single(actor: Actor, pair: AppRepository, *, checked: bool = False) -> Requested:
    """Send everything of one pair again, whatever it is doing now. `checked`: the caller had its own permission."""
    if not checked:
        actor.require(RESYNC_PERMISSION)
    actor.require_pair(pair)
    with transaction.atomic():
        made = _request(actor, [pair.pk], None)
        if not made:
            raise NotFound("App-repository link not found")
        pair.refresh_from_db()
        audit.record(actor, [pair], f"Forced re-sync of {pair}")
        waking.enqueue(pair, "high")
    return Requested(made[0], pair.job_id)


def resync_by_app(actor: Actor, app: App) -> BulkOperation:
    """Send everything of every repository of one app again."""
    actor.require_app(app)
    pairs = AppRepository.objects.filter(app=app)
    return resync_many(actor, pairs, f"Re-sync all · {app.name}", app=app, nothing="No repositories for this app")


def resync_many(
    actor: Actor,
    pairs: AppRepositoryQuerySet,
    title: str = "",
    *,
    app: App | None = None,
    nothing: str = "No watched repositories are selected",
) -> BulkOperation:
    """Send everything of these pairs again, as one operation that can be watched and cancelled."""
    return operations.start(actor, OperationKind.RESYNC, pairs.alive(), _request, title=title, app=app, nothing=nothing)


def _request(actor: Actor, pks: Sequence[int], operation: BulkOperation | None) -> list[SyncRun]:
    """The re-sync itself: one UPDATE clears the records and fences whoever is at work; one open run for each pair."""
    locked = operations.lock(pks, AppRepository.objects.alive())
    AppRepository.objects.filter(pk__in=locked).update(
        generation=F("generation") + 1,
        resend_floor=F("generation") + 1,
        status=Status.PENDING,
        retry_count=0,
        wanted=F("wanted") + 1,
        next_sync_at=Now(),
        **NO_TROUBLE,
    )
    return operations.open_runs(actor, locked, Reason.RESYNC, operation)
