"""Counters in Redis add up over all processes, and outlive them."""

import os

from docora.redis import counters
from tests.support.valkey import ValkeyServer


def test_counts_of_ended_processes_are_added_up() -> None:
    for number in (1, 2):
        child = os.fork()
        if not child:
            counters.add({counters.CHECKS: number, counters.field(counters.SYNCS, "failed"): 1})
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert counters.read() == {"checks": 3, "syncs:failed": 2}


def test_missing_counter_is_zero_and_not_stored(redis_client) -> None:
    counters.add({counters.FILES: 0})
    found = counters.read()
    assert found is not None
    assert found[counters.FILES] == 0
    assert redis_client.keys("*") == []


def test_without_redis_nothing_raises(valkey_server: ValkeyServer) -> None:
    valkey_server.stop()
    counters.add({counters.CHECKS: 1})
    assert counters.read() is None


def test_counting_restarts_after_a_flush(redis_client) -> None:
    counters.add({counters.CHECKS: 5})
    redis_client.flushall()
    counters.add({counters.CHECKS: 2})
    assert counters.read() == {"checks": 2}
