"""Shared by re-syncs, retries and resends: request a sync of one watch, or of several as one bulk operation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from django.db import transaction

from deliveries_app import scheduling
from deliveries_app.actors import RESYNC_PERMISSION, RETRY_PERMISSION, Actor
from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    BulkOperation,
    OperationKind,
    Reason,
    SyncRun,
)
from deliveries_app.progress import runs
from deliveries_app.services import audit
from docora.text import counted

PERMISSIONS = {
    OperationKind.RESYNC: RESYNC_PERMISSION,
    OperationKind.RETRY: RETRY_PERMISSION,
    OperationKind.RESEND: RESYNC_PERMISSION,  # a part of what a re-sync sends
}
MAX_REASON_CHARS = 200
_LABELS = {OperationKind.RESYNC: "Re-sync", OperationKind.RETRY: "Retry", OperationKind.RESEND: "Resend"}


class NotFound(LookupError):
    """The object does not exist or is being removed. The wire contract defines the message."""


@dataclass(frozen=True)
class Requested:
    """A queued sync: its run, and the id of the job that will perform it."""

    run: SyncRun
    job_id: str


type Request = Callable[[Actor, Sequence[int], BulkOperation | None], list[SyncRun]]
"""Lock and update the watches that the request applies to, and return one open run for each."""


def start_single(
    actor: Actor,
    kind: OperationKind,
    watch: AppRepository,
    request: Request,
    *,
    error: Exception,
    skip_permission_check: bool = False,
) -> Requested:
    """Request a sync of one watch and enqueue it ahead of bulk work. Raises `error` if the request does not apply.

    Pass `skip_permission_check` if the caller has checked another permission.
    """
    if not skip_permission_check:
        actor.require(PERMISSIONS[kind])
    actor.require_watch(watch)
    with transaction.atomic():
        opened = request(actor, [watch.pk], None)
        if not opened:
            raise error
        watch.refresh_from_db()
        audit.record(actor, [watch], f"{_LABELS[kind]} of {watch}")
        scheduling.enqueue(watch, "high")
    return Requested(opened[0], watch.job_id)


def start_bulk(
    actor: Actor,
    kind: OperationKind,
    watches: AppRepositoryQuerySet,
    request: Request,
    *,
    title: str,
    app: App | None,
    empty_message: str,
    reason: str = "",
) -> BulkOperation:
    """Request a sync of all these watches as one operation, which has a progress bar and can be cancelled.

    A single watch is enqueued ahead of bulk work. `reason` is what the requester says about it. Raises `NotFound` with
    `empty_message` if the request applies to none of them.
    """
    actor.require(PERMISSIONS[kind])
    actor.require_watches(watches)
    with transaction.atomic():
        pks = list(watches.order_by("pk").values_list("pk", flat=True))
        operation = BulkOperation(
            kind=kind,
            app=app,
            requested_by=actor.name,
            user_id=actor.user_pk,
            reason=reason[:MAX_REASON_CHARS],
            total=len(pks),
        )
        operation.save()
        opened = request(actor, pks, operation) if pks else []
        if not opened:
            raise NotFound(empty_message)
        watches_of_runs = [run.watch for run in opened if run.watch]
        only = watches_of_runs[0] if len(watches_of_runs) == 1 else None
        count = counted(len(opened), "repository", "repositories")
        operation.title = (title or f"{kind.label.capitalize()} · {only or count}")[:200]
        operation.total, operation.app = len(opened), app or (only.app if only else None)
        operation.save(update_fields=["title", "total", "app"])
        because = f". Reason: {operation.reason}" if operation.reason else ""
        if len(opened) <= runs.LOGGED_ONE_BY_ONE:
            audit.record(actor, watches_of_runs, f"{_LABELS[kind]}, {operation.operation_id}{because}")
        else:
            audit.record(actor, [operation], f"{_LABELS[kind]} of {count}{because}")
        if only:
            scheduling.enqueue(only, "high")
        else:
            transaction.on_commit(scheduling.enqueue_due, robust=True)
    return operation


def lock_watches(pks: Sequence[int], among: AppRepositoryQuerySet) -> list[int]:
    """Lock the given watches that are also in `among`, end their apps' cooldowns, and return the watches' primary keys.

    A user's request suggests that an endpoint may be back up, so one watch probes it now instead of after the backoff.
    Lock apps before watches, as the claim does.
    """
    down = App.objects.filter(watches__in=pks, down_count__gt=0).order_by("pk").distinct().values_list("pk", flat=True)
    locked_apps = App.objects.filter(pk__in=list(down)).select_for_update(no_key=True).order_by("pk")
    App.objects.filter(pk__in=[app.pk for app in locked_apps]).update(cooldown_until=None)
    rows = among.filter(pk__in=pks).order_by("pk")
    return list(rows.select_for_update(of=("self",)).values_list("pk", flat=True))


def open_runs(
    actor: Actor,
    pks: Sequence[int],
    reason: Reason,
    operation: BulkOperation | None,
    remaining: Mapping[int, runs.Remaining] | None = None,
) -> list[SyncRun]:
    """Open one run for each watch at its current generation. `remaining` maps watches to what they still have to send."""
    remaining = remaining or {}
    watches = AppRepository.objects.filter(pk__in=pks).select_related("app", "repository").order_by("pk")
    opened = SyncRun.objects.bulk_create(
        [
            runs.open_run(
                watch,
                reason,
                requested_by=actor.name,
                user_pk=actor.user_pk,
                operation=operation,
                remaining=remaining.get(watch.pk),
            )
            for watch in watches
        ]
    )
    if opened:
        runs.log_requested(opened)
    return opened
