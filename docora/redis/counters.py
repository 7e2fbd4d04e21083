"""Totals over all processes in one Redis hash, exported by `deliveries_app.monitoring.metrics`.

Jobs run in several processes, and several web processes answer scrapes, so no process can hold the totals. Callers
count in memory and add their counts here from time to time. If Redis is down or flushed, counts are lost but work is
not: functions here never raise, and Prometheus treats a lower total as a counter reset.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from redis.client import Pipeline

from docora.redis.connection import RedisError, connection, logging_outage

_KEY = "docora:counters"

CHECKS = "checks"
FILES = "files"
BYTES = "bytes"
SYNCS = "syncs"  # by outcome
SYNC_FAILURES = "sync_failures"  # by root cause
DELIVERY_FAILURES = "delivery_failures"  # by cause
REQUESTS = "requests"  # by duration bucket
REQUEST_MICROSECONDS = "request_microseconds"


def field(name: str, label: object) -> str:
    """Return the hash field of the counter `name` for one label value. Use only a few label values."""
    return f"{name}:{label}"


def add_to_pipeline(pipeline: Pipeline, counts: Mapping[str, int]) -> None:
    """Add to counters in the caller's pipeline, without another round trip."""
    for name, count in counts.items():
        if count:
            pipeline.hincrby(_KEY, name, count)


def add(counts: Mapping[str, int]) -> None:
    """Add to counters in one round trip."""
    if not any(counts.values()):
        return
    with logging_outage("counters_not_updated"), connection().pipeline(transaction=False) as pipeline:
        add_to_pipeline(pipeline, counts)
        pipeline.execute()


def read() -> Counter[str] | None:
    """Return all counters (missing ones read as 0), or None when Redis is down."""
    try:
        found: dict[Any, Any] = connection().hgetall(_KEY)
    except RedisError:
        return None
    return Counter({name.decode(): int(value) for name, value in found.items()})
