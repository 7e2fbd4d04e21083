"""The metrics count what was done and show the current state."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from rq import Worker
from rq.job import Job
from rq.utils import utcformat

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Outcome, Status
from deliveries_app.models.root_causes import RootCause
from deliveries_app.receiver import Answer
from deliveries_app.services import cancel_operation, resync_many, resync_single
from deliveries_app.sync.claim import claim
from docora.redis import heartbeat, queues
from repositories_app.models import HostOutage, Repository
from tests.support.rows import add_rows
from tests.support.staff import make_app, make_watch
from tests.support.valkey import ValkeyServer
from tests.support.world import World

ME = Actor.command()


def scrape() -> dict[str, float]:
    """Return `name{label="value"}` → value, as Prometheus parses the page."""
    answer = Client().get("/metrics")
    assert answer.status_code == 200
    found = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation.endswith("."), family.name
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def more(before: dict[str, float]) -> dict[str, float]:
    """Return the counters that have grown since, and by how much."""
    now = scrape()
    counted = [name for name in now if re.search(r"^docora_.*(_total|_bucket|_count|_sum)", name)]
    return {name: now[name] - before[name] for name in counted if now[name] != before[name]}


def test_every_label_value_is_present_from_the_start(db) -> None:
    found = scrape()
    for outcome in Outcome:
        assert found[f'docora_syncs_total{{outcome="{outcome.value}"}}'] == 0
    for cause in RootCause:
        assert found[f'docora_sync_failures_total{{cause="{cause.value}"}}'] == 0
        assert found[f'docora_delivery_failures_total{{cause="{cause.value}"}}'] == 0
    for status in Status:
        assert found[f'docora_watches{{status="{status.value}"}}'] == 0
    for queue in queues.QUEUES:
        assert found[f'docora_queue_jobs{{queue="{queue}"}}'] == 0


def test_sync_is_counted_with_files_bytes_and_requests(world: World) -> None:
    before = scrape()
    _, watch = world.watch({"a.txt": b"12345", "b.txt": b"678"})
    world.sync(watch)
    grown = more(before)
    assert grown['docora_syncs_total{outcome="succeeded"}'] == 1
    assert grown["docora_delivered_files_total"] == 2
    assert grown["docora_delivered_bytes_total"] == 8
    assert grown["docora_request_seconds_count"] == 2
    assert grown['docora_request_seconds_bucket{le="+Inf"}'] == 2
    assert 0 < grown["docora_request_seconds_sum"] < 60
    assert not [name for name in grown if "failures" in name]


def test_latency_buckets_are_cumulative(world: World) -> None:
    _, watch = world.watch({f"{number}.txt": b"x" for number in range(150)})  # more than are kept individually
    world.sync(watch)
    found = scrape()
    buckets = [value for name, value in found.items() if name.startswith("docora_request_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == found["docora_request_seconds_count"] == 150


def test_failures_are_counted_by_cause(world: World) -> None:
    _, watch = world.watch({"a.txt": b"1", "b.txt": b"2"})
    world.answer(lambda note: Answer(500) if note.path == "a.txt" else None)
    before = scrape()
    world.sync(watch)
    grown = more(before)
    assert grown['docora_delivery_failures_total{cause="http_5xx"}'] == 1
    assert grown['docora_sync_failures_total{cause="http_5xx"}'] == 1
    assert grown["docora_delivered_files_total"] == 1
    assert not [name for name in grown if name.startswith("docora_syncs_total")], (
        "a run that will be retried was counted"
    )


def test_blocked_files_have_their_own_cause(world: World) -> None:
    repo, watch = world.watch({"a": b"1"})
    world.settle()
    repo.commit({"a": None, "a/b": b"2"})
    world.answer(lambda note: Answer(500) if note.kind == "delete" else None)
    before = scrape()
    world.sync(watch)
    grown = more(before)
    assert grown['docora_delivery_failures_total{cause="blocked"}'] == 1
    assert grown['docora_delivery_failures_total{cause="http_5xx"}'] == 1


def test_unreadable_repository_is_a_failed_sync(world: World) -> None:
    repo, watch = world.watch()
    AppRepository.objects.filter(pk=watch.pk).update(github_url=repo.url + "-gone")
    before = scrape()
    world.sync(watch)
    assert more(before) == {
        'docora_sync_failures_total{cause="git_not_found"}': 1,
        'docora_syncs_total{outcome="failed"}': 1,
    }


def test_other_outcomes_are_counted(world: World) -> None:
    _, watch = world.watch()
    world.settle()
    before = scrape()
    resync_single(ME, watch)
    cancel_operation(ME, resync_many(ME, AppRepository.objects.all()))
    world.settle()
    assert {name: value for name, value in more(before).items() if "syncs" in name} == {
        'docora_syncs_total{outcome="cancelled"}': 1,
        'docora_syncs_total{outcome="succeeded"}': 1,
    }


def test_checks_are_counted(world: World) -> None:
    for number in range(3):
        world.watch(name=f"acme/widgets-{number}")
    world.settle()
    before = scrape()
    world.check()
    assert more(before) == {"docora_checks_total": 3}


def test_watch_and_circuit_gauges(watches: list[AppRepository]) -> None:
    long_ago = timezone.now() - timedelta(minutes=10)
    rows = AppRepository.objects.filter(pk=watches[0].pk)
    rows.update(next_sync_at=long_ago, status=Status.FAILED, failing_since=long_ago, root_cause="timeout")
    paused = AppRepository.objects.filter(pk=watches[2].pk)
    paused.update(next_sync_at=long_ago, failing_since=long_ago, root_cause="timeout", paused_at=long_ago)
    AppRepository.objects.filter(pk=watches[1].pk).update(next_sync_at=timezone.now())
    gone = make_watch(make_app("Gone"), "gone", next_sync_at=long_ago)
    Repository.objects.filter(pk=gone.repository_id).update(circuit_open_until=timezone.now() + timedelta(hours=1))
    App.objects.filter(name="Gone").update(ended_at=timezone.now())
    HostOutage.objects.create(host="https://git.example/", since=long_ago, retry_at=timezone.now(), error="refused")
    found = scrape()
    assert found["docora_git_hosts_down"] == 1
    assert found['docora_watches{status="synced"}'] == 2
    assert found['docora_watches{status="failed"}'] == 1
    assert found["docora_watches_failing"] == 2
    assert found["docora_watches_due"] == 2
    assert found["docora_watches_held"] == 1
    assert 600 <= found["docora_watches_overdue_seconds"] < 660
    assert found["docora_circuits_open"] == 1
    assert found["docora_leases"] == 0
    assert claim(watches[0].pk)
    found = scrape()
    assert (found["docora_leases"], found["docora_watches_due"]) == (1, 1)
    assert found["docora_watches_overdue_seconds"] < 60


def test_queue_worker_and_sweep_gauges(db, redis_client: Redis) -> None:
    found = scrape()
    assert found["docora_workers"] == 0
    assert "docora_sweep_age_seconds" not in found
    for number in range(3):
        queues.enqueue("high", "deliveries_app.jobs.sync_watch", number, f"job-{number}")
    since = utcformat(datetime.now(UTC) - timedelta(minutes=2))
    redis_client.hset(Job.key_for("job-1"), "enqueued_at", since)
    Worker(["high"], connection=redis_client).register_birth()
    heartbeat.beat()
    found = scrape()
    assert found['docora_queue_jobs{queue="high"}'] == 3
    assert 120 <= found['docora_queue_oldest_job_seconds{queue="high"}'] < 180
    assert found['docora_queue_jobs{queue="low"}'] == found['docora_queue_oldest_job_seconds{queue="low"}'] == 0
    assert found["docora_workers"] == 1
    assert 0 <= found["docora_sweep_age_seconds"] < 60


def test_query_count_of_a_scrape_is_constant(db) -> None:
    asked, samples = [], []
    for first, last in ((0, 2), (2, 25)):
        add_rows(first, last)
        with CaptureQueriesContext(connection) as queries:
            samples.append(set(scrape()))
        asked.append(len(queries))
    assert samples[0] == samples[1], "the number of samples grows with the rows"
    assert asked == [3, 3], "a scrape takes three statements: extend those in monitoring/counts.py"


def test_scrape_without_redis(world: World, valkey_server: ValkeyServer) -> None:
    _, watch = world.watch()
    valkey_server.stop()
    assert world.sync(watch).status == Status.SYNCED
    found = scrape()
    assert found["docora_redis_up"] == 0
    assert found["docora_database_up"] == 1
    assert found['docora_watches{status="synced"}'] == 1
    ours = [name for name in found if name.startswith("docora_")]
    assert not [name for name in ours if re.search(r"_total|request|queue|workers|sweep", name)]


@pytest.mark.django_db(transaction=True)
def test_scrape_without_the_database(postgres_server) -> None:
    connection.close()
    postgres_server.stop()
    try:
        found = scrape()
    finally:
        postgres_server.start()
        connection.close()
    assert (found["docora_redis_up"], found["docora_database_up"]) == (1, 0)
    assert found["docora_checks_total"] == 0
    assert "docora_leases" not in found
