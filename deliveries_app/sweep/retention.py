"""Delete old history.

This covers runs, bulk operations, checks for differences, the audit log, traffic, failed attempts, ended alerts, mails to
contacts (sent or not), expired sessions, and all snapshots but the newest one of each repository.

Pruning can run at any time and be killed at any point: each slice is one transaction, and the next call continues. Three
kinds of runs are kept regardless of their age:

- open runs, and the newest run of each watch, which shows its current state;
- the newest re-sync of each watch that has ended and was not cancelled: if a later re-sync is cancelled, the floor goes back to
  it (`engine.md` §3). An open re-sync does not count, because it may be the one that is cancelled;
- runs of a bulk operation that is kept: its final numbers are counted from them.

A row is old only if it is by both this machine's clock and the database's. Otherwise, one wrong clock would cost all history.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import connections, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery
from django.utils import timezone

from deliveries_app.models import (
    Alert,
    AuditEntry,
    BulkOperation,
    ContactMail,
    DeliveryAttempt,
    DriftCheck,
    DriftFile,
    HourlyTraffic,
    Outcome,
    Reason,
    SyncRun,
)
from deliveries_app.monitoring.alerts import contacts
from docora.db import append_only
from docora.db.clock import database_now
from docora.redis import queues
from repositories_app.models import Snapshot

PRUNE_JOB = "deliveries_app.jobs.prune"
_EVERY_SECONDS = 3600
_SLICE = 2000
_LONGEST_DAYS = 36500  # a larger number would exceed the range of dates


def enqueue_prune() -> None:
    """Enqueue a prune job, at most once an hour across all processes."""
    if queues.first_within("prune", _EVERY_SECONDS):
        queues.enqueue("low", PRUNE_JOB, "old", "prune", owned=False, leased=False)


def prune(
    *,
    dry_run: bool = False,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Counter[str]:
    """Remove everything older than its retention, until `stop` returns True. With `dry_run`, only count.

    Return the number of rows of each kind. Call `on_progress` repeatedly with the number of rows removed so far.
    """
    now = _now()
    operations = _old_operations(now)
    run_days, audit_days = settings.SYNC_RUN_RETENTION_DAYS, settings.AUDIT_RETENTION_DAYS
    ended_checks = DriftCheck.objects.filter(ended_at__isnull=False)
    kinds: dict[str, tuple[QuerySet[Any], str]] = {
        "runs": (_old_runs(now, operations), "created_at"),
        "operations": (operations, "created_at"),
        "checks": (_older(ended_checks, "created_at", run_days, now), "created_at"),
        "audit_entries": (_older(AuditEntry.objects.all(), "created_at", audit_days, now), "created_at"),
        "traffic": (_older(HourlyTraffic.objects.all(), "hour", settings.TRAFFIC_RETENTION_DAYS, now), "hour"),
        "delivery_attempts": (_older(DeliveryAttempt.objects.all(), "at", settings.ATTEMPT_RETENTION_DAYS, now), "at"),
        "alerts": (_older(Alert.objects.all(), "ended_at", run_days, now), "ended_at"),
        "sessions": (Session.objects.filter(expire_date__lt=now), "expire_date"),
        "mails": (ContactMail.objects.filter(created_at__lt=now - contacts.KEPT), "created_at"),
        "snapshots": (_old_snapshots(), "pk"),
    }
    if dry_run:
        return Counter({name: rows.count() for name, (rows, _) in kinds.items()})
    removed = Counter[str]()
    for name, (rows, field) in kinds.items():
        for count in _remove(rows, field, stop):
            removed[name] += count
            on_progress(removed.total())
    return removed


def _now() -> datetime:
    return min(timezone.now(), database_now())


def _older(rows: QuerySet[Any], field: str, days: int, now: datetime) -> QuerySet[Any]:
    """Return rows older than `days`; none if `days` is 0, which means forever."""
    if not days:
        return rows.none()
    return rows.filter(**{f"{field}__lt": _days_before(now, days)})


def _days_before(now: datetime, days: int) -> datetime:
    return now - timedelta(days=min(days, _LONGEST_DAYS))


def _old_operations(now: datetime) -> QuerySet[BulkOperation]:
    """Return operations that ended long ago. Filter the creation time too, because that column has the index."""
    days = settings.BULK_OPERATION_RETENTION_DAYS
    return _older(_older(BulkOperation.objects.all(), "ended_at", days, now), "created_at", days, now)


def _old_runs(now: datetime, operations: QuerySet[BulkOperation]) -> QuerySet[SyncRun]:
    """Return the runs that may be removed by the rules above. Without its watch, a run is kept only for its operation."""
    days = settings.SYNC_RUN_RETENTION_DAYS
    old: QuerySet[SyncRun] = _older(_older(SyncRun.objects.all(), "ended_at", days, now), "created_at", days, now)
    # An index finds a watch's newest run at once. With more conditions in the subquery, PostgreSQL may read all of the watch's runs
    # for each of them.
    newest = SyncRun.objects.filter(watch=OuterRef("watch")).order_by("-created_at", "-pk")
    has_later = Q(pk__lt=Subquery(newest.values("pk")[:1]), generation__lte=Subquery(newest.values("generation")[:1]))
    newer = SyncRun.objects.filter(watch=OuterRef("watch"), created_at__gte=OuterRef("created_at"))
    floors = newer.filter(reason=Reason.RESYNC).exclude(outcome__in=["", Outcome.CANCELLED])
    is_no_floor = ~Q(reason=Reason.RESYNC) | Q(outcome=Outcome.CANCELLED)
    has_later_floor = Exists(floors.filter(generation__gt=OuterRef("generation")))
    return old.filter(
        Q(watch=None) | (has_later & (is_no_floor | has_later_floor)),
        Q(operation=None) | Q(operation__in=operations.values("pk")),
    )


def _old_snapshots() -> QuerySet[Snapshot]:
    """Return the snapshots whose repository has a newer one, in the order that pages use."""
    created_at = OuterRef("created_at")
    newer = Q(created_at__gt=created_at) | Q(created_at=created_at, pk__gt=OuterRef("pk"))
    return Snapshot.objects.filter(Exists(Snapshot.objects.filter(newer, repository=OuterRef("repository"))))


def _remove(rows: QuerySet[Any], field: str, stop: Callable[[], bool]) -> Iterator[int]:
    """Remove the rows and yield the size of each slice. Skips Django's cascade: what refers to them is removed or detached first."""
    if rows.model is BulkOperation:
        kept_runs = SyncRun.objects.filter(operation__in=rows.values("pk")).order_by("pk")
        for _ in _by_slices(kept_runs, "pk", stop, lambda part: part.update(operation=None)):
            pass
        rows = rows.filter(~Exists(SyncRun.objects.filter(operation=OuterRef("pk"))))
    if rows.model is DriftCheck:
        for _ in _remove(DriftFile.objects.filter(check_of__in=rows.values("pk")), "pk", stop):
            pass
        rows = rows.filter(~Exists(DriftFile.objects.filter(check_of=OuterRef("pk"))))
    return _by_slices(rows.order_by(field, "pk"), field, stop, _delete)


def _delete(part: QuerySet[Any]) -> int:
    """Delete the rows of one slice. The audit log's triggers allow it for the time before its retention."""
    if part.model is not AuditEntry:
        return part._raw_delete(using=part.db)
    before = _days_before(_now(), settings.AUDIT_RETENTION_DAYS)
    with append_only.deletes_before(connections[part.db], AuditEntry._meta.db_table, before):
        return part._raw_delete(using=part.db)


def _by_slices(
    rows: QuerySet[Any], field: str, stop: Callable[[], bool], act: Callable[[QuerySet[Any]], int]
) -> Iterator[int]:
    """Apply `act` to slices of rows in the order of `field`, each in its own transaction, and yield each result.

    Each slice continues after the previous one, so rows that stay are read once. Rows locked by others are skipped.
    """
    remaining = rows
    while not stop():
        with transaction.atomic():
            part = list(remaining.select_for_update(skip_locked=True).values_list("pk", field)[:_SLICE])
            if not part:
                break
            done = act(rows.model._default_manager.filter(pk__in=[pk for pk, _ in part]))
        yield done
        remaining = rows.filter(**{f"{field}__gte": part[-1][1]})
