"""Resend: send chosen files again, whether or not they were acknowledged (`engine.md` §3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Count, QuerySet, Sum

from deliveries_app import audit, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    AuditAction,
    BulkOperation,
    Delivery,
    OperationKind,
    Reason,
    SyncRun,
)
from deliveries_app.progress import runs
from deliveries_app.services import requests
from docora.text import counted

MAX_RESENT = 1000  # paths of one request
MAX_RESENT_AT_ONCE = 10_000
"""Files of one bulk operation. For more, a re-sync costs less: it does not write a row for each file."""


@dataclass(frozen=True)
class Resent:
    """The run that sends the files again, or None if there are no files; their number; and the paths without a record."""

    run: SyncRun | None
    files: int
    unknown: list[str]


def resend_files(actor: Actor, watch: AppRepository, paths: Sequence[str]) -> Resent:
    """Send these files again, as creates under new numbers. Raises `NotFound` if the repository is no longer watched.

    Their rows become unacknowledged, and nothing else is sent again. A file that was deleted in the repository meanwhile is
    sent as a delete. `unknown` paths were never sent, or were deleted at the app.
    """
    with transaction.atomic():
        requests.lock_watch(actor, watch)
        rows = Delivery.objects.filter(watch_id=watch.pk, path__in={path for path in paths if "\x00" not in path})
        known = list(rows.values_list("path", flat=True))
        run = None
        if known:
            [remaining] = _make_unacknowledged(rows.order_by()).values()
            message = f"Resent {counted(remaining.files, 'file')}"
            run = request_unacknowledged(actor, watch, remaining, AuditAction.RESEND, message)
    return Resent(run, len(known), [path for path in dict.fromkeys(paths) if path not in known])


def resend_many(actor: Actor, deliveries: Sequence[int], *, reason: str = "") -> BulkOperation:
    """Send the files of these deliveries (primary keys) again, of any watches, as one operation.

    Raises `NotFound` if none of them exists, and `ValueError` if they are more than `MAX_RESENT_AT_ONCE`.
    """
    if len(deliveries) > MAX_RESENT_AT_ONCE:
        raise ValueError(f"At most {MAX_RESENT_AT_ONCE:,} files can be resent at once.")
    rows = Delivery.objects.filter(pk__in=deliveries).order_by()
    watches = AppRepository.objects.alive().filter(pk__in=list(rows.values_list("watch", flat=True).distinct()))
    apps = list(App.objects.filter(watches__in=watches.order_by().values("pk")).distinct()[:2])

    def request(actor: Actor, pks: Sequence[int], operation: BulkOperation | None) -> list[SyncRun]:
        """Resend the files of these watches, and return one open run for each, which replaces the watch's open runs."""
        locked = requests.lock_watches(pks, AppRepository.objects.alive())
        chosen = rows.filter(watch__in=locked)
        remaining = runs.supersede(locked)
        for watch, more in _make_unacknowledged(chosen).items():
            files, size = remaining.get(watch, (0, 0))
            remaining[watch] = runs.Remaining(files + more.files, size + more.size)
        _make_due(locked)
        return requests.open_runs(actor, locked, Reason.RETRY, operation, remaining, is_resend=True)

    return requests.start_bulk(
        actor,
        OperationKind.RESEND,
        watches,
        request,
        title=f"Resend · {counted(rows.count(), 'file')}",
        app=apps[0] if len(apps) == 1 else None,
        empty_message="None of these files has a delivery record",
        reason=reason,
    )


def request_unacknowledged(
    actor: Actor, watch: AppRepository, remaining: runs.Remaining, action: AuditAction, message: str
) -> SyncRun:
    """Request a sync that sends the rows which the caller has just made unacknowledged, and return its run.

    A run that is open already sends these files too. `action` and `message` are for the audit log. Call this in the
    transaction that changed the rows and holds the watch's lock.
    """
    _make_due([watch.pk])
    watch.refresh_from_db()
    run = runs.newest_open_runs([watch]).get(watch.pk)
    if run is None:
        (run,) = requests.open_runs(actor, [watch.pk], Reason.RETRY, None, {watch.pk: remaining}, is_resend=True)
    audit.record(actor, action, [run], message)
    scheduling.enqueue(watch)
    return run


def _make_unacknowledged(rows: QuerySet[Delivery]) -> dict[int, runs.Remaining]:
    """Make these rows unacknowledged. Their watches must be locked. Return what each watch has to send."""
    sums: Any = rows.values_list("watch").annotate(Count("pk"), Sum("size"))
    remaining = {watch: runs.Remaining(files, size) for watch, files, size in sums}
    rows.update(acknowledged=False, attempts=0)
    return remaining


def _make_due(watch_pks: Sequence[int]) -> None:
    """Make the watches due, under a new generation.

    The generation fences a worker that is syncing. Otherwise the worker could mark one of the rows as acknowledged again,
    for a request that it had already sent.
    """
    AppRepository.objects.filter(pk__in=watch_pks).update(**scheduling.SUPERSEDE)
