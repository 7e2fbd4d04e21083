"""Force a re-sync: clear the delivery records and send every file again (`engine.md` §3).

A bulk re-sync releases its repositories all at once, or gradually (`rollout`).
"""

from collections.abc import Sequence
from functools import partial

from django.db import transaction

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
from deliveries_app.services import quotas, requests
from deliveries_app.services.requests import AT_ONCE, NotFound, Rollout
from deliveries_app.services.rollout import release


def resync_single(actor: Actor, watch: AppRepository) -> SyncRun:
    """Send every file of one watch again, in any state.

    Raises `NotFound` if the watch is being removed, and `TooManyResyncs` if an app requests this and has used up its quota.
    """
    actor.require(Permission.RESYNC)
    return request_resync(actor, watch)


def request_resync(actor: Actor, watch: AppRepository) -> SyncRun:
    """Do what `resync_single` does, for a caller that has checked another permission."""
    error = NotFound("App-repository link not found")
    return requests.start_single(actor, OperationKind.RESYNC, watch, resync_watches, error=error)


def resync_by_app(actor: Actor, app: App, *, reason: str = "", rollout: Rollout = AT_ONCE) -> BulkOperation:
    """Send every file of every repository of one app again."""
    actor.require_app(app)
    return resync_many(actor, AppRepository.objects.filter(app=app), app=app, reason=reason, rollout=rollout)


def resync_many(
    actor: Actor,
    watches: AppRepositoryQuerySet,
    *,
    app: App | None = None,
    reason: str = "",
    rollout: Rollout = AT_ONCE,
) -> BulkOperation:
    """Send every file of these watches again, as one operation. Pass `app` if they are all of its watches.

    Raises `NotFound` if there are none. With a gradual `rollout`, the first watches are released now and the sweep releases
    the others. For a single watch it makes no difference.
    """
    operation = requests.start_bulk(
        actor,
        OperationKind.RESYNC,
        watches.alive(),
        resync_watches,
        title=f"Re-sync all · {app.name}" if app else "",
        app=app,
        empty_message="No repositories for this app" if app else "No watched repositories are selected",
        reason=reason,
        rollout=rollout,
    )
    if operation.is_gradual:
        transaction.on_commit(partial(release, operation.pk, by_person=True), robust=True)
    return operation


def resync_watches(actor: Actor, pks: Sequence[int], operation: BulkOperation | None) -> list[SyncRun]:
    """Re-sync these watches: one UPDATE clears the records and fences any worker. Return one open run for each.

    Clearing changes one number: the floor, the generation below which no row counts as delivered. The old rows remain
    because they show which files the app may hold, so that files deleted upstream are deleted there too. A failing watch
    stays failing until it succeeds. Raises `TooManyResyncs` if an app requests this and has used up its quota.
    """
    quotas.count_resync(actor)
    locked = requests.lock_watches(pks, AppRepository.objects.alive())
    AppRepository.objects.filter(pk__in=locked).update(**scheduling.RESYNC)
    estimates = runs.whole_trees(AppRepository.objects.filter(pk__in=locked))
    return requests.open_runs(actor, locked, Reason.RESYNC, operation, estimates)
