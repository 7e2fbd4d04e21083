"""Check a client's copy for differences, and send what differs (`engine.md` §13)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import batched

from django.db import transaction
from django.db.models import Count, QuerySet, Sum
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app import audit, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    AuditAction,
    Delivery,
    DriftCheck,
    DriftFile,
    DriftKind,
    DriftState,
    StateDetail,
)
from deliveries_app.models.deliveries import Kind
from deliveries_app.models.drift import DriftCheckQuerySet
from deliveries_app.permissions import Permission
from deliveries_app.planning.paths import PathSet
from deliveries_app.progress.runs import Remaining
from deliveries_app.services import requests, resend
from docora.db.clock import from_now
from docora.db.compiled import compiled_and_prepared
from docora.text import counted, format_seconds

WAIT_SECONDS = 3600.0
"""A check that is still queued, or queued again, this long after its request ends as not checked."""
ALREADY_SENT = "These differences have already been sent."
_BATCH = 2000  # rows of one statement


class NotCheckable(ValueError):
    """Nothing can be checked. The message says why."""


class NothingToSend(ValueError):
    """The differences have already been sent or no longer exist."""


@dataclass(frozen=True)
class SentDifferences:
    """How many files are sent and deleted. The `settled` ones were sent or deleted in the meantime."""

    files: int
    deletes: int
    settled: int


def check_watch(actor: Actor, watch: AppRepository) -> DriftCheck:
    """Queue a check, or return the one that is already open. Raises `NotCheckable`."""
    actor.require_watch(watch, Permission.RESYNC)
    _require_opt_in(watch.app)
    with transaction.atomic():
        requested = _request(actor, AppRepository.objects.filter(pk=watch.pk))
        if requested:
            audit.record(actor, AuditAction.CHECK, [watch], "Requested a check for differences")
            scheduling.enqueue(watch)
    check = requested[0] if requested else DriftCheck.objects.open().filter(watch=watch).first()
    if check is None:
        raise NotCheckable(f"{watch} has not been synced yet, so there is nothing to check.")
    return check


def check_app(actor: Actor, app: App) -> list[int]:
    """Queue a check of each of the app's repositories, and return the keys of all its open checks. Raises `NotCheckable`."""
    actor.require_app(app, Permission.RESYNC)
    _require_opt_in(app)
    with transaction.atomic():
        requested = _request(actor, AppRepository.objects.filter(app=app))
        if requested:
            repositories = counted(len(requested), "repository")
            audit.record(actor, AuditAction.CHECK, [app], f"Requested a check for differences of {repositories}")
            transaction.on_commit(scheduling.enqueue_due, robust=True)
    pks = list(DriftCheck.objects.open().filter(watch__app=app).values_list("pk", flat=True))
    if not pks:
        raise NotCheckable(f"{app} has no repository that has been synced, so there is nothing to check.")
    return pks


def _require_opt_in(app: App) -> None:
    if not app.answers_verify:
        raise NotCheckable(f"Checks for differences are turned off for {app}.")


def _request(actor: Actor, watches: AppRepositoryQuerySet) -> list[DriftCheck]:
    """Open a check for each watch that has been synced and has none, and make these watches due.

    A failing watch is not made due, because that would skip its backoff. The check follows the retry that succeeds.
    """
    synced = watches.alive().exclude(last_commit="")
    pks = synced.lock()
    waiting = set(DriftCheck.objects.open().filter(watch__in=pks).values_list("watch_id", flat=True))
    fresh = [pk for pk in pks if pk not in waiting]
    checks = DriftCheck.objects.bulk_create(
        DriftCheck(watch_id=pk, requested_by=actor.name, user=actor.user) for pk in fresh
    )
    scheduling.request_sync(AppRepository.objects.filter(pk__in=fresh, failing_since=None))
    return checks


def cancel_check(actor: Actor, check: DriftCheck) -> bool:
    """Cancel an open check. Return False if it has ended."""
    actor.require_watch(check.watch, Permission.RESYNC)
    with transaction.atomic():
        if not _end(DriftCheck.objects.filter(pk=check.pk), DriftState.CANCELLED, f"Cancelled by {actor.name}."):
            return False
        audit.record(actor, AuditAction.CANCEL, [check.watch], "Cancelled a check for differences")
    return True


def _end(checks: DriftCheckQuerySet, state: DriftState, message: str) -> int:
    return checks.open().update(state=state, message=message[:500], ended_at=Now())


def send_differences(actor: Actor, check: DriftCheck) -> SentDifferences:
    """Send the listed differences: missing and different files as creates, extra files as deletes.

    Of the other files that the app has acknowledged, only those are sent again that such a delete may remove.

    What was sent or deleted after the check is left as it is, so an old check does no harm. Raises `NothingToSend`, and
    `NotFound` if the repository is no longer watched.
    """
    watch = check.watch
    with transaction.atomic():
        requests.lock_watch(actor, watch)
        unsent = DriftCheck.objects.filter(pk=check.pk, state=DriftState.DIFFERS, sent_at=None)
        if not unsent.update(sent_at=Now(), sent_by=actor.name):
            raise NothingToSend(ALREADY_SENT)
        watch.refresh_from_db()
        deletes = _add_deletes(check, watch)
        files = _unacknowledge(check, watch)
        if not (files or deletes):
            raise NothingToSend("These files have been sent since the check. Check again.")
        unacknowledged = Delivery.objects.filter(watch=watch, acknowledged=False)
        total = unacknowledged.aggregate(files=Count("pk"), size=Sum("size", default=0))
        message = f"Sent {counted(files + deletes, 'difference')} found by a check"
        remaining = Remaining(total["files"], total["size"])
        run = resend.request_unacknowledged(actor, watch, remaining, AuditAction.DIFFERENCES, message)
        DriftCheck.objects.filter(pk=check.pk).update(sent_run=run.run_id)
    return SentDifferences(files, deletes, max(0, check.listed - files - deletes))


def _add_deletes(check: DriftCheck, watch: AppRepository) -> int:
    """Add an unacknowledged row for each extra file without a row, and return their number.

    The plan turns each row into a delete, or into a create if the path is in the commit by then. The row has the current
    generation, which the request increases, so the notification gets a new sequence.
    """
    added, now, paths = 0, timezone.now(), PathSet()
    for extra in batched(check.files.filter(kind=DriftKind.EXTRA).order_by("path"), _BATCH):
        known = set(_rows_of(watch, extra).values_list("path", flat=True))
        rows = [
            Delivery(
                watch=watch, path=file.path, mode="", kind=Kind.DELETE, source_key=None, sha=file.sha, size=0, sequence=0,
                generation=watch.generation, acknowledged=False, updated_at=now,
            )
            for file in extra
            if file.path not in known
        ]  # fmt: skip
        Delivery.objects.bulk_create(rows)
        added += len(rows)
        for row in rows:
            paths.add(row.path)
    if added:
        _unacknowledge_conflicting(watch, paths)
    return added


def _unacknowledge_conflicting(watch: AppRepository, deleted: PathSet) -> None:
    """Resend files whose path equals a deleted path in another case, or is above or below it.

    On the client's file system, both may be the same file, so the delete would remove a file that should stay.
    """
    rows = Delivery.objects.filter(watch=watch, acknowledged=True).order_by("path").values_list("pk", "path")
    conflicting = [pk for pk, path in rows.iterator(chunk_size=_BATCH) if deleted.touches(path)]
    for batch in batched(conflicting, _BATCH):
        Delivery.objects.filter(pk__in=batch).update(acknowledged=False)


def _unacknowledge(check: DriftCheck, watch: AppRepository) -> int:
    """Make the rows of missing and different files unacknowledged, unless they have changed since, and return their number."""
    count = 0
    for files in batched(check.files.exclude(kind=DriftKind.EXTRA).order_by("path"), _BATCH):
        compared = {file.path: file.sequence for file in files}
        rows = _rows_of(watch, files).values_list("pk", "path", "sequence")
        same = [pk for pk, path, sequence in rows if sequence == compared[path]]
        Delivery.objects.filter(pk__in=same, acknowledged=True).update(acknowledged=False)
        count += len(same)
    return count


def _rows_of(watch: AppRepository, files: Sequence[DriftFile]) -> QuerySet[Delivery]:
    return Delivery.objects.filter(watch=watch, path__in=[file.path for file in files])


def maintain_checks() -> None:
    """Requeue checks whose worker died, and make the watches of queued checks due. The sweep calls this about every second.

    A check that has waited too long, or whose repository is no longer watched, ends.
    """
    if not _an_open_check():
        return
    checks = DriftCheck.objects.open()
    checks.abandoned().update(state=DriftState.QUEUED)
    alive = AppRepository.objects.alive()
    _end(checks.exclude(watch__in=alive.values("pk")), DriftState.CANCELLED, "The repository is no longer watched.")
    waited = alive.with_state().filter(drift_checks__in=checks.filter(created_at__lt=from_now(-WAIT_SECONDS)))
    for watch in waited:
        message = f"The check was still queued after {format_seconds(WAIT_SECONDS)}. {waits_for(watch)}"
        _end(checks.filter(watch=watch, state=DriftState.QUEUED), DriftState.NOT_CHECKED, message)
    idle = alive.free().filter(next_sync_at=None, pk__in=checks.values("watch")).exclude(last_commit="")
    scheduling.request_sync(idle)


@compiled_and_prepared
def _an_open_check() -> QuerySet[DriftCheck]:
    return DriftCheck.objects.open().order_by()[:1]


def waits_for(watch: AppRepository) -> str:
    """Say in one sentence what a queued check waits for. The watch must have been read `with_state`."""
    return _WAITS.get(watch.detail, "No worker is free yet.")


_NEXT_SYNC = "The repository's next sync is scheduled for later."
_AFTER_SUCCESS = "The last sync failed. Docora checks after the next one that succeeds."
_WAITS = {
    StateDetail.SYNCING: "The repository is being synced.",
    StateDetail.UP_TO_DATE: _NEXT_SYNC,
    StateDetail.SCHEDULED: _NEXT_SYNC,
    StateDetail.WAITS_FOR_SLOT: "The app has no free slot.",
    StateDetail.IMPORTING: "The repository's records are being imported.",
    StateDetail.RETRYING: _AFTER_SUCCESS,
    StateDetail.FAILED: _AFTER_SUCCESS,
    StateDetail.ALL_PAUSED: "All syncing is paused.",
    StateDetail.APP_PAUSED: "The app is paused.",
    StateDetail.WATCH_PAUSED: "The repository is paused.",
    StateDetail.COOLDOWN: "The app's endpoint is on hold.",
    StateDetail.CIRCUIT_OPEN: "The repository's circuit is open.",
    StateDetail.HOST_DOWN: "The git host can't be reached.",
}
