"""What Redis says about queues and workers, for people to look at. It decides nothing: the rows do.

Read by hand: rq's `Worker.all` sets the time-out of the connection that it is given to seven minutes, and so would have
every page wait that long for a Redis that hangs; and to read a job with rq is to unpickle it.
"""

import re
from collections.abc import Iterable
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

JOBS_READ, WORKERS_READ = 200, 100
_WORKER_PREFIX = BaseWorker.redis_worker_namespace_prefix
_DESCRIPTION = re.compile(r"(\w+)\((.*)\)")  # as `queueing.enqueue` writes it


@dataclass(frozen=True)
class Job:
    """A job that waits in `queue` or that a worker is at: `function` of `argument`, enqueued at `since`."""

    job_id: str
    function: str
    argument: str
    queue: str
    since: datetime | None


@dataclass(frozen=True)
class Worker:
    """A worker as it registered itself, and what it is at. Leases that it holds have its name as `lease_owner`."""

    name: str
    host: str
    pid: int
    queues: str
    state: str
    born_at: datetime | None
    seen_at: datetime | None
    job: Job | None

    @property
    def is_gone(self) -> bool:
        """It has not said for longer than it may that it lives: killed, or cut off. Redis forgets it after a while."""
        limit = timezone.now() - timedelta(seconds=WORKER_TTL_SECONDS)
        return self.seen_at is None or self.seen_at < limit


@dataclass(frozen=True)
class QueueState:
    """How many jobs wait in each queue, the first `JOBS_READ` of each in the order in which they are taken, and every
    worker that is registered."""

    lengths: dict[str, int]
    jobs: list[Job]
    workers: list[Worker]


def read() -> QueueState | None:
    """None when Redis is down."""
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
    except (RedisError, OSError):
        return None


def read_workers() -> list[Worker]:
    """The workers that are registered, the oldest first. Raises `RedisError`."""
    redis = connection()
    keys = sorted(map(as_text, redis.smembers(BaseWorker.redis_workers_keys)))[:WORKERS_READ]
    if not keys:
        return []
    with redis.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hgetall(key)
            pipeline.smembers(WORKER_EXECUTIONS_KEY_TEMPLATE.format(key.removeprefix(_WORKER_PREFIX)))
        answers = pipeline.execute()
    found = [(key, _text(facts), at) for key, facts, at in zip(keys, answers[::2], answers[1::2], strict=True) if facts]
    current = {key: min(parse_composite_key(member.decode())[0] for member in at) for key, _, at in found if at}
    jobs = {job.job_id: job for job in _jobs(redis, [(job_id, "") for job_id in current.values()])}
    workers = [_worker(key, facts, jobs.get(current.get(key, ""))) for key, facts, _ in found]
    return sorted(workers, key=lambda worker: (worker.born_at or datetime.min.replace(tzinfo=UTC), worker.name))


def _jobs(redis: Redis, waiting: Iterable[tuple[str, str]]) -> list[Job]:
    """The jobs of these ids and queues; one whose hash is gone is no job any more."""
    waiting = list(waiting)
    with redis.pipeline(transaction=False) as pipeline:
        for job_id, _ in waiting:
            pipeline.hmget(RqJob.key_for(job_id), "description", "enqueued_at")
        answers = pipeline.execute() if waiting else []
    jobs = []
    for (job_id, queue), (description, enqueued_at) in zip(waiting, answers, strict=True):
        said = _DESCRIPTION.fullmatch(description.decode()) if description else None
        if said:
            jobs.append(Job(job_id, said[1], said[2], queue, _moment(enqueued_at)))
    return jobs


def _worker(key: str, facts: dict[str, str], job: Job | None) -> Worker:
    return Worker(
        name=key.removeprefix(_WORKER_PREFIX),
        host=facts.get("hostname", ""),
        pid=int(facts["pid"]) if facts.get("pid", "").isdecimal() else 0,
        queues=facts.get("queues", "").replace(",", ", "),
        state=facts.get("state", ""),
        born_at=_moment(facts.get("birth")),
        seen_at=_moment(facts.get("last_heartbeat")),
        job=job,
    )


def _text(facts: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode("utf-8", "replace") for name, value in facts.items()}


def _moment(written: str | bytes | None) -> datetime | None:
    if not written:
        return None
    try:
        return utcparse(written.decode() if isinstance(written, bytes) else written).replace(tzinfo=UTC)
    except ValueError:
        return None
