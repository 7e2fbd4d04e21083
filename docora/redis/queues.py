"""The job queues. This is the only module that enqueues.

Pending work is recorded in the database; a job only wakes a worker early. So nothing here raises when Redis is down: the
sweep enqueues due work once Redis is back. RQ's `unique` only prevents duplicate job IDs.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import product

import django_rq
from django.conf import settings
from redis.exceptions import RedisError
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.utils import as_text

from docora.redis.connection import connection, logging_outage
from docora.redis.jobs import DocoraJob

QUEUES = ("high", "default", "low")
WORKER_TTL_SECONDS = 25
"""A worker whose last heartbeat is older is gone. An idle one sends a heartbeat every ten seconds."""
_STALE_SECONDS = 10
_AGAIN_KEY = "docora:again:{}"
_AGAIN_SECONDS = 60
_TOLERANCE_SECONDS = 60


def _queue(name: str) -> Queue:
    """Return a queue on the process's connection.

    django-rq would open a connection without timeouts on each call, and RQ's script cache would never release it.
    """
    queue: Queue = django_rq.get_queue(name, connection=connection())
    return queue


def enqueue(
    queue: str,
    function: str,
    argument: int | str,
    job_id: str,
    *,
    owned: bool = True,
    leased: bool = True,
    alone: bool = False,
    tenant: str = "",
) -> bool:
    """Add a job to a queue unless it is already there. A job in a lower queue is moved up.

    - `function` is a dotted path.
    - `owned`: a worker may hold a lease on the job's subject. A running job is then enqueued again when it ends
      (`enqueue_again`). Without it, a job hash left behind by a dead or frozen worker is replaced.
    - `leased`: a lease keeps two jobs from doing the same work. Without one, a running job whose worker sends heartbeats is
      never replaced.
    - `alone`: the process that performs the job performs no other at the same time.
    - `tenant`: a process shares its threads fairly among the tenants of its jobs.

    Return True if the job is now waiting, False if it is running or Redis is down.
    """
    with logging_outage("job_not_enqueued", job_id=job_id):
        target = _queue(queue)
        try:
            target.enqueue(
                function,
                argument,
                job_id=job_id,
                unique=True,
                job_timeout=-1,
                result_ttl=0,
                failure_ttl=5,
                meta={"alone": alone, "tenant": tenant},
                description=f"{function.rsplit('.', 1)[-1]}({argument})",
            )
            return True
        except DuplicateJobError:
            again = partial(enqueue, queue, function, argument, job_id, leased=leased, alone=alone, tenant=tenant)
            return _requeue(target, job_id, again, owned=owned, leased=leased)
    return False


def _requeue(target: Queue, job_id: str, again: Callable[..., bool], *, owned: bool, leased: bool) -> bool:
    """Do what `enqueue` says about a job ID that Redis already has. `again` repeats the call of `enqueue`."""
    if _is_waiting(target, job_id):
        return True
    if owned:
        target.connection.set(_AGAIN_KEY.format(job_id), target.name, ex=_AGAIN_SECONDS)
        if target.connection.exists(Job.key_for(job_id)):
            return False
        # The job has just ended, perhaps before this key was set.
        return again(owned=False)
    try:
        found = _fetch(job_id)
    except NoSuchJobError:
        # RQ cannot read its hash. If the job has just been enqueued, a worker may already run it.
        if not target.connection.hexists(Job.key_for(job_id), "enqueued_at"):
            target.connection.delete(Job.key_for(job_id))
    else:
        if not _is_left_over(found, leased=leased):
            return False
        _delete(found)
    return again(owned=True)


def _is_waiting(target: Queue, job_id: str) -> bool:
    """Return whether the job is in a queue. If that is a lower one than `target`, move the job to `target`."""
    for name in QUEUES:
        queue = _queue(name)
        if queue.get_job_position(job_id) is not None:
            is_lower = QUEUES.index(name) > QUEUES.index(target.name)
            if is_lower and target.connection.lrem(queue.key, 1, job_id):  # 0: a worker has just taken it
                target.connection.hset(Job.key_for(job_id), "origin", target.name)
                target.connection.rpush(target.key, job_id)
            return True
    return False


def enqueue_again(job: Job) -> None:
    """Enqueue a job that has just succeeded again, if `enqueue` was called for it while it was running.

    The job may have read the database before the change that `enqueue` was called for. That change would otherwise wait
    for the next sweep.
    """
    with logging_outage("job_not_enqueued", job_id=job.id):
        if name := connection().getdel(_AGAIN_KEY.format(job.id)):
            function = str(job.func_name)
            enqueue(as_text(name), function, job.args[0], job.id, alone=runs_alone(job), tenant=tenant_of(job))


def runs_alone(job: Job) -> bool:
    """Return whether the job was enqueued with `alone`."""
    return bool(job.meta.get("alone"))


def tenant_of(job: Job) -> str:
    """Return the tenant that the job was enqueued for."""
    return str(job.meta.get("tenant", ""))


def waiting_seconds(job: Job) -> float:
    """Return how long ago the job was enqueued; infinity if RQ does not know."""
    return _seconds_since(job.enqueued_at)


def _seconds_since(moment: datetime | None) -> float:
    return (datetime.now(UTC) - moment).total_seconds() if moment else math.inf


def _is_left_over(job: Job, *, leased: bool) -> bool:
    """Return whether a job that is in no queue has ended, lost its worker, or is too old to be between two queues now.

    With `leased`, a job that has just started may not have its lease yet, however long it waited. It may wait for a lock in the
    database, for as long as a frozen process can hold one. If it still has no lease then, its own process is frozen.
    """
    match job.get_status(refresh=False):
        case JobStatus.STARTED:  # workers send a heartbeat every three seconds
            seconds = _seconds_since(job.started_at)
            if leased and seconds > max(_STALE_SECONDS, settings.LEASE_SECONDS):
                return True
            return min(seconds, _seconds_since(job.last_heartbeat)) > _STALE_SECONDS
        case JobStatus.QUEUED | None:
            return waiting_seconds(job) > _STALE_SECONDS
    return True


def _fetch(job_id: str) -> Job:
    """Return a job of any queue. Raises `NoSuchJobError`."""
    return DocoraJob.fetch(job_id, connection=connection(), serializer="json")


def _delete(job: Job) -> None:
    """Delete a job, which may have just ended: RQ raises if its hash is gone."""
    with contextlib.suppress(InvalidJobOperation):
        job.delete()


def forget(job_id: str, worker_name: str) -> None:
    """Delete the job that this worker was performing when it died. It can then be enqueued again at once."""
    with logging_outage("job_not_forgotten", job_id=job_id), contextlib.suppress(NoSuchJobError):
        job = _fetch(job_id)
        if job.worker_name == worker_name and job.get_status(refresh=False) != JobStatus.QUEUED:
            _delete(job)


def first_within(name: str, seconds: int) -> bool:
    """Return True for the first caller within `seconds`, over all processes, and False for the others.

    Each `name` is counted separately. Return False when Redis is down.
    """
    key = f"docora:first:{name}"
    with logging_outage("job_not_enqueued", job_id=name):
        if connection().set(key, "1", nx=True, ex=seconds):
            return True
        _delete_if_set_ahead(key, seconds)
    return False


def _delete_if_set_ahead(key: str, seconds: int) -> None:
    """Delete a key that was set for `seconds` while the clock of Redis was ahead: it would not expire until that time."""
    if connection().ttl(key) > seconds + _TOLERANCE_SECONDS:
        connection().delete(key)


@contextlib.contextmanager
def only_one(name: str, seconds: int) -> Iterator[bool]:
    """Yield True for one process or thread at a time, and False for the others, which can skip the work.

    If the first one dies, another may follow after `seconds`. Yield False when Redis is down.
    """
    key = f"docora:only:{name}"
    lock = connection().lock(key, timeout=seconds, blocking=False)
    try:
        is_first = lock.acquire()
        if not is_first:
            _delete_if_set_ahead(key, seconds)
    except RedisError:
        is_first = False
    try:
        yield is_first
    finally:
        if is_first:
            with contextlib.suppress(RedisError):  # includes `LockError`: the lock has expired
                lock.release()


def drop(job_ids: Iterable[str]) -> None:
    """Remove waiting jobs from their queues. Running jobs are not affected."""
    places = list(product(job_ids, QUEUES))
    with logging_outage("jobs_not_removed"), connection().pipeline(transaction=False) as pipeline:
        for job_id, name in places:
            pipeline.lrem(_queue(name).key, 0, job_id)
        removed = pipeline.execute()
        if keys := [Job.key_for(job_id) for (job_id, _), number in zip(places, removed, strict=True) if number]:
            connection().delete(*keys)


def job_ids(queue: str) -> list[str] | None:
    """Return the ids of the jobs in a queue, in order, or None when Redis is down."""
    try:
        return list(_queue(queue).get_job_ids())
    except RedisError:
        return None
