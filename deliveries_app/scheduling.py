"""Due times and enqueueing. A request is stored in the watch's row first; the job only wakes a worker (`engine.md` §6)."""

from datetime import timedelta
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import (
    Case,
    DateTimeField,
    DurationField,
    ExpressionWrapper,
    F,
    Func,
    Q,
    QuerySet,
    Value,
    When,
    Window,
)
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce, Greatest, Least, Now, Random, RowNumber

from deliveries_app.models import AppRepository, AppRepositoryQuerySet, Status, SyncRun
from deliveries_app.models.watches import app_is_full
from docora.db.compiled import compiled_and_prepared
from docora.redis import queues

_JITTER = 0.1  # share of the interval between checks, in either direction
SYNC_JOB = "deliveries_app.jobs.sync_watch"
SYNC_ALONE_JOB = "deliveries_app.jobs.sync_watch_alone"
AFTER_PUSH_SECONDS = 5, 30
ENQUEUE_AHEAD = 20  # due watches that are enqueued at a time; another app's change has to wait for them
HIGH_JOBS_PER_APP = 4
DUE_NOW: dict[str, Any] = {"request_count": F("request_count") + 1, "next_sync_at": Now()}
"""The columns of a watch whose sync is requested. If an attempt is running, it notices the higher count and leaves the watch due."""
ALL_ATTEMPTS: dict[str, Any] = {
    "retry_count": 0,
    "status": Case(When(status=Status.FAILED, then=Value(Status.PENDING)), default=F("status")),
}
"""The columns of a watch that gets all attempts again: if it had none left, it is pending, not failed."""
SUPERSEDE = {"generation": F("generation") + 1, "status": Status.PENDING, "retry_count": 0, **DUE_NOW}
"""The columns of a watch whose request also supersedes what a worker is doing (`engine.md` §3)."""
RESYNC = {"resend_floor": F("generation") + 1, **SUPERSEDE}
"""The columns of a watch whose re-sync is requested: the floor rises to the new generation, so no row counts as delivered."""


def request_sync(watches: AppRepositoryQuerySet, **changes: Any) -> list[int]:
    """Make these watches due now, including those that a worker is syncing, and return their primary keys.

    `changes` are further fields to update.
    """
    with transaction.atomic():
        pks = watches.lock()
        AppRepository.objects.filter(pk__in=pks).update(**DUE_NOW, **changes)
    return pks


def enqueue(watch: AppRepository) -> None:
    """Put a watch that is already due into the high queue, after the current transaction commits.

    If `HIGH_JOBS_PER_APP` jobs of its app wait there, leave it to `enqueue_due`. Otherwise an app that adds a thousand
    repositories would delay all others.
    """
    job = _job(watch)

    def enqueue_high() -> None:
        prefix = f"{job['tenant']}-"
        waiting = [other.removeprefix(prefix) for other in queues.job_ids("high") or [] if other.startswith(prefix)]
        if len(waiting) >= HIGH_JOBS_PER_APP:
            # Perhaps not all are the app's: imported ids may contain dashes, so another app's id may begin like this one's.
            own = AppRepository.objects.filter(app=watch.app_id, repository__repository_id__in=waiting)
            if own.count() >= HIGH_JOBS_PER_APP:
                return
        queues.enqueue("high", **job)

    transaction.on_commit(enqueue_high, robust=True)


def _job(watch: AppRepository) -> dict[str, Any]:
    """Return the arguments that describe the watch's job to `docora.redis.queues`."""
    alone = watch.needs_own_process
    return {
        "function": SYNC_ALONE_JOB if alone else SYNC_JOB,
        "argument": watch.pk,
        "job_id": watch.job_id,
        "alone": alone,
        "tenant": watch.app.app_id,
    }


def enqueue_due(*, after_job_of: int | None = None) -> int:
    """Fill the default queue with watches that can start now. Return how many were added.

    The apps take turns, each with its longest-waiting watch, so an app with many due watches delays no other. Those of bulk
    operations come after the app's others and, in each round of turns, after those of other apps. Does nothing while the
    queue is more than half full, or while another process is filling it. The sweep fills the default queue every second.

    `after_job_of`: the watch whose job calls this at its end. Leave out this watch: its run may have made way for those that are
    added here. Also do nothing while several jobs wait in the high queue, which come first anyway.
    """
    waiting = queues.job_ids("default")
    if waiting is None or len(waiting) > ENQUEUE_AHEAD // 2:
        return 0
    high = queues.job_ids("high") or []
    if after_job_of is not None and len(high) >= HIGH_JOBS_PER_APP:
        return 0
    # Enqueueing one that waits in the high queue changes nothing, but takes several round trips.
    enqueued = {*waiting, *high}
    with queues.only_one("enqueue_due", seconds=5) as is_first:
        watches = _next_due() if is_first else []
        jobs = [_job(watch) for watch in watches if watch.pk != after_job_of and watch.job_id not in enqueued]
        return sum(queues.enqueue("default", owned=False, **job) for job in jobs)


def has_bulk_run() -> Q:
    """Match watches with an open run of a bulk operation, unless they were pushed since they became due. Other watches come first.

    Not a NOT EXISTS: PostgreSQL's statistics usually know of few open runs. After a re-sync of thousands of watches, it would
    compare each watch with each of these runs.
    """
    opened = SyncRun.objects.filter(outcome="", operation__isnull=False, watch__isnull=False)
    return Q(pk__in=opened.order_by().values("watch")) & ~Q(pushed_at__gte=F("next_sync_at"))


def _next_due() -> list[AppRepository]:
    """Return the due watches to start next, in order.

    A first query reads only their keys. Thousands of watches may be due, and their repositories need not be read to choose these.
    """
    pks = _next_keys()
    watches = AppRepository.objects.select_related("app", "repository")
    watches = watches.only("crash_count", "lease_until", "app__app_id", "repository__repository_id")
    found = watches.in_bulk(pks)
    return [found[pk] for pk in pks if pk in found]


@compiled_and_prepared
def _next_keys() -> "QuerySet[AppRepository, int]":
    is_bulk: Any = Case(When(has_bulk_run(), then=1), default=0)
    turn = Window(RowNumber(), partition_by="app_id", order_by=[is_bulk, "next_sync_at", "pk"])
    # If an app has no free slot, one of its watches asks for one. The others would find none.
    finds_no_slot = Case(When(app_is_full(), turn__gt=1, then=True), default=False)
    due = AppRepository.objects.due().free().startable().alias(is_bulk=is_bulk, turn=turn)
    # With the limit for `turn`, PostgreSQL ranks only so many watches of each app.
    rows = due.alias(finds_no_slot=finds_no_slot).filter(finds_no_slot=False, turn__lte=ENQUEUE_AHEAD)
    # `is_bulk` comes before the due time, because watches of a bulk operation are due earlier than changes found after it began.
    return rows.order_by("turn", "is_bulk", "next_sync_at", "pk").values_list("pk", flat=True)[:ENQUEUE_AHEAD]


def next_check(moved_at: Combinable | None = None) -> Combinable:
    """Return the expression for `next_check_at`: the longer the branch has not moved, the later the next check.

    The interval is half the time since the last move, within the two RESCAN settings, plus or minus 10%. Pass
    `moved_at` if the same UPDATE changes it. Otherwise, if a push hook has just arrived, it may have overtaken the git
    host's own replicas, so the next check is `AFTER_PUSH_SECONDS` after it. A check that a push hook requested
    meanwhile keeps its time.
    """
    return _next_check(settings.RESCAN_MIN_INTERVAL_SECONDS, settings.RESCAN_INTERVAL_SECONDS, moved_at)


@lru_cache(100)  # a query that uses the same object again is compiled only once
def _next_check(shortest: float, longest: float, moved_at: Combinable | None) -> Combinable:
    half = _Duration((Now() - (moved_at or Coalesce(F("moved_at"), F("created_at")))) * Value(0.5))
    interval = Least(Greatest(half, _seconds(shortest)), _seconds(longest))
    jitter = Value(1 - _JITTER) + Value(2 * _JITTER) * Random()
    regular = ExpressionWrapper(Now() + _Duration(interval * jitter), output_field=DateTimeField())
    asked = When(pushed_at=F("next_check_at"), then=F("next_check_at"))  # see `push_hooks.repository_pushed`
    if moved_at is not None:
        return Case(asked, default=regular)
    after_push = [timedelta(seconds=seconds) for seconds in AFTER_PUSH_SECONDS]
    again = (When(pushed_at__gt=Now() - wait, then=F("pushed_at") + wait) for wait in after_push)
    return Case(asked, *again, default=regular)


class _Duration(Func):
    """A multiplied duration. SQLite stores durations as integer microseconds, but Django's product there is text."""

    template = "(%(expressions)s)"

    def __init__(self, product: Combinable) -> None:
        super().__init__(ExpressionWrapper(product, output_field=DurationField()), output_field=DurationField())

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template="CAST(%(expressions)s AS INTEGER)", **extra)


def _seconds(seconds: float) -> Value:
    return Value(timedelta(seconds=seconds), output_field=DurationField())
