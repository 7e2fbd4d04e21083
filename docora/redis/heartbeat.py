"""Signs of life, from Redis: when the sweep last looked, which workers live, how many jobs wait and run.

Whoever works says so every few seconds, rq's workers by themselves. A sign that is too old is none: one that was killed
leaves its last one behind.
"""

import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.utils import timezone
from redis import Redis
from rq import Queue, Worker
from rq.registry import StartedJobRegistry
from rq.utils import utcparse

from docora.redis.connection import RedisError, connection
from docora.redis.queues import QUEUES

SWEEP = "sweep"
_PREFIX = "docora:heartbeat:"
_TTL_SECONDS = 24 * 3600
_LATE_SECONDS = 30.0
_WORKER_SEEN = timedelta(seconds=30)  # one that is idle says it every ten seconds


def beat(name: str) -> None:
    """Say that `name` is at work. Nothing is told while Redis is down."""
    with contextlib.suppress(RedisError):
        connection().set(_PREFIX + name, time.time(), ex=_TTL_SECONDS)


def last(name: str) -> datetime | None:
    """When `name` was last at work; None if that is more than a day ago. Raises `RedisError`."""
    found = connection().get(_PREFIX + name)
    return datetime.fromtimestamp(float(found), UTC) if found else None


@dataclass(frozen=True)
class Signs:
    """Jobs that wait and that run; when each worker that lives was started; when the sweep last looked."""

    waiting: int
    active: int
    workers: tuple[datetime, ...]
    sweep: datetime | None

    @property
    def workers_since(self) -> datetime | None:
        """Since when there have been that many workers."""
        return max(self.workers, default=None)

    @property
    def sweep_age(self) -> float | None:
        """Seconds; None if it has not looked for a day."""
        return max(0.0, (timezone.now() - self.sweep).total_seconds()) if self.sweep else None

    @property
    def sweep_is_late(self) -> bool:
        return self.sweep_age is None or self.sweep_age > max(_LATE_SECONDS, 3 * settings.SWEEP_INTERVAL_SECONDS)


def read() -> Signs | None:
    """None when Redis is down."""
    redis, now = connection(), datetime.now(UTC)
    try:
        with redis.pipeline(transaction=False) as pipeline:
            for name in QUEUES:
                pipeline.llen(f"{Queue.redis_queue_namespace_prefix}{name}")
                # The registry keeps jobs of a killed worker, at which nobody is, until somebody cleans up.
                pipeline.zcount(StartedJobRegistry.key_template.format(name), now.timestamp(), "+inf")
            jobs = pipeline.execute()
        return Signs(sum(jobs[::2]), sum(jobs[1::2]), _workers(redis, now - _WORKER_SEEN), last(SWEEP))
    except (RedisError, OSError):
        return None


def _workers(redis: Redis, limit: datetime) -> tuple[datetime, ...]:
    """When those were started that have been heard since `limit`.

    Read by hand: rq's `Worker.all` gives the connection that it reads with a time-out of minutes, and every page would
    then wait that long for a Redis that hangs."""
    with redis.pipeline(transaction=False) as pipeline:
        for key in redis.smembers(Worker.redis_workers_keys):
            pipeline.hmget(key, "birth", "last_heartbeat")
        answers = [answer for answer in pipeline.execute() if all(answer)]
    seen = [[utcparse(moment.decode()).replace(tzinfo=UTC) for moment in answer] for answer in answers]
    return tuple(birth for birth, heartbeat in seen if heartbeat > limit)
