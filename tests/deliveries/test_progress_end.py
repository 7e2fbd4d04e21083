"""The bar of an ended operation shows its end, despite concurrent polls, seeding and rollbacks (`engine.md` §10)."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from redis import Redis

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, Outcome, SyncRun
from deliveries_app.progress import live, runs
from deliveries_app.services import resync_many
from docora.redis import live_counters
from tests.support.processes import in_threads
from tests.support.staff import make_app, make_watch
from tests.support.valkey import ValkeyServer

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def operation(db) -> BulkOperation:
    """Two repositories with 100 files each; the first has succeeded."""
    app = make_app("Portal")
    for name in ("docs", "site"):
        make_watch(app, name)
    operation = resync_many(Actor.system(), AppRepository.objects.all())
    finish_run(operation.runs.order_by("pk")[0])
    return operation


def start_run(run: SyncRun) -> SyncRun:
    run = SyncRun.objects.select_related("operation").get(pk=run.pk)
    runs.set_totals(run, files=100, size=5_000, left_out={}, commit="a" * 40)
    runs.seed(run)
    return run


def record(run: SyncRun, files: int) -> None:
    runs.count(run, files_done=files, bytes_done=files * 50, files_failed=0)
    runs.show(run, files_done=files, bytes_done=files * 50, files_failed=0)


def end_run(run: SyncRun) -> None:
    assert run.watch_id
    with transaction.atomic():
        runs.end_runs(run.watch_id, run.generation, Outcome.SUCCEEDED)


def finish_run(run: SyncRun) -> None:
    run = start_run(run)
    record(run, 100)
    end_run(run)


def last_run(operation: BulkOperation) -> SyncRun:
    return operation.runs.order_by("pk")[1]


def poll(client: Client, operation: BulkOperation) -> str:
    return client.get(f"/admin/progress/{operation.operation_id}/").text


def counters_of(operation: BulkOperation) -> dict[str, int] | None:
    return live_counters.read([operation.operation_id])[0]


def assert_shows_the_end(client: Client, operation: BulkOperation) -> None:
    shown = poll(client, operation)
    assert "2 repositories: 2 succeeded" in shown
    assert "hx-get" not in shown


def in_another_connection(work: Callable[[], str]) -> str:
    (result,) = in_threads(work)
    assert isinstance(result, str)
    return result


def test_poll_while_the_last_run_is_being_committed(operator: Client, operation: BulkOperation) -> None:
    """The poll sees the rows as they were before. The poll after the commit must show the end."""
    run = start_run(last_run(operation))
    record(run, 100)
    with transaction.atomic():
        end_run(run)
        during = in_another_connection(lambda: poll(operator, operation))
        assert "1 of 2 repositories" in during
        assert 'value="99"' in during
    assert_shows_the_end(operator, operation)
    assert counters_of(operation) is None


def test_poll_that_read_the_row_before_the_end(operator: Client, operation: BulkOperation) -> None:
    """It finds no counters, because the operation has ended since. It must not bring them back."""
    read_before = BulkOperation.objects.get(pk=operation.pk)
    finish_run(last_run(operation))
    assert live.of_operation(read_before).completed == 2
    assert counters_of(operation) is None
    assert_shows_the_end(operator, operation)


def test_counters_that_outlive_the_operation(operator: Client, operation: BulkOperation) -> None:
    """A late writer may leave stale counters behind. The row alone decides whether the operation has ended."""
    assert "1 of 2 repositories" in poll(operator, operation)
    stale = counters_of(operation)
    assert stale is not None
    finish_run(last_run(operation))
    live_counters.start(operation.operation_id, stale)
    assert_shows_the_end(operator, operation)


def test_writer_that_comes_after_the_end(operation: BulkOperation) -> None:
    """It still has the row of the open operation. It must not bring the counters back either."""
    read_before = BulkOperation.objects.get(pk=operation.pk)
    run = last_run(operation)
    finish_run(run)
    live.show_in_operation(run, read_before)
    assert counters_of(operation) is None


def test_rollback_of_the_end_keeps_the_counters(operator: Client, operation: BulkOperation) -> None:
    run = start_run(last_run(operation))
    record(run, 40)
    before = counters_of(operation), live_counters.read([run.run_id])
    with transaction.atomic():
        end_run(run)
        transaction.set_rollback(True)
    assert (counters_of(operation), live_counters.read([run.run_id])) == before
    assert "140 / 200 files" in poll(operator, operation)


def test_lost_counters_come_back_with_the_next_batch(
    operator: Client, operation: BulkOperation, redis_client: Redis
) -> None:
    run = start_run(last_run(operation))
    record(run, 40)
    redis_client.flushall()
    assert "140 / 200 files" in poll(operator, operation)
    assert counters_of(operation) is None
    record(run, 10)
    counters = counters_of(operation)
    assert counters is not None
    assert (counters["files_done"], counters["completed"]) == (150, 1)
    assert "150 / 200 files" in poll(operator, operation)


def test_part_that_redis_refused_comes_back_from_the_rows(
    operator: Client, operation: BulkOperation, valkey_server: ValkeyServer, redis_client: Redis
) -> None:
    """A run ends meanwhile. Another one is open for days, because its repository is paused."""
    operation = resync_many(Actor.system(), AppRepository.objects.all())
    first, last = operation.runs.order_by("pk")
    last = start_run(last)
    with valkey_server.refusing_writes():
        finish_run(first)
    samples = f"docora:progress:{operation.operation_id}:samples"
    before = redis_client.time()[0] - 30
    redis_client.zadd(samples, {f"{before}:0": before})
    let_sums_expire(redis_client)
    assert "100 / 200 files" in poll(operator, operation)
    assert "1 of 2 repositories" in poll(operator, operation)
    record(last, 10)
    counters = counters_of(operation)
    assert counters is not None
    assert (counters["files_done"], counters["completed"]) == (110, 1)
    assert redis_client.zrange(samples, 0, 0) == [b"%d:0" % before], "the rate starts again"
    assert "110 / 200 files" in poll(operator, operation)


def let_sums_expire(redis: Redis) -> None:
    """Let the time pass after which the counters of operations are set from the rows again."""
    for key in redis.scan_iter("docora:progress:*"):
        left = redis.ttl(key) - live_counters.SUM_SECONDS
        redis.expire(key, max(0, left))


def test_counters_seeded_while_a_poll_counts_the_rows(
    operation: BulkOperation, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are a batch ahead of the counters then. The poll shows what the next one will show."""
    run = start_run(last_run(operation))
    record(run, 40)
    redis_client.flushall()
    read = live_counters.read
    pending = [run]

    def seed_after_reading(keys: Sequence[str]) -> list[dict[str, int] | None]:
        found = read(keys)
        if pending:
            live.show_in_operation(pending.pop(), operation)
            runs.count(run, files_done=10, bytes_done=500, files_failed=0)
        return found

    monkeypatch.setattr(live_counters, "read", seed_after_reading)
    assert [live.of_operation(operation).files_done for _ in range(2)] == [140, 140]


def test_seeding_from_older_rows_loses_no_batch(
    operation: BulkOperation, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers find the counters lost. One reads the rows, the other records a batch, and then the first one seeds."""
    first, run = operation.runs.order_by("pk")[0], start_run(last_run(operation))
    record(run, 40)
    redis_client.flushall()
    seed = live_counters.seed
    pending = [10]

    def record_first(*arguments: Any) -> None:
        if pending:
            record(run, pending.pop())
        seed(*arguments)

    monkeypatch.setattr(live_counters, "seed", record_first)
    live.show_in_operation(first, operation)
    counters = counters_of(operation)
    assert counters is not None
    assert (counters["files_done"], counters["completed"]) == (150, 1)


@pytest.mark.parametrize("lost", [False, True])
def test_batch_of_a_superseded_run_is_not_counted(operation: BulkOperation, redis_client: Redis, lost: bool) -> None:
    """Its worker may still send files. What the run adds to its operation is final."""
    run = start_run(last_run(operation))
    record(run, 40)
    assert run.watch_id
    other = operation.runs.order_by("pk")[0]
    SyncRun.objects.filter(pk=other.pk).update(outcome="", ended_at=None)  # so that the operation stays open
    with transaction.atomic():
        runs.supersede([run.watch_id])
    if lost:
        redis_client.flushall()
    record(run, 10)
    counters = counters_of(operation)
    assert counters is not None
    assert counters["superseded"] == 1
    assert counters["files_done"] == 140
