"""Queues and workers as read from Redis."""

import os
import time
from datetime import timedelta

import pytest
from django.utils import timezone
from redis import Redis
from rq.utils import utcformat

from deliveries_app.monitoring import health
from docora.redis import heartbeat, inspect, queues
from docora.redis.connection import RedisError, connection
from docora.redis.queues import WORKER_TTL_SECONDS
from docora.server.worker import identity
from tests.support.valkey import ValkeyServer

FUNCTION = "deliveries_app.jobs.sync_watch"


def register(redis: Redis, name: str, *, seconds_ago: float = 1, **fields: object) -> None:
    """Register a worker as RQ does."""
    moment = utcformat(timezone.now() - timedelta(seconds=seconds_ago))
    known = {"hostname": "box", "pid": 7, "state": "idle", "queues": "high,low", "birth": moment} | fields
    redis.sadd("rq:workers", f"rq:worker:{name}")
    redis.hset(f"rq:worker:{name}", mapping={**known, "last_heartbeat": moment})


def test_jobs_are_read_by_queue(redis_client: Redis) -> None:
    queues.enqueue("default", FUNCTION, 5, "job-5")
    queues.enqueue("high", FUNCTION, 6, "job-6")
    queues.enqueue("low", "deliveries_app.jobs.clean_up", "ended", "clean-up")
    redis_client.rpush("rq:queue:default", "job-without-hash")
    state = inspect.read()
    assert state is not None
    assert state.lengths == {"high": 1, "default": 2, "low": 1}
    assert [(job.queue, job.job_id, job.function, job.argument) for job in state.jobs] == [
        ("high", "job-6", "sync_watch", "6"),
        ("default", "job-5", "sync_watch", "5"),
        ("low", "clean-up", "clean_up", "ended"),
    ]
    for job in state.jobs:
        assert job.since is not None
        assert timezone.now() - job.since < timedelta(minutes=1)


def test_long_queue_is_read_in_part(redis_client: Redis, monkeypatch) -> None:
    monkeypatch.setattr(inspect, "JOBS_READ", 3)
    for number in range(5):
        queues.enqueue("high", FUNCTION, number, f"job-{number}")
    state = inspect.read()
    assert state is not None
    assert state.lengths["high"] == 5
    assert [job.argument for job in state.jobs] == ["0", "1", "2"]


def test_worker_is_read_with_its_current_job(redis_client: Redis) -> None:
    queues.enqueue("high", FUNCTION, 5, "job-5")
    register(redis_client, "busy:one", state="busy", pid=8)
    redis_client.sadd("rq:worker:busy:one:executions", "job-5:abc")
    register(redis_client, "older", seconds_ago=3)
    older, busy = inspect.read_workers()
    assert (older.name, older.host, older.pid, older.state, older.queues) == ("older", "box", 7, "idle", "high, low")
    assert older.job is None
    assert (busy.name, busy.pid) == ("busy:one", 8)
    assert busy.job is not None
    assert busy.job.argument == "5"


def test_worker_with_an_overdue_heartbeat_is_gone(redis_client: Redis) -> None:
    register(redis_client, "alive", seconds_ago=WORKER_TTL_SECONDS - 5)
    register(redis_client, "killed", seconds_ago=WORKER_TTL_SECONDS + 5)
    redis_client.hset("rq:worker:odd", mapping={"state": "idle", "last_heartbeat": "yesterday", "pid": "?"})
    redis_client.sadd("rq:workers", "rq:worker:odd", "rq:worker:forgotten")
    assert {worker.name: worker.is_gone for worker in inspect.read_workers()} == {
        "alive": False,
        "killed": True,
        "odd": True,
    }


def test_without_redis(valkey_server: ValkeyServer) -> None:
    valkey_server.stop()
    assert inspect.read() is None
    with pytest.raises(RedisError):
        inspect.read_workers()


def test_reading_does_not_wait_long_for_a_hanging_redis(valkey_server: ValkeyServer, redis_client: Redis) -> None:
    register(redis_client, "alive")
    inspect.read()
    assert health.check_workers(heartbeat.read()) == health.OK
    connection().connection_pool.disconnect()  # use connections opened after RQ's own calls
    with valkey_server.frozen():
        started = time.monotonic()
        assert inspect.read() is None
        assert time.monotonic() - started < 10


def test_identity_outside_a_work_horse() -> None:
    assert identity().endswith(f":{os.getpid()}")
