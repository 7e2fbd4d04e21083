"""`GET /metrics`: counters and gauges in the Prometheus text format.

Counters are kept in Redis (`docora.redis.counters`), because processes come and go. Gauges are read from Redis and the
database at each scrape, in a constant number of queries. If one of the two is down, the metrics of the other are still
returned. No label names an app, a repository or a path. The disk metrics describe the machine that responds, and
`process_…` and the build describe its web process.
"""

import platform
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from itertools import accumulate

from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from deliveries_app.models import Outcome
from deliveries_app.models.root_causes import RootCause
from deliveries_app.monitoring.counts import count_hosts_down, count_open_circuits, count_watches
from deliveries_app.sync.notification import BLOCKED
from deliveries_app.webhooks.endpoint_stats import BOUNDS
from docora.conf.installation import build
from docora.http.addresses import is_in
from docora.redis import counters, heartbeat, inspect
from docora.redis.inspect import QueueState
from docora.redis.queues import QUEUES
from docora.web import durations
from docora.web.api import authentication_error
from docora.web.errors import json_error
from repositories_app.mirror import cache

_REDIS_UP = "1 if Redis responds and accepts writes. Otherwise the metrics that it stores are omitted."
_DATABASE_UP = "1 if the database responds. Otherwise the metrics that it stores are omitted."

_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


@csrf_exempt  # other methods get a 405
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Return the metrics to clients with `METRICS_TOKEN`, or, if none is set, to this machine.

    Requests that a reverse proxy on this machine forwards also come from this machine. They are refused if it has marked them.
    """
    if settings.METRICS_TOKEN:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not constant_time_compare(token.strip(), settings.METRICS_TOKEN):
            return authentication_error(request, "metrics", "Send METRICS_TOKEN: Authorization: Bearer …").response()
    elif request.is_forwarded or not is_in(_LOOPBACK, request.META.get("REMOTE_ADDR", "")):  # type: ignore[attr-defined]
        return json_error(
            "Metrics are only served to this machine: set METRICS_TOKEN to read them from another one", 403
        )
    durations.flush()
    return HttpResponse(generate_latest(_registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Docora(Collector):
    def collect(self) -> Iterator[Metric]:
        yield _build()
        yield from _redis_metrics()
        yield from _database_metrics()
        yield from _machine_metrics()


_registry = CollectorRegistry()
_registry.register(_Docora())
ProcessCollector(registry=_registry)


def _build() -> Metric:
    labels = {"version": build()["version"], "revision": build()["gitSha"], "python": platform.python_version()}
    return InfoMetricFamily("docora_build", "The version that responds, always 1.", labels)


def _redis_metrics() -> Iterator[Metric]:
    counts = counters.read()
    signs = heartbeat.read() if counts is not None else None  # wait only once for a Redis that hangs
    queues = inspect.read() if signs else None
    if counts is None or signs is None or queues is None:
        yield _gauge("redis_up", _REDIS_UP, 0)
        return
    yield _gauge("redis_up", _REDIS_UP, 1)
    yield from _counted(counts)
    yield from _queues(queues)
    yield _gauge("workers", "Workers that are alive.", len(signs.workers))
    if signs.sweep_age is not None:
        text = "Seconds since the sweep last ran; omitted if it has not run for a day."
        yield _gauge("sweep_age_seconds", text, signs.sweep_age)


def _counted(counts: Mapping[str, int]) -> Iterator[Metric]:
    causes = RootCause.values
    failures = "Failed attempts to deliver a file, by root cause. Blocked files wait for another path."
    for key, text, label, values in (
        (counters.SYNCS, "Sync runs that have ended, by outcome.", "outcome", Outcome.values),
        (counters.SYNC_FAILURES, "Failed attempts to sync, by root cause. Most are retried.", "cause", causes),
        (counters.DELIVERY_FAILURES, failures, "cause", [*causes, BLOCKED]),
    ):
        # 0 if nothing was counted yet: a rate needs a value to start from.
        found = {value: counts[counters.field(key, value)] for value in values}
        yield _labelled(CounterMetricFamily(f"docora_{key}", text, labels=[label]), found)
    for name, key, text in (
        ("delivered_files", counters.FILES, "Creates, updates and deletes that clients have acknowledged."),
        ("delivered_bytes", counters.BYTES, "Bytes of the files that clients have acknowledged."),
        ("checks", counters.CHECKS, "Checks with git hosts for changes to watched repositories."),
    ):
        yield CounterMetricFamily(f"docora_{name}", text, counts[key])
    yield _latency(counts)
    yield _durations(counts)


def _latency(counts: Mapping[str, int]) -> Metric:
    buckets = [counts[counters.field(counters.REQUESTS, number)] for number in range(len(BOUNDS) + 1)]
    text = "Time until clients responded to requests that carry files, or until the request failed."
    seconds = counts[counters.REQUEST_MICROSECONDS] / 1_000_000
    return HistogramMetricFamily("docora_request_seconds", text, _cumulative(BOUNDS, buckets), seconds)


def _durations(counts: Mapping[str, int]) -> Metric:
    """Return one histogram for each method, route and class of status that has occurred."""
    family = HistogramMetricFamily(
        "docora_request_duration_seconds",
        "Time that web processes took to handle requests, without probes and scrapes.",
        labels=["method", "route", "status"],
    )
    for labels, one in durations.read(counts):
        family.add_metric(labels, _cumulative(durations.BOUNDS, one.buckets), one.microseconds / 1_000_000)
    return family


def _cumulative(bounds: Iterable[float], buckets: Iterable[int]) -> list[tuple[str, int]]:
    return list(zip([*map(str, bounds), "+Inf"], accumulate(buckets), strict=True))


def _queues(state: QueueState) -> Iterator[Metric]:
    """Yield the metrics of the queues. In a long queue, the age covers only the jobs at its front."""
    now = timezone.now()
    ages: dict[str, float] = dict.fromkeys(QUEUES, 0.0)
    for job in state.jobs:
        if job.since:
            ages[job.queue] = max(ages[job.queue], (now - job.since).total_seconds())
    yield _gauges("queue_jobs", "Jobs waiting in a queue.", "queue", state.lengths)
    yield _gauges("queue_oldest_job_seconds", "Seconds since the oldest job of a queue was enqueued.", "queue", ages)


def _database_metrics() -> Iterator[Metric]:
    try:
        counts, circuits, hosts_down = count_watches(), count_open_circuits(), count_hosts_down()
    except (DatabaseError, InterfaceError):
        yield _gauge("database_up", _DATABASE_UP, 0)
        return
    overdue = max(0.0, (timezone.now() - counts.due_since).total_seconds()) if counts.due_since else 0.0
    yield _gauge("database_up", _DATABASE_UP, 1)
    yield _gauges("watches", "Watched repositories, by status.", "status", counts.by_status)
    yield _gauge("watches_failing", "Watched repositories whose last attempt to sync has failed.", counts.failing)
    yield _gauge("watches_due", "Watched repositories that are due and wait for a worker or a slot.", counts.due)
    yield _gauge(
        "watches_held", "Watched repositories that are due, but paused, on hold or being imported.", counts.held
    )
    yield _gauge("watches_overdue_seconds", "Seconds since the longest waiting watched repository became due.", overdue)
    yield _gauge("leases", "Watched repositories that a worker is syncing.", counts.leased)
    yield _gauge("circuits_open", "Git repositories whose circuit is open.", circuits)
    yield _gauge("git_hosts_down", "Git hosts to which no connection can be made.", hosts_down)


def _machine_metrics() -> Iterator[Metric]:
    size = cache.last_measured()
    if size is not None:
        text = "Bytes that mirrors use on this machine, as last measured by its workers."
        yield _gauge("mirrors_bytes", text, size.bytes)
        yield _gauge("mirrors", "Mirrors on this machine.", size.mirrors)
        text = "Limit of docora_mirrors_bytes (REPOS_MAX_BYTES); 0 without a limit."
        yield _gauge("mirrors_max_bytes", text, settings.REPOS_MAX_BYTES)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"docora_{name}", text, value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    return _labelled(GaugeMetricFamily(f"docora_{name}", text, labels=[label]), values)


def _labelled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float]) -> Metric:
    for label, value in values.items():
        family.add_metric([label], value)
    return family
