"""Liveness of the background processes, read from Redis: the sweep and the workers.

The sweep records a heartbeat on each round; RQ workers record their own every few seconds. A killed process leaves its
last heartbeat behind, so an old heartbeat counts as none.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from django.conf import settings
from django.utils import timezone

from docora.redis import inspect
from docora.redis.connection import RedisError, connection, probe_writes

_KEY = "docora:heartbeat:sweep"
_TTL_SECONDS = 24 * 3600
_LATE_SECONDS = 30.0


def beat() -> None:
    """Record that the sweep is running. Does nothing while Redis is down."""
    with contextlib.suppress(RedisError):
        connection().set(_KEY, time.time(), ex=_TTL_SECONDS)


@dataclass(frozen=True)
class Signs:
    """Start times of the live workers, the last round of the sweep, and the disk problems of workers' machines, by host name."""

    workers: tuple[datetime, ...]
    sweep: datetime | None
    disk_problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def workers_since(self) -> datetime | None:
        """When the newest worker started. The number of workers has not grown since then."""
        return max(self.workers, default=None)

    @property
    def workers_up(self) -> float | None:
        """For how many seconds the newest worker has been running."""
        newest = self.workers_since
        return (timezone.now() - newest).total_seconds() if newest else None

    @property
    def sweep_age(self) -> float | None:
        """Seconds since the last round of the sweep, or None if it was more than a day ago."""
        return max(0.0, (timezone.now() - self.sweep).total_seconds()) if self.sweep else None

    @property
    def sweep_is_late(self) -> bool:
        return self.sweep_age is None or self.sweep_age > max(_LATE_SECONDS, 3 * settings.SWEEP_INTERVAL_SECONDS)


def read() -> Signs | None:
    """Return the current signs, or None when Redis is down or rejects writes.

    Processes that run can't renew their heartbeats then, and would count as ended.
    """
    try:
        with connection().pipeline(transaction=False) as pipeline:
            pipeline.get(_KEY)
            probe_writes(pipeline)
            beat_at, _ = pipeline.execute()
        known = inspect.read_workers()
    except RedisError:
        return None
    alive = [worker for worker in known if not worker.is_gone]
    workers = tuple(worker.started_at for worker in alive if worker.started_at)
    sweep = datetime.fromtimestamp(float(beat_at), UTC) if beat_at else None
    return Signs(workers, sweep, {worker.host: worker.disk_problem for worker in alive if worker.disk_problem})
