"""Running, waiting and scheduled work for the queue page: rows joined with the state of Redis.

The rows are the source of truth. A leased watch is running; a due one is waiting, with or without a job. Redis only adds
the job's queue and the workers. Without Redis the page shows the rows.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db.models import DurationField, ExpressionWrapper, F
from django.db.models.functions import Now

from deliveries_app.models import AppRepository, DriftCheck, StateDetail, SyncPause, SyncRun, WatchState
from deliveries_app.monitoring.counts import WatchCounts, count_watches
from deliveries_app.permissions import Permission
from deliveries_app.progress import live
from deliveries_app.progress.live import Progress
from deliveries_app.progress.runs import newest_open_runs
from deliveries_app.reports.next_attempt import due_at
from deliveries_app.reports.system import System, read_system
from deliveries_app.services import current_pause
from docora.redis import inspect
from docora.redis.inspect import Job, QueueState, Worker
from docora.templatetags.docora import time_of_day
from docora.text import format_seconds, parse_pk

SHOWN, SCHEDULED_SHOWN = 100, 50
_OTHER_JOBS = {
    "clean_up": ("Cleanup", "Removing data of repositories that are no longer watched"),
    "prune": ("Cleanup", "Removing old history"),
    "send_alerts": ("Alerts", "Sending alerts in place of the sweep"),
}
"""Function of a job that is not for a watch → its name, and what it does."""


@dataclass(frozen=True)
class Line:
    """A running or waiting watch, with its open run. `message` says why it waits, or what happened to its worker.

    `check` is its open check for differences. If there is nothing to send, the watch is due only because of it.
    """

    watch: AppRepository
    run: SyncRun | None
    progress: Progress | None
    check: DriftCheck | None
    queue: str = ""
    message: str = ""

    @property
    def since(self) -> datetime | None:
        """When the run started or was requested, or without a run, when the watch became due."""
        return (self.run.started_at or self.run.created_at) if self.run else self.watch.next_sync_at

    @property
    def is_cancelling(self) -> bool:
        """Whether the sync was cancelled or superseded, so that its worker only waits for the requests in flight."""
        return self.watch.state != WatchState.SYNCING


@dataclass(frozen=True)
class WorkerLine:
    """A worker and the watches it is syncing. If the worker is gone, `message` says what happens next."""

    worker: Worker
    watches: list[AppRepository]
    message: str = ""

    @property
    def other_job(self) -> str:
        """The name of its job that is not for a watch, if it has one."""
        job = self.worker.job
        return _described(job)[0] if job is not None and _watch_of(job) is None else ""


@dataclass(frozen=True)
class QueueView:
    """The queue page. `queue` is None while Redis is down or rejects writes.

    `counts` agree with the lists. `unqueued` is the number of due watches without a job, and `idle_jobs` the number of jobs
    without a due watch. `others` holds each waiting job that is not for a watch, its name, and what it does. `scheduled` holds
    each watch with the time of its next attempt, None during a pause, and its next step.
    """

    pause: SyncPause | None
    queue: QueueState | None
    counts: WatchCounts
    running: list[Line]
    waiting: list[Line]
    unqueued: int
    idle_jobs: int
    others: list[tuple[Job, str, str]]
    scheduled: list[tuple[AppRepository, datetime | None, str]]
    workers: list[WorkerLine]
    system: System

    @property
    def more_running(self) -> int:
        return max(0, self.counts.leased - len(self.running))

    @property
    def more_waiting(self) -> int:
        return max(0, self.counts.due + self.counts.held - len(self.waiting))

    @property
    def more_scheduled(self) -> int:
        return max(0, self.counts.scheduled - len(self.scheduled))

    @property
    def workers_alive(self) -> int:
        return sum(not line.worker.is_gone for line in self.workers)


def can_view(user: User | AnonymousUser) -> bool:
    return user.has_perm(Permission.VIEW_QUEUE) or user.has_perm(Permission.CONTROL_QUEUE)


def read_queue() -> QueueView:
    """Read the queue page in a constant number of queries."""
    pause, counts = current_pause(), count_watches()
    system = read_system(counts.due_since)
    queue = inspect.read() if system.signs else None
    jobs = queue.jobs if queue else []
    queued = {pk: job.queue for job in jobs if (pk := _watch_of(job))}
    watches = AppRepository.objects.for_pages()
    # Read before the running ones: a watch that starts between the queries is then listed as running.
    due = watches.free().filter(next_sync_at__lte=Now())
    found = due.in_bulk(list(queued))
    with_job = [found[pk] for pk in queued if pk in found]
    without_job = list(due.exclude(pk__in=queued).order_by("next_sync_at", "pk")[: max(0, SHOWN - len(with_job))])
    lease_left = ExpressionWrapper(F("lease_until") - Now(), output_field=DurationField())  # by the database's clock
    running = list(watches.leased().annotate(lease_left=lease_left).order_by("next_sync_at", "pk")[:SHOWN])
    started = {watch.pk for watch in running}
    waiting = [watch for watch in (*with_job, *without_job) if watch.pk not in started]
    rows = watches.scheduled().order_by("next_sync_at", "pk")[:SCHEDULED_SHOWN]
    scheduled = [(watch, due_at(watch), _next_step(watch)) for watch in rows]
    are_all_listed = len(with_job) + len(without_job) < SHOWN
    counts = _agreeing(counts, running, waiting if are_all_listed else None, scheduled)
    ready = sum(watch.pk in queued and not watch.detail.is_held_back for watch in waiting)
    waiting = waiting[:SHOWN]
    newest = newest_open_runs([*running, *waiting])
    progress = live.of_runs(newest[watch.pk] for watch in running if watch.pk in newest)
    open_checks = DriftCheck.objects.open().filter(watch__in=[watch.pk for watch in (*running, *waiting)])
    checks = {check.watch_id: check for check in open_checks}

    def line(watch: AppRepository, **more: Any) -> Line:
        run = newest.get(watch.pk)
        return Line(watch, run, progress.get(run.pk) if run else None, checks.get(watch.pk), **more)

    workers = _workers(queue.workers if queue else [], running)
    alive = {worker.worker.name for worker in workers if not worker.worker.is_gone} if queue else None
    return QueueView(
        pause=pause,
        queue=queue,
        counts=counts,
        running=[line(watch, message=_lease_message(watch, alive)) for watch in running],
        waiting=[line(watch, queue=queued.get(watch.pk, ""), message=_why_waiting(watch)) for watch in waiting],
        unqueued=max(0, counts.due - ready - (sum(queue.lengths.values()) - len(jobs) if queue else 0)),
        idle_jobs=len(queued) - len(with_job),
        others=[(job, *_described(job)) for job in jobs if _watch_of(job) is None],
        scheduled=scheduled,
        workers=workers,
        system=system,
    )


def _agreeing(
    counts: WatchCounts, running: list[Any], waiting: list[AppRepository] | None, scheduled: list[Any]
) -> WatchCounts:
    """Return the counts with those of the complete lists: a sync may have started or ended between the queries.

    `waiting` is None if not all of them were read.
    """
    listed: dict[str, Any] = {}
    if len(running) < SHOWN:
        listed["leased"] = len(running)
    if waiting is not None:
        listed["held"] = sum(watch.detail.is_held_back for watch in waiting)
        listed["due"] = len(waiting) - listed["held"]
    if len(scheduled) < SCHEDULED_SHOWN:
        listed["scheduled"] = len(scheduled)
    return replace(counts, **listed)


def _watch_of(job: Job) -> int | None:
    """Return the primary key of the watch that a job is for; None for any other job."""
    return parse_pk(job.argument) if job.function in {"sync_watch", "sync_watch_alone"} else None


def _described(job: Job) -> tuple[str, str]:
    return _OTHER_JOBS.get(job.function, (job.function, ""))


def _why_waiting(watch: AppRepository) -> str:
    """Return what a due watch is waiting for; empty if only for its turn."""
    if not watch.detail.is_held_back and watch.detail != StateDetail.WAITS_FOR_SLOT:
        return ""
    until = f" until {time_of_day(watch.waits_until)}" if watch.waits_until else ""
    return f"{watch.state.label!s}{until}: {watch.detail.label}"


def _lease_message(watch: Any, alive: set[str] | None) -> str:
    """Say what happens next if the worker has stopped extending its lease. Empty while the worker extends it.

    `alive` holds the names of the live workers. It is None without Redis, which knows them.
    """
    left = watch.lease_left.total_seconds()
    silent = settings.LEASE_SECONDS - left
    if silent <= settings.LEASE_SECONDS / 4:  # workers extend it every sixth of its time
        return ""
    free = f"another worker takes over in {format_seconds(left)}."
    if alive is not None and watch.lease_owner not in alive:
        return f"This worker has died: {free}"
    return f"No heartbeat for {format_seconds(silent)}. If the worker has died, {free}"


def _workers(workers: list[Worker], running: list[Any]) -> list[WorkerLine]:
    lines = []
    for worker in workers:
        held = [watch for watch in running if watch.lease_owner == worker.name]
        message = ""
        if worker.is_gone:
            message = "Died, or cut off from Redis. " + " ".join(
                f"Another worker takes over {watch} in {format_seconds(watch.lease_left.total_seconds())}."
                for watch in held
            )
        lines.append(WorkerLine(worker, [] if worker.is_gone else held, message.strip()))
    return lines


def _next_step(watch: AppRepository) -> str:
    """Return which attempt comes next, or the reason for waiting."""
    if watch.detail == StateDetail.RETRYING:
        limit = settings.MAX_RETRY_ATTEMPTS  # which may have been lowered since the last attempt
        return f"Attempt {min(watch.retry_count + 1, limit):,} of {limit:,}"
    if watch.detail == StateDetail.FAILED:
        return "Check for changes, then try again"
    if watch.detail in {StateDetail.UP_TO_DATE, StateDetail.SCHEDULED}:
        return "Check for changes"
    return str(watch.detail.label).capitalize()
