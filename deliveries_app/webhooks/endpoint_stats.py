"""Statistics about an app's endpoint: hourly traffic in the database, the latest requests in Redis.

The hourly rows are written in the transaction of each recorded batch. The list in Redis caches the last `KEPT`
requests and fills again after Redis loses it. No function here raises if Redis is down. The same pipeline updates the
counters across all apps (`docora.redis.counters`).
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from deliveries_app.models import App, HourlyTraffic, bulk_sql
from docora.db.clock import from_now
from docora.redis import counters
from docora.redis.connection import RedisError, connection, logging_outage

KEPT = 100
HEALTHY = 0.95
"""An app that accepts a smaller share of its latest requests needs attention."""
FEWEST_REQUESTS = 5  # with fewer, the share means nothing
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the latency buckets, in seconds. The last is the request timeout, so timeouts fall into the overflow bucket."""
_PREFIX = "docora:endpoint-stats:"
_TTL_SECONDS = 30 * 24 * 3600
_LARGEST_SKEW_SECONDS = 60.0  # between the clocks of a worker and of the database


@dataclass
class Latest:
    """Requests completed, successfully or not, since the last recorded batch."""

    requests: int = 0
    seconds: float = 0.0
    newest: deque[tuple[bool, float]] = field(default_factory=lambda: deque(maxlen=KEPT))
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def add(self, ok: bool, seconds: float) -> None:
        self.requests += 1
        self.seconds += seconds
        self.newest.append((ok, seconds))
        self.buckets[bisect_left(BOUNDS, seconds)] += 1

    def counts(self) -> dict[str, int]:
        """Return the increments for the counters across all apps."""
        counted = {counters.field(counters.REQUESTS, number): count for number, count in enumerate(self.buckets)}
        return counted | {counters.REQUEST_MICROSECONDS: round(self.seconds * 1_000_000)}


@dataclass(frozen=True)
class EndpointStats:
    """The last `requests` notifications: the share accepted, and response times in seconds."""

    requests: int
    accepted: float
    median: float
    p95: float

    @property
    def is_unhealthy(self) -> bool:
        return self.requests >= FEWEST_REQUESTS and self.accepted < HEALTHY


def record_hour(
    app: App, latest: Latest, now: datetime, *, files: int, size: int, failed: int, acknowledged_at: datetime | None
) -> None:
    """Add a batch to the app's hourly row. Call this last in the batch's transaction."""
    if not (latest.requests or files or failed):
        return
    hour = now.replace(minute=0, second=0, microsecond=0)
    add = partial(
        bulk_sql.count_hour, app.pk, hour, files=files, size=size, failed=failed, requests=latest.requests,
        milliseconds=round(latest.seconds * 1000), acknowledged_at=acknowledged_at,
        acknowledged_by=app.base_url if acknowledged_at else None,
    )  # fmt: skip
    if not add():
        HourlyTraffic.objects.bulk_create([HourlyTraffic(app_id=app.pk, hour=hour)], ignore_conflicts=True)
        add()


def last_acknowledged(app: App) -> datetime | None:
    """Return when the app's endpoint last acknowledged a file of any watch, accurate to about a second, or None if unknown.

    What an endpoint with another base URL has acknowledged says nothing about this one.
    """
    found = HourlyTraffic.objects.filter(
        app_id=app.pk,
        acknowledged_by__in=[app.base_url, ""],
        acknowledged_at__lte=from_now(_LARGEST_SKEW_SECONDS),  # not later: the database's clock may have been ahead
    )
    return found.order_by("-hour").values_list("acknowledged_at", flat=True).first()


def record_latest(app: App, latest: Latest, counts: Mapping[str, int]) -> None:
    """Add the requests to the app's latest requests, and both them and `counts` to the counters across all apps.

    Call this after the batch's commit.
    """
    counts = {**counts, **latest.counts()}
    if not any(counts.values()):
        return
    values = [f"{int(ok)}:{seconds * 1000:.0f}" for ok, seconds in latest.newest]
    key = _key(app)
    with (
        logging_outage("endpoint_stats_not_saved", app=app.app_id),
        connection().pipeline(transaction=True) as pipeline,
    ):
        counters.add_to_pipeline(pipeline, counts)
        if values:
            pipeline.rpush(key, *values)
            pipeline.ltrim(key, -KEPT, -1)
            pipeline.expire(key, _TTL_SECONDS)
        pipeline.execute()


def _key(app: App) -> str:
    """Return the key of the endpoint: when the base URL changes, a run still records what the old one returned."""
    return f"{_PREFIX}{app.app_id}:{app.base_url}"


def of_apps(apps: Sequence[App]) -> dict[int, EndpointStats] | None:
    """Return the statistics of apps with recent requests, by primary key, in one round trip. None without Redis."""
    try:
        with connection().pipeline(transaction=False) as pipeline:
            for app in apps:
                pipeline.lrange(_key(app), 0, -1)
            found: list[list[bytes]] = pipeline.execute()
    except RedisError:
        return None
    return {app.pk: _stats(values) for app, values in zip(apps, found, strict=True) if values}


def _stats(values: list[bytes]) -> EndpointStats:
    requests = [value.decode().split(":") for value in values]
    times = sorted(int(milliseconds) / 1000 for _, milliseconds in requests)
    accepted = sum(ok == "1" for ok, _ in requests) / len(requests)
    return EndpointStats(len(requests), accepted, _quantile(times, 0.5), _quantile(times, 0.95))


def _quantile(times: list[float], share: float) -> float:
    """Return the nearest-rank quantile of sorted values."""
    return times[math.ceil(share * len(times)) - 1]
