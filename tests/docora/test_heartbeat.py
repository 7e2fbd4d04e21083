"""Heartbeats of the sweep and the workers."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone
from redis import Redis
from rq import Worker
from rq.utils import utcformat

from docora.redis import heartbeat, inspect, queues
from docora.redis.connection import connection
from tests.support.valkey import ValkeyServer


def signs() -> heartbeat.Signs:
    found = heartbeat.read()
    assert found is not None
    return found


def start_worker(redis: Redis, name: str, *, hours_ago: float = 0, silent_for: float = 0) -> None:
    """Register a worker with this start time and last heartbeat, on a separate connection because RQ changes the
    timeouts of the connection that it is given."""
    worker = Worker(["default"], name=name, connection=redis)
    worker.register_birth()
    moments = {"birth": timedelta(hours=hours_ago), "last_heartbeat": timedelta(seconds=silent_for)}
    for field, since in moments.items():
        redis.hset(worker.key, field, utcformat(datetime.now(UTC) - since))


def test_empty_redis() -> None:
    found = signs()
    assert (found.workers, found.sweep) == ((), None)
    assert found.workers_since is None
    assert found.workers_up is None
    assert found.sweep_is_late


def test_without_redis(valkey_server: ValkeyServer) -> None:
    valkey_server.stop()
    heartbeat.beat()
    assert heartbeat.read() is None


def test_sweep_heartbeat(redis_client: Redis) -> None:
    heartbeat.beat()
    found = signs()
    assert found.sweep is not None
    assert abs(timezone.now() - found.sweep) < timedelta(seconds=60)
    assert not found.sweep_is_late
    assert 0 < redis_client.ttl("docora:heartbeat:sweep") <= 86_400


@pytest.mark.parametrize(("interval", "late"), [(5, True), (30, True), (60, False)])
def test_sweep_is_late_after_three_intervals(settings, interval: float, late: bool) -> None:
    settings.SWEEP_INTERVAL_SECONDS = interval
    last_round = timezone.now() - timedelta(seconds=120)
    assert heartbeat.Signs((), last_round).sweep_is_late is late


def test_sweep_age_is_not_negative_with_clock_skew() -> None:
    assert heartbeat.Signs((), timezone.now() + timedelta(minutes=3)).sweep_age == 0


def test_killed_worker_is_not_counted(redis_client: Redis) -> None:
    start_worker(redis_client, "alive", hours_ago=5)
    start_worker(redis_client, "fresh", hours_ago=1)
    start_worker(redis_client, "killed", hours_ago=9, silent_for=queues.WORKER_TTL_SECONDS + 2)
    found = signs()
    assert len(found.workers) == 2
    assert [worker.name for worker in inspect.read_workers() if worker.is_gone] == ["killed"]
    assert found.workers_since is not None
    assert timedelta(minutes=59) < timezone.now() - found.workers_since < timedelta(minutes=61)
    assert found.workers_up is not None
    assert 59 < found.workers_up / 60 < 61


def test_reading_workers_keeps_the_short_timeouts(redis_client: Redis) -> None:
    start_worker(redis_client, "alive")
    before = connection().connection_pool.connection_kwargs["socket_timeout"]
    assert len(signs().workers) == 1
    assert connection().connection_pool.connection_kwargs["socket_timeout"] == before
