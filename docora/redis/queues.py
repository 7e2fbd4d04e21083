"""The only place that enqueues.

The database holds what is to be done; a job only wakes a worker early. So nothing here raises when Redis is down: the
sweep enqueues whatever is due once Redis is back. RQ's `unique` keeps one job per id and decides nothing else.
"""

import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial

import django_rq
from django.db import transaction
from redis.exceptions import RedisError
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job
from rq.queue import Queue

from docora.redis.connection import connection

logger = logging.getLogger(__name__)

QUEUES = ("high", "default", "low")
_STALE_SECONDS = 10


def _queue(name: str) -> Queue:
    """On the process's own connection: django-rq would open one for each call, which rq's script cache never lets go,
    and without time-outs."""
    queue: Queue = django_rq.get_queue(name, connection=connection())
    return queue


def enqueue_after_commit(queue: str, function: str, argument: int | str, job_id: str) -> None:
    """`enqueue` once the current transaction is committed; at once where there is none."""
    transaction.on_commit(partial(enqueue, queue, function, argument, job_id), robust=True)


def enqueue(queue: str, function: str, argument: int | str, job_id: str, *, owned: bool = True) -> bool:
    """Put a job into a queue unless it waits there already; one that waits in a lower queue is moved up.

    `function` is a dotted path. `owned=False` says that no worker holds what the job is about: then a job whose hash
    is left over from a worker that died is replaced. True when the job waits now, False when that is not so (it is
    running, or Redis is down).
    """
    try:
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
                description=f"{function.rsplit('.', 1)[-1]}({argument})",
            )
            return True
        except DuplicateJobError:
            return _revive(target, function, argument, job_id, owned=owned)
    except (RedisError, OSError) as error:
        logger.warning("not_enqueued", extra={"job_id": job_id, "cause": str(error)})
        return False


def _revive(target: Queue, function: str, argument: int | str, job_id: str, *, owned: bool) -> bool:
    for name in QUEUES:
        queue = _queue(name)
        if queue.get_job_position(job_id) is None:
            continue
        if QUEUES.index(name) <= QUEUES.index(target.name):
            return True
        if target.connection.lrem(queue.key, 1, job_id):
            target.connection.hset(Job.key_for(job_id), "origin", target.name)
            target.connection.rpush(target.key, job_id)
        return True
    if owned:
        return False
    try:
        found = Job.fetch(job_id, connection=target.connection)
    except NoSuchJobError:
        _discard_unreadable(target, job_id)
    else:
        if not _is_left_over(found):
            return False
        found.delete()
    return enqueue(target.name, function, argument, job_id, owned=True)


def _is_left_over(job: Job) -> bool:
    """In no queue, and older than a moment between two lists could be."""
    return job.enqueued_at is None or (datetime.now(UTC) - job.enqueued_at).total_seconds() > _STALE_SECONDS


def _discard_unreadable(queue: Queue, job_id: str) -> None:
    """What rq cannot read as a job. Not one that somebody else has just enqueued: a worker may be at it already."""
    key = Job.key_for(job_id)
    if not queue.connection.hexists(key, "enqueued_at"):
        queue.connection.delete(key)


def first_in(name: str, seconds: int) -> bool:
    """Whether nobody else, in any process, has been told so within so many seconds. False when Redis is down."""
    try:
        return bool(connection().set(f"docora:first:{name}", "1", nx=True, ex=seconds))
    except (RedisError, OSError) as error:
        logger.warning("not_enqueued", extra={"job_id": name, "cause": str(error)})
        return False


def drop(job_ids: Iterable[str]) -> None:
    """Take waiting jobs out of their queues; running ones notice at their next batch."""
    try:
        for job_id in job_ids:
            for name in QUEUES:
                if connection().lrem(_queue(name).key, 0, job_id):
                    connection().delete(Job.key_for(job_id))
    except (RedisError, OSError) as error:
        logger.warning("not_dropped", extra={"cause": str(error)})


def waiting(queue: str) -> int | None:
    """How many jobs wait in a queue; None when Redis is down."""
    try:
        return int(_queue(queue).count)
    except (RedisError, OSError):
        return None


WORKER_TTL_SECONDS = 25
