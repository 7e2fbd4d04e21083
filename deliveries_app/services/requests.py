"""Request a sync of one watch, or of several as one bulk operation. Re-syncs, retries and resends share this."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Count, QuerySet

from deliveries_app import audit, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    AuditAction,
    BulkOperation,
    OperationKind,
    Reason,
    SyncRun,
)
from deliveries_app.permissions import Permission
from deliveries_app.progress import runs
from docora.db.locks import lock_rows
from docora.text import clean_text, counted

PERMISSIONS = {
    OperationKind.RESYNC: Permission.RESYNC,
    OperationKind.RETRY: Permission.RETRY,
    OperationKind.RESEND: Permission.RESYNC,  # a resend sends some of the files that a re-sync sends
}
MAX_REASON_CHARS = 200
_ACTIONS = {
    OperationKind.RESYNC: AuditAction.RESYNC,
    OperationKind.RETRY: AuditAction.RETRY,
    OperationKind.RESEND: AuditAction.RESEND,
}


class NotFound(LookupError):
    """The object does not exist or is being removed. The wire contract defines the message."""


@dataclass(frozen=True)
class Rollout:
    """How the watches of a bulk re-sync are released (`engine.md` §14).

    With `canary`, the other watches of each app wait until its first one has succeeded. `pace` is the maximum number of
    watches released per minute.
    """

    canary: bool = False
    pace: int | None = None

    @property
    def is_gradual(self) -> bool:
        return self.canary or self.pace is not None


AT_ONCE = Rollout()
MAX_PACE = 100_000

type Request = Callable[[Actor, Sequence[int], BulkOperation | None], list[SyncRun]]
"""Lock and update the watches that the request applies to, and return one open run for each."""


def start_single(
    actor: Actor, kind: OperationKind, watch: AppRepository, request: Request, *, error: Exception
) -> SyncRun:
    """Request a sync of one watch, enqueue it ahead of bulk work, and return its run. The caller checks the permission.

    Raises `error` if the request does not apply.
    """
    actor.require_watch(watch)
    with transaction.atomic():
        opened = request(actor, [watch.pk], None)
        if not opened:
            raise error
        watch.refresh_from_db()
        audit.record(actor, _ACTIONS[kind], opened, f"{_ACTIONS[kind].label} of {watch}")
        scheduling.enqueue(watch)
    return opened[0]


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
    rollout: Rollout = AT_ONCE,
) -> BulkOperation:
    """Request a sync of all these watches as one operation, which has a progress bar and can be cancelled.

    A single watch is enqueued ahead of bulk work. `reason` is the requester's own text. With a gradual `rollout`, several
    watches are only stored: the caller releases them. Raises `NotFound` with `empty_message` if the request applies to
    none of the watches.
    """
    actor.require_watches(watches, PERMISSIONS[kind])
    operation = BulkOperation(
        kind=kind,
        app=app,
        requested_by=actor.name,
        user=actor.user,
        reason=clean_text(reason, MAX_REASON_CHARS),
    )
    with transaction.atomic():
        pks = list(watches.order_by("pk").values_list("pk", flat=True))
        if rollout.is_gradual and len(pks) > 1:
            pks = AppRepository.objects.alive().filter(pk__in=pks).lock()  # not one that is being unwatched
            if not pks:
                raise NotFound(empty_message)
            operation.title = title or _title(kind, len(pks))
            operation.total, operation.canary, operation.pace = len(pks), rollout.canary, rollout.pace
            operation.save()
            runs.add_unreleased(operation, pks)
            action, numbers, how = _ACTIONS[kind], count_by_app(operation.pending.all()), f", {operation.rollout}"
            audit.record_for_apps(actor, action, operation, numbers, f"{action.label} of", how, reason=operation.reason)
            return operation
        operation.total = len(pks)
        operation.save()
        opened = request(actor, pks, operation) if pks else []
        if not opened:
            raise NotFound(empty_message)
        only = opened[0].watch if len(opened) == 1 else None
        operation.title = title or _title(kind, len(opened), only)
        operation.total, operation.app = len(opened), app or (only.app if only else None)
        operation.save(update_fields=["title", "total", "app"])
        record_opened(actor, operation, opened)
        if only:
            scheduling.enqueue(only)
        else:
            transaction.on_commit(scheduling.enqueue_due, robust=True)
    return operation


def record_opened(actor: Actor, operation: BulkOperation, opened: Sequence[SyncRun]) -> None:
    """Record in the audit log that these runs were opened: one entry for each watch, or if there are many, for each app."""
    action, reason = _ACTIONS[OperationKind(operation.kind)], operation.reason
    if len(opened) <= runs.LOGGED_ONE_BY_ONE:
        message = f"{action.label}, {operation.operation_id}"
        audit.record(actor, action, opened, message, reason=reason, operation=operation)
    else:
        numbers = Counter(run.watch.app_id for run in opened if run.watch)
        audit.record_for_apps(actor, action, operation, numbers, f"{action.label} of", reason=reason)


def count_by_app(rows: QuerySet[Any]) -> Counter[int]:
    """Return the number of these runs or unreleased watches by the key of their app."""
    numbers = rows.exclude(watch=None).order_by().values_list("watch__app").annotate(Count("pk"))
    return Counter(dict(numbers))


def _title(kind: OperationKind, count: int, only: AppRepository | None = None) -> str:
    what = only or counted(count, "repository")
    return f"{kind.label.capitalize()} · {what}"[:200]


def lock_app(actor: Actor, app: App, permission: Permission) -> App:
    """Check that the actor can change the app, and return the app's row, locked. Raises `NotFound` if it is being removed.

    Without the lock, two concurrent rotations would leave two tokens without an expiry. `sync.claim` explains why the
    lock is FOR NO KEY UPDATE.
    """
    actor.require_app(app, permission)
    row = App.objects.select_for_update(no_key=True).filter(pk=app.pk, ended_at=None).first()
    if row is None:
        raise NotFound("App not found")
    return row


def lock_watch(actor: Actor, watch: AppRepository) -> None:
    """Check that the actor can send the watch's files again, and lock it. Raises `NotFound` if it is no longer watched."""
    actor.require_watch(watch, Permission.RESYNC)
    if not lock_watches([watch.pk], AppRepository.objects.alive()):
        raise NotFound("Repository not found")


def lock_watches(pks: Sequence[int], among: AppRepositoryQuerySet, *, by_person: bool = True) -> list[int]:
    """Lock the given watches that are also in `among`, and return their primary keys.

    A person's request suggests that an endpoint that was down is back up, so end its cooldown: one watch probes it now.
    Lock apps before watches, as the claim does.
    """
    if by_person:
        apps = AppRepository.objects.filter(pk__in=pks).order_by().values("app")
        down = lock_rows(App.objects.filter(pk__in=apps, down_count__gt=0))
        App.objects.filter(pk__in=down).update(cooldown_until=None)
    return among.filter(pk__in=pks).lock()


def open_runs(
    actor: Actor,
    pks: Sequence[int],
    reason: Reason,
    operation: BulkOperation | None = None,
    remaining: Mapping[int, runs.Remaining] = {},
    *,
    is_resend: bool = False,
) -> list[SyncRun]:
    """Open one run for each watch at its current generation. `remaining` maps watches to what they still have to send."""
    watches = AppRepository.objects.filter(pk__in=pks).select_related("app", "repository").order_by("pk")
    opened = SyncRun.objects.bulk_create(
        [
            runs.open_run(
                watch,
                reason,
                is_resend=is_resend,
                requested_by=actor.name,
                user=actor.user,
                operation=operation,
                remaining=remaining.get(watch.pk),
            )
            for watch in watches
        ]
    )
    if opened:
        runs.log_requested(opened)
    return opened
