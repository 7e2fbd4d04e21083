"""Resend: send chosen files of one watch again, whether or not they were acknowledged (`engine.md` §3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from deliveries_app import scheduling
from deliveries_app.actors import RESYNC_PERMISSION, Actor
from deliveries_app.models import AppRepository, Delivery, Reason, Status, SyncRun
from deliveries_app.progress import runs
from deliveries_app.services import audit, requests
from deliveries_app.services.requests import NotFound
from docora.text import counted

MAX_RESENT = 1000  # paths of one request


@dataclass(frozen=True)
class Resent:
    """The run that sends the files again, None if there are none; their number; and the paths without a record."""

    run: SyncRun | None
    files: int
    unknown: list[str]


def resend_files(actor: Actor, watch: AppRepository, paths: Sequence[str]) -> Resent:
    """Send these files again, as creates under new numbers. Raises `NotFound` if the repository is no longer watched.

    Their rows become unacknowledged, and nothing else is sent again. A file that was deleted in the repository meanwhile is
    sent as a delete. `unknown` paths were never sent, or were deleted at the app.
    """
    actor.require(RESYNC_PERMISSION)
    actor.require_watch(watch)
    with transaction.atomic():
        if not requests.lock_watches([watch.pk], AppRepository.objects.alive()):
            raise NotFound("Repository not found")
        rows = Delivery.objects.filter(watch_id=watch.pk, path__in={path for path in paths if "\x00" not in path})
        known = dict(rows.values_list("path", "size"))
        run = None
        if known:
            rows.update(acknowledged=False, attempts=0)
            message = f"Resent {counted(len(known), 'file', 'files')}"
            run = request_unacknowledged(actor, watch, runs.Remaining(len(known), sum(known.values())), message)
    return Resent(run, len(known), [path for path in dict.fromkeys(paths) if path not in known])


def request_unacknowledged(actor: Actor, watch: AppRepository, remaining: runs.Remaining, message: str) -> SyncRun:
    """Request a sync that sends the rows which the caller has just made unacknowledged, and return its run.

    The new generation fences a worker that is syncing. Otherwise it could record one of the rows as acknowledged after all,
    for a request that it had sent before. A run that is open already sends these files too. `message` is for the audit log.
    Call this in the transaction that changed the rows and holds the watch's lock.
    """
    AppRepository.objects.filter(pk=watch.pk).update(
        generation=F("generation") + 1,
        status=Status.PENDING,
        retry_count=0,
        request_count=F("request_count") + 1,
        next_sync_at=Now(),
    )
    watch.refresh_from_db()
    run = runs.newest_open_runs([watch]).get(watch.pk)
    if run is None:
        (run,) = requests.open_runs(actor, [watch.pk], Reason.RETRY, None, {watch.pk: remaining})
    audit.record(actor, [watch], message)
    scheduling.enqueue(watch, "high")
    return run
