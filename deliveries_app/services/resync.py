"""Force re-sync: clear the delivery records, queue a fresh snapshot job, send everything again (`engine.md` §3).

Clearing is one number: the floor below which no row counts as delivered. The old rows stay, because they tell which
files the app may hold and has to be told to delete.
"""

from collections.abc import Sequence

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from deliveries_app import scheduling
from deliveries_app.actors import RESYNC_PERMISSION, Actor
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
from deliveries_app.models.root_causes import CLEARED_FAILURE
from deliveries_app.services import audit, requests
from deliveries_app.services.requests import NotFound, Requested


def resync_single(actor: Actor, watch: AppRepository, *, skip_permission_check: bool = False) -> Requested:
    """Send everything of one watch again, whatever it is doing now. `skip_permission_check`: the caller has checked its own permission."""
    if not skip_permission_check:
        actor.require(RESYNC_PERMISSION)
    actor.require_watch(watch)
    with transaction.atomic():
        made = _request(actor, [watch.pk], None)
        if not made:
            raise NotFound("App-repository link not found")
        watch.refresh_from_db()
        audit.record(actor, [watch], f"Forced re-sync of {watch}")
        scheduling.enqueue(watch, "high")
    return Requested(made[0], watch.job_id)


def resync_by_app(actor: Actor, app: App) -> BulkOperation:
    """Send everything of every repository of one app again."""
    actor.require_app(app)
    watches = AppRepository.objects.filter(app=app)
    return resync_many(actor, watches, f"Re-sync all · {app.name}", app=app, nothing="No repositories for this app")


def resync_many(
    actor: Actor,
    watches: AppRepositoryQuerySet,
    title: str = "",
    *,
    app: App | None = None,
    nothing: str = "No watched repositories are selected",
) -> BulkOperation:
    """Send everything of these watches again, as one operation that can be watched and cancelled."""
    return requests.start(actor, OperationKind.RESYNC, watches.alive(), _request, title=title, app=app, nothing=nothing)


def _request(actor: Actor, pks: Sequence[int], operation: BulkOperation | None) -> list[SyncRun]:
    """The re-sync itself: one UPDATE clears the records and fences whoever is at work; one open run for each watch."""
    locked = requests.lock(pks, AppRepository.objects.alive())
    AppRepository.objects.filter(pk__in=locked).update(
        generation=F("generation") + 1,
        resend_floor=F("generation") + 1,
        status=Status.PENDING,
        retry_count=0,
        request_count=F("request_count") + 1,
        next_sync_at=Now(),
        **CLEARED_FAILURE,
    )
    return requests.open_runs(actor, locked, Reason.RESYNC, operation)
