"""What has been done, counted over all processes in one Redis hash: `deliveries_app.monitoring.metrics` tells it.

Jobs run in processes that end with them, and several may answer a scrape, so nothing is kept in a process. Whoever does
something counts it in memory and tells it here now and then. A Redis that is down, or is emptied, loses counts and never
work: nothing here raises, and whoever reads takes numbers that begin anew for what they are.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from redis.client import Pipeline

from docora.redis.connection import RedisError, connection

logger = logging.getLogger(__name__)

_KEY = "docora:counters"

CHECKS = "checks"
FILES = "files"
BYTES = "bytes"
SYNCS = "syncs"  # by outcome
SYNC_FAILURES = "sync_failures"  # by root cause
DELIVERY_FAILURES = "delivery_failures"  # by cause
REQUESTS = "requests"  # by the bucket that their seconds fall into
REQUEST_MICROSECONDS = "request_microseconds"


def field(name: str, label: object) -> str:
    """A counter of which there is one for each of a few labels."""
    return f"{name}:{label}"


def queue(pipeline: Pipeline, counts: Mapping[str, int]) -> None:
    """Add to counters with the other commands of a pipeline, so that they cost no round trip."""
    for name, count in counts.items():
        if count:
            pipeline.hincrby(_KEY, name, count)


def add(counts: Mapping[str, int]) -> None:
    """Add to counters, in one round trip."""
    if not any(counts.values()):
        return
    try:
        with connection().pipeline(transaction=False) as pipeline:
            queue(pipeline, counts)
            pipeline.execute()
    except (RedisError, OSError) as error:
        logger.warning("not_counted", extra={"cause": str(error)})


def read() -> Counter[str] | None:
    """Every counter, 0 for those that nothing was added to yet. None when Redis is down."""
    try:
        found: dict[Any, Any] = connection().hgetall(_KEY)
    except (RedisError, OSError):
        return None
    return Counter({name.decode(): int(value) for name, value in found.items()})
