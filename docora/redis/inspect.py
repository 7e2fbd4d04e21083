"""Read queues and workers from Redis, for display only. Scheduling relies on database rows instead.

Reads RQ's keys directly: `Worker.all` sets the connection's timeout to seven minutes, so every page would wait that
long for a Redis that hangs, and RQ unpickles each job that it reads.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.utils import timezone
from redis import Redis
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE
from rq.job import Job as RqJob
from rq.queue import Queue as RqQueue
from rq.utils import as_text, parse_composite_key, utcparse
from rq.worker import BaseWorker

from docora.redis.connection import RedisError, connection
from docora.redis.queues import QUEUES, WORKER_TTL_SECONDS
from docora.security.crypto import key_fingerprint

JOBS_READ = 200
_WORKER_PREFIX = BaseWorker.redis_worker_namespace_prefix
_DESCRIPTION = re.compile(r"(\w+)\((.*)\)")  # as written by `docora.redis.queues.enqueue`


@dataclass(frozen=True)
class Job:
    """A job that waits in `queue`, or that a worker is running: `function(argument)`, enqueued at `since`."""

    job_id: str
    function: str
    argument: str
    queue: str
    since: datetime | None


@dataclass(frozen=True)
class Worker:
    """A registered worker and one of its current jobs. Its leases have its name as `lease_owner`.

    It performs at most `jobs_at_once` jobs, and has a database connection for each. `disk_problem` is what
    `docora.disk.problem` returns on its machine; 1.0.0 didn't publish it.
    """

    name: str
    host: str
    pid: int
    queues: str
    jobs_at_once: int
    state: str
    started_at: datetime | None
    seen_at: datetime | None
    encryption_key: str
    disk_problem: str
    job: Job | None

    @property
    def is_gone(self) -> bool:
        """Whether its heartbeat is overdue: it was killed or cannot reach Redis. Its key in Redis expires later."""
        limit = timezone.now() - timedelta(seconds=WORKER_TTL_SECONDS)
        return self.seen_at is None or self.seen_at < limit

    @property
    def has_other_key(self) -> bool:
        """Whether it was started with another first key in ENCRYPTION_KEYS, or with another SECRET_KEY. 1.0.0 didn't say."""
        return self.encryption_key not in {"", key_fingerprint()}


@dataclass(frozen=True)
class QueueState:
    """Queue lengths, the next `JOBS_READ` jobs of each queue in order, and the registered workers."""

    lengths: dict[str, int]
    jobs: list[Job]
    workers: list[Worker]


def read() -> QueueState | None:
    """Return the current state, or None when Redis is down."""
    redis = connection()
    try:
        with redis.pipeline(transaction=False) as pipeline:
            for name in QUEUES:
                pipeline.llen(RqQueue.redis_queue_namespace_prefix + name)
                pipeline.lrange(RqQueue.redis_queue_namespace_prefix + name, 0, JOBS_READ - 1)
            answers = pipeline.execute()
        lengths = dict(zip(QUEUES, map(int, answers[::2]), strict=True))
        waiting = [(job_id.decode(), name) for name, ids in zip(QUEUES, answers[1::2], strict=True) for job_id in ids]
        return QueueState(lengths, _jobs(redis, waiting), read_workers())
    except RedisError:
        return None


def read_workers() -> list[Worker]:
    """Return the registered workers, oldest first. Raises `RedisError`."""
    redis = connection()
    keys = sorted(map(as_text, redis.smembers(BaseWorker.redis_workers_keys)))
    with redis.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hgetall(key)
            pipeline.smembers(WORKER_EXECUTIONS_KEY_TEMPLATE.format(key.removeprefix(_WORKER_PREFIX)))
        answers = pipeline.execute()
    # One of the jobs that each worker performs, always the same one.
    current = [min((parse_composite_key(as_text(each))[0] for each in found), default="") for found in answers[1::2]]
    jobs = {job.job_id: job for job in _jobs(redis, [(job_id, "") for job_id in current if job_id])}
    found = zip(keys, answers[::2], current, strict=True)
    workers = [_worker(key, fields, jobs.get(job_id)) for key, fields, job_id in found if fields]
    return sorted(workers, key=lambda worker: (worker.started_at or datetime.min.replace(tzinfo=UTC), worker.name))


def live_workers() -> list[Worker]:
    """Return the workers that are alive, oldest first; none while Redis is down."""
    with suppress(RedisError):
        return [worker for worker in read_workers() if not worker.is_gone]
    return []


def _jobs(redis: Redis, waiting: Sequence[tuple[str, str]]) -> list[Job]:
    """Return the jobs with these IDs and queues, without those whose hash no longer exists."""
    with redis.pipeline(transaction=False) as pipeline:
        for job_id, _ in waiting:
            pipeline.hmget(RqJob.key_for(job_id), "description", "enqueued_at")
        answers = pipeline.execute()
    jobs = []
    for (job_id, queue), (description, enqueued_at) in zip(waiting, answers, strict=True):
        match = _DESCRIPTION.fullmatch(description.decode()) if description else None
        if match:
            jobs.append(Job(job_id, match[1], match[2], queue, _parse_time(enqueued_at)))
    return jobs


def _worker(key: str, encoded: dict[bytes, bytes], job: Job | None) -> Worker:
    fields = {as_text(name): as_text(value) for name, value in encoded.items()}
    return Worker(
        name=key.removeprefix(_WORKER_PREFIX),
        host=fields.get("hostname", ""),
        pid=_parse_number(fields.get("pid", "")),
        queues=fields.get("queues", "").replace(",", ", "),
        jobs_at_once=_parse_number(fields.get("jobs_at_once", "")),
        state=fields.get("state", ""),
        started_at=_parse_time(fields.get("birth")),
        seen_at=_parse_time(fields.get("last_heartbeat")),
        encryption_key=fields.get("encryption_key", ""),
        disk_problem=fields.get("disk_problem", ""),
        job=job,
    )


def _parse_number(value: str) -> int:
    return int(value) if value.isdecimal() else 0


def _parse_time(value: str | bytes | None) -> datetime | None:
    try:
        return utcparse(as_text(value)).replace(tzinfo=UTC) if value else None
    except ValueError:
        return None
