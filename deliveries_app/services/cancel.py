"""Cancel re-syncs and retries, and every running or waiting sync of one watch."""

from django.conf import settings
from django.db import transaction
from django.db.models import Case, Exists, F, Max, OuterRef, Q, QuerySet, Subquery, Value, When
from django.db.models.functions import Coalesce, Greatest, Now
from django.utils import timezone

from deliveries_app import audit, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import (
    AppRepository,
    AuditAction,
    BulkOperation,
    OperationKind,
    Outcome,
    Reason,
    Status,
    SyncRun,
)
from deliveries_app.permissions import Permission
from deliveries_app.progress import runs
from deliveries_app.services.requests import PERMISSIONS, count_by_app
from docora.db.clock import from_now
from docora.redis import queues


def cancel_operation(actor: Actor, operation: BulkOperation) -> int:
    """Cancel the operation's open runs and its unreleased watches. Return the number of both: 0 if it had ended.

    Unreleased watches stay as they are. All watches are locked before the runs are read, because ending a run and releasing
    a watch lock it too: so each watch is either still unreleased or already has its run.
    """
    actor.require_app(operation.app, PERMISSIONS[OperationKind(operation.kind)])
    with transaction.atomic():
        open_runs, unreleased = operation.runs.filter(outcome=""), operation.pending.all()
        pks = [pk for rows in (open_runs, unreleased) for pk in rows.values_list("watch_id", flat=True)]
        AppRepository.objects.filter(pk__in=pks).lock()
        unfinished = count_by_app(open_runs) + count_by_app(unreleased)
        cancelled = _cancel(open_runs)
        if unreleased.exists():
            BulkOperation.objects.select_for_update(no_key=True).get(pk=operation.pk)
            cancelled += unreleased.delete()[0]
        BulkOperation.objects.filter(pk=operation.pk, cancelled_at=None, ended_at=None).update(
            cancelled_at=timezone.now(), cancelled_by=actor.name
        )
        runs.close_operations([operation.pk])
        if cancelled:
            audit.record_for_apps(actor, AuditAction.CANCEL, operation, unfinished, "Cancelled with", " unfinished")
    operation.refresh_from_db()
    return cancelled


def cancel_request(actor: Actor, watch: AppRepository, run_id: str = "") -> int:
    """Cancel the newest open re-sync or retry of one watch, or the one with this `run_id`.

    Return the number of cancelled runs: 1, or 0 if there was none.
    """
    actor.require_watch(watch)
    requested = SyncRun.objects.filter(watch=watch, outcome="", reason__in=[Reason.RESYNC, Reason.RETRY])
    if run_id:
        requested = requested.filter(run_id=run_id)
    with transaction.atomic():
        newest = requested.order_by("-generation", "-pk").first()
        if newest is None:
            actor.require(Permission.RESYNC, Permission.RETRY)
            return 0
        # A resend of files is a retry, too, and those who request it may have only the re-sync permission.
        actor.require(Permission.RESYNC, *([Permission.RETRY] if newest.reason == Reason.RETRY else []))
        cancelled = _cancel(SyncRun.objects.filter(pk=newest.pk))
        if newest.operation_id:
            runs.close_operations([newest.operation_id])
        if cancelled:  # otherwise a worker has just ended it
            audit.record(actor, AuditAction.CANCEL, [newest], f"Cancelled the {newest.reason_label}")
    return cancelled


def cancel_sync(actor: Actor, watch: AppRepository) -> bool:
    """Cancel every sync that is running or waiting for one watch. Return False if there was nothing to cancel.

    Its worker stops at the next batch, its open runs end as cancelled, and it stays idle until the next rescan. An open check
    for differences stays queued.
    """
    actor.require_watch(watch, Permission.CONTROL_QUEUE)
    with transaction.atomic():
        rows = AppRepository.objects.alive().filter(pk=watch.pk)
        locked = rows.select_for_update(no_key=True).first()
        if locked is None or not rows.filter(_is_active()).exists():
            return False
        open_runs = SyncRun.objects.filter(watch=watch, outcome="")
        operations = set(open_runs.exclude(operation=None).values_list("operation_id", flat=True))
        _cancel(open_runs, f"Cancelled by {actor.name}.")
        AppRepository.objects.filter(pk=watch.pk).update(generation=F("generation") + 1, **_idle_fields())
        runs.close_operations(operations)
        audit.record(actor, AuditAction.CANCEL, [watch], "Cancelled the sync")
        transaction.on_commit(lambda: queues.drop([watch.job_id]), robust=True)
    return True


def _is_active() -> Q:
    """Match watches that are syncing, due or waiting for the next attempt, or that have an open run.

    A cancelled watch matches none of these. Its worker may still be waiting for requests in flight, but it is fenced, and
    the status is no longer `scanning`.
    """
    return (
        Q(status=Status.SCANNING)
        | Q(next_sync_at__lte=Now())
        | Q(status=Status.PENDING, failing_since__isnull=False)
        | Q(Exists(SyncRun.objects.filter(watch=OuterRef("pk"), outcome="")))
    )


def _cancel(open_runs: QuerySet[SyncRun], error: str = "") -> int:
    """End these runs as cancelled, with this `error` text. Return how many were still open.

    The generation increases, so that a worker of the cancelled request cannot record anything for the next one. After a
    cancelled re-sync, the floor returns to the newest re-sync that is not cancelled, or to `lowest_floor`, and the watch is
    due now for an ordinary check. After a cancelled retry or resend, the watch is idle until the next rescan, and failing
    again if it was; but if it has another open run, only the run changes. Watches are locked before runs, as everywhere
    else.
    """
    watches = AppRepository.objects.filter(pk__in=list(open_runs.values_list("watch_id", flat=True)))
    watches.lock()
    chosen = list(open_runs.filter(outcome=""))
    runs.cancel_runs(chosen, error)
    resynced = {run.watch_id for run in chosen if run.watch_id and run.reason == Reason.RESYNC}
    newest_valid_resync = (
        SyncRun.objects.filter(watch=OuterRef("pk"), reason=Reason.RESYNC)
        .exclude(outcome=Outcome.CANCELLED)
        .order_by()
        .values("watch")
        .annotate(highest=Max("generation"))
        .values("highest")
    )
    watches.filter(pk__in=resynced).update(
        generation=F("generation") + 1,
        resend_floor=Greatest(Coalesce(Subquery(newest_valid_resync), Value(1)), F("lowest_floor")),
        **scheduling.DUE_NOW,
    )
    others = {run.watch_id for run in chosen if run.watch_id} - resynced
    others -= set(SyncRun.objects.filter(watch__in=others, outcome="").values_list("watch_id", flat=True))
    watches.filter(pk__in=others).update(generation=F("generation") + 1, **_idle_fields())
    transaction.on_commit(scheduling.enqueue_due, robust=True)
    return len(chosen)


def _idle_fields() -> dict[str, object]:
    """Return the fields that leave a watch idle until the next rescan, with the status that follows from its other fields."""
    # Not if a sync has been requested since the last claim: HEAD may have moved.
    is_synced = Q(status=Status.SYNCED, request_count=F("claimed_request_count"))
    is_synced &= Q(seen_commit__in=["", F("last_commit")])  # otherwise the host served an older commit than its HEAD
    return {
        "next_sync_at": from_now(settings.RESCAN_INTERVAL_SECONDS),
        "slots_requested_at": None,
        "retry_count": Case(
            When(failing_since=None, then=Value(0)), default=Value(max(0, settings.MAX_RETRY_ATTEMPTS - 1))
        ),
        "status": Case(
            When(failing_since__isnull=False, then=Value(Status.FAILED)),
            When(is_synced, then=Value(Status.SYNCED)),
            default=Value(Status.PENDING),
        ),
    }
