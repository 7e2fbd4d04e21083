"""Force a re-sync: clear the delivery records and send every file again (`engine.md` §3).

Clearing changes one number: the floor, the generation below which no row counts as delivered. The old rows remain because
they show which files the app may hold, so that files deleted upstream are deleted there too.
"""

from collections.abc import Sequence

from django.db.models import F
from django.db.models.functions import Now

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
from deliveries_app.models.root_causes import CLEARED_FAILURE
from deliveries_app.services import requests
from deliveries_app.services.requests import NotFound, Requested


def resync_single(actor: Actor, watch: AppRepository, *, skip_permission_check: bool = False) -> Requested:
    """Send every file of one watch again, in any state. Raises `NotFound` if it is being removed.

    Pass `skip_permission_check` if the caller has checked another permission.
    """
    return requests.start_single(
        actor,
        OperationKind.RESYNC,
        watch,
        _request,
        error=NotFound("App-repository link not found"),
        skip_permission_check=skip_permission_check,
    )


def resync_by_app(actor: Actor, app: App, *, reason: str = "") -> BulkOperation:
    """Send every file of every repository of one app again."""
    actor.require_app(app)
    watches = AppRepository.objects.filter(app=app)
    empty_message = "No repositories for this app"
    return resync_many(actor, watches, f"Re-sync all · {app.name}", app=app, empty_message=empty_message, reason=reason)


def resync_many(
    actor: Actor,
    watches: AppRepositoryQuerySet,
    title: str = "",
    *,
    app: App | None = None,
    empty_message: str = "No watched repositories are selected",
    reason: str = "",
) -> BulkOperation:
    """Send every file of these watches again, as one operation. Raises `NotFound` with `empty_message` if there are
    none.
    """
    return requests.start_bulk(
        actor,
        OperationKind.RESYNC,
        watches.alive(),
        _request,
        title=title,
        app=app,
        empty_message=empty_message,
        reason=reason,
    )


def _request(actor: Actor, pks: Sequence[int], operation: BulkOperation | None) -> list[SyncRun]:
    """Re-sync these watches: one UPDATE clears the records and fences any worker. Return one open run for each."""
    locked = requests.lock_watches(pks, AppRepository.objects.alive())
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
