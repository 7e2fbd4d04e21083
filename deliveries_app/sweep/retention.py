"""What is old enough to go: runs, bulk operations, hours of traffic; alerts, sessions and sign-in attempts that are over.

Nothing depends on when this happens, how often, or whether it is killed on the way: each slice is one transaction, and
the next time goes on with what is left. Three kinds of runs stay, however old they are:

- open ones, and the newest one of each watch, which says how things stand;
- of each watch the newest re-sync that ended in any way but by a cancel: the floor goes back to it when a later re-sync is
  cancelled (`engine.md` §3). One that is open does not stand in for it, for it may be the one that is cancelled;
- those of a bulk operation that is kept: its final tally is counted from them.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from deliveries_app.models import Alert, BulkOperation, HourlyTraffic, Outcome, Reason, SyncRun
from docora.redis import queues
from docora.security import sign_in

PRUNE_JOB = "deliveries_app.jobs.prune"
_EVERY_SECONDS = 3600
_SLICE = 2000
_LONGEST_DAYS = 36500  # dates have a beginning


@dataclass(frozen=True)
class Pruned:
    """How many rows of each kind were removed, or would have been."""

    runs: int = 0
    operations: int = 0
    traffic: int = 0
    alerts: int = 0
    sessions: int = 0
    attempts: int = 0

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def enqueue_prune() -> None:
    """Wake the low queue, at most once an hour over all processes."""
    if queues.first_in("prune", _EVERY_SECONDS):
        queues.enqueue("low", PRUNE_JOB, "old", "prune", owned=False)


def prune(
    *, dry_run: bool = False, stop: Callable[[], bool] = lambda: False, told: Callable[[int], None] = lambda _: None
) -> Pruned:
    """Remove what is older than its retention allows, as long as `stop` does not say otherwise. `dry_run` counts only.
    `told` is called again and again with how much has been removed."""
    now = timezone.now()
    operations = _old_operations(now)
    runs = _old_runs(now, operations)
    others: dict[str, tuple[QuerySet[Any], str]] = {
        "operations": (operations, "created_at"),
        "traffic": (_older(HourlyTraffic.objects.all(), "hour", settings.TRAFFIC_RETENTION_DAYS, now), "hour"),
        "alerts": (_older(Alert.objects.all(), "ended_at", settings.SYNC_RUN_RETENTION_DAYS, now), "ended_at"),
        "sessions": (Session.objects.filter(expire_date__lt=now), "expire_date"),
        "attempts": (sign_in.old_attempts(now), "attempt_time"),
    }
    if dry_run:
        return Pruned(runs.count(), **{name: rows.count() for name, (rows, _) in others.items()})
    gone = Counter[str]()
    for name, (rows, field) in {"runs": (runs, "created_at"), **others}.items():
        if name == "operations":
            _detach(SyncRun.objects.filter(operation__in=operations.values("pk")), stop)
        for count in _remove(rows, field, stop):
            gone[name] += count
            told(gone.total())
    return Pruned(**gone)


def _older(rows: QuerySet[Any], field: str, days: int, now: datetime) -> QuerySet[Any]:
    """Those whose time lies so many days back; none where 0 days mean for ever."""
    if not days:
        return rows.none()
    return rows.filter(**{f"{field}__lt": now - timedelta(days=min(days, _LONGEST_DAYS))})


def _old_operations(now: datetime) -> QuerySet[BulkOperation]:
    """By their end; when they were asked for, which is earlier, has the index."""
    days = settings.BULK_OPERATION_RETENTION_DAYS
    return _older(_older(BulkOperation.objects.all(), "ended_at", days, now), "created_at", days, now)


def _old_runs(now: datetime, operations: QuerySet[BulkOperation]) -> QuerySet[SyncRun]:
    """The runs that nothing needs any more, by the rules above. What speaks of no watch any more is needed by none."""
    days = settings.SYNC_RUN_RETENTION_DAYS
    old: QuerySet[SyncRun] = _older(_older(SyncRun.objects.all(), "ended_at", days, now), "created_at", days, now)
    later = SyncRun.objects.filter(
        watch=OuterRef("watch"), pk__gt=OuterRef("pk"), generation__gte=OuterRef("generation")
    )
    floors = SyncRun.objects.filter(watch=OuterRef("watch"), reason=Reason.RESYNC).exclude(
        outcome__in=["", Outcome.CANCELLED]
    )
    is_no_floor = ~Q(reason=Reason.RESYNC) | Q(outcome=Outcome.CANCELLED)
    has_later_floor = Exists(floors.filter(generation__gt=OuterRef("generation")))
    return old.filter(
        Q(watch=None) | (Exists(later) & (is_no_floor | has_later_floor)),
        Q(operation=None) | Q(operation__in=operations.values("pk")),
    )


def _detach(runs: QuerySet[SyncRun], stop: Callable[[], bool]) -> None:
    """Runs that outlive their operation forget it; nothing is removed while a run speaks of it."""
    for _ in _by_slices(runs.order_by("pk"), "pk", stop, lambda rows: rows.update(operation=None)):
        pass


def _remove(rows: QuerySet[Any], field: str, stop: Callable[[], bool]) -> Iterator[int]:
    """How many rows of each slice. Without Django's look at every row: what else speaks of them has been seen to."""
    if rows.model is BulkOperation:
        rows = rows.filter(~Exists(SyncRun.objects.filter(operation=OuterRef("pk"))))
    return _by_slices(rows.order_by(field, "pk"), field, stop, lambda part: part._raw_delete(using=part.db))


def _by_slices(
    rows: QuerySet[Any], field: str, stop: Callable[[], bool], act: Callable[[QuerySet[Any]], int]
) -> Iterator[int]:
    """A transaction for each slice, in the order of `field`, which carries on where the slice before ended: what stays is
    looked at once. What somebody else holds just now is left for the next time. How many rows, slice by slice."""
    rest = rows
    while not stop():
        with transaction.atomic():
            part = list(rest.select_for_update(skip_locked=True).values_list("pk", field)[:_SLICE])
            if not part:
                break
            done = act(rows.model._default_manager.filter(pk__in=[pk for pk, _ in part]))
        yield done
        rest = rows.filter(**{f"{field}__gte": part[-1][1]})
