"""RQ wakes workers early; the database decides (`engine.md` §6)."""

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import django_rq
import pytest
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job
from rq.utils import utcformat

from deliveries_app import scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, SyncRun
from deliveries_app.scheduling import enqueue_due
from deliveries_app.services import cancel_request, resync_many, resync_single, unwatch_repository
from deliveries_app.services.push_hooks import repository_pushed
from deliveries_app.sync.claim import claim
from docora.db import prepared
from docora.db.compiled import compiled
from docora.redis import queues
from repositories_app.models import Repository
from tests.support.plans import read_rows
from tests.support.staff import make_app, make_watch
from tests.support.valkey import ValkeyServer
from tests.support.world import World

FUNCTION = "deliveries_app.jobs.sync_watch"


def ids(queue: str) -> list[str]:
    return django_rq.get_queue(queue).get_job_ids()


def put(queue: str = "default", job_id: str = "job-1", *, owned: bool = False, leased: bool = True) -> bool:
    return queues.enqueue(queue, FUNCTION, 1, job_id, owned=owned, leased=leased)


def strand(job_id: str = "job-1", *, seconds_ago: float) -> None:
    """Add a job that was enqueued this many seconds ago, and whose worker took it and died."""
    queue = django_rq.get_queue("default")
    put(job_id=job_id)
    queue.connection.lrem(queue.key, 0, job_id)
    moment = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    queue.connection.hset(Job.key_for(job_id), "enqueued_at", utcformat(moment))


def test_job_is_queued_once() -> None:
    assert put()
    assert put()
    assert put()
    assert ids("default") == ["job-1"]


def test_job_options_leave_no_hash_behind() -> None:
    put()
    job = django_rq.get_queue("default").fetch_job("job-1")
    assert job is not None
    assert (job.timeout, job.result_ttl, job.retries_left) == (-1, 0, None)
    assert job.failure_ttl is not None
    assert job.failure_ttl <= 5


def test_waiting_job_moves_up_but_not_down() -> None:
    put("low")
    put("low", "job-2")
    assert put("high")
    assert (ids("high"), ids("low")) == (["job-1"], ["job-2"])
    job = django_rq.get_queue("high").fetch_job("job-1")
    assert job is not None
    assert job.origin == "high"
    assert put("default")
    assert (ids("high"), ids("default")) == (["job-1"], [])


def test_stranded_job_is_replaced_after_10_seconds() -> None:
    strand(seconds_ago=5)
    assert not put()
    strand("job-2", seconds_ago=11)
    assert put(job_id="job-2")
    assert ids("default") == ["job-2"]


def test_job_is_replaced_after_its_execution_has_expired(redis_client: Redis) -> None:
    """RQ keeps a dead worker's execution for a minute after its last heartbeat, and lists it for another minute."""
    strand(seconds_ago=70)
    job = Job.fetch("job-1", connection=redis_client, serializer=django_rq.get_queue("default").serializer)
    with redis_client.pipeline() as pipeline:
        execution = Execution.create(job, ttl=60, pipeline=pipeline)
        pipeline.hset(job.key, "status", "started")
        pipeline.delete(execution.key)  # expires
        pipeline.execute()
    assert put()
    assert ids("default") == ["job-1"]
    assert redis_client.zcard(job.started_job_registry.key) == 0  # its cleanup would end the new job


def test_job_that_runs_for_long_is_not_started_again(redis_client: Redis) -> None:
    strand(seconds_ago=600)
    moment = utcformat(datetime.now(UTC) - timedelta(seconds=3))
    redis_client.hset(Job.key_for("job-1"), mapping={"status": "started", "last_heartbeat": moment})
    assert not put(leased=False)
    assert ids("default") == []
    moment = utcformat(datetime.now(UTC) - timedelta(seconds=11))  # its worker has died
    redis_client.hset(Job.key_for("job-1"), "last_heartbeat", moment)
    assert put(leased=False)
    assert ids("default") == ["job-1"]


def test_job_that_waited_for_long_may_claim_its_lease(redis_client: Redis) -> None:
    """It was deleted while it ran, and its work was done twice."""
    strand(seconds_ago=600)
    for seconds, is_replaced in ((9, False), (11, True)):
        moment = utcformat(datetime.now(UTC) - timedelta(seconds=seconds))
        redis_client.hset(Job.key_for("job-1"), mapping={"status": "started", "started_at": moment})
        assert put() == is_replaced
    assert ids("default") == ["job-1"]


def test_job_that_waits_for_a_lock_is_not_started_again(redis_client: Redis, settings) -> None:
    """A frozen process held a lock for half a minute. Each job that waited for it was added again, and occupied another thread."""
    strand(seconds_ago=600)
    heartbeat = utcformat(datetime.now(UTC) - timedelta(seconds=3))
    for seconds, is_replaced in ((settings.LEASE_SECONDS - 1, False), (settings.LEASE_SECONDS + 1, True)):
        moment = utcformat(datetime.now(UTC) - timedelta(seconds=seconds))
        columns = {"status": "started", "started_at": moment, "last_heartbeat": heartbeat}
        redis_client.hset(Job.key_for("job-1"), mapping=columns)
        assert put() == is_replaced
    assert ids("default") == ["job-1"]


def test_stranded_job_of_a_leased_watch_is_kept() -> None:
    strand(seconds_ago=1000)
    assert not put(owned=True)
    assert ids("default") == []


def test_only_the_job_that_a_dead_worker_performed_is_forgotten(redis_client: Redis) -> None:
    strand(seconds_ago=0)
    key = Job.key_for("job-1")
    for status, worker in (("started", "another"), ("queued", "dead")):
        redis_client.hset(key, mapping={"status": status, "worker_name": worker})
        queues.forget("job-1", "dead")
        assert redis_client.exists(key)
    redis_client.hset(key, "status", "started")
    queues.forget("job-1", "dead")
    assert not redis_client.exists(key)
    queues.forget("job-1", "dead")


def test_job_that_ends_while_it_is_enqueued_is_enqueued_again(redis_client: Redis, monkeypatch) -> None:
    strand(seconds_ago=0)
    original = Redis.set

    def ends_first(*arguments: object, **options: object) -> object:
        redis_client.delete(Job.key_for("job-1"))
        return original(*arguments, **options)

    monkeypatch.setattr(Redis, "set", ends_first)
    assert put("high", owned=True)
    assert ids("high") == ["job-1"]


def test_unreadable_job_is_replaced(redis_client: Redis) -> None:
    redis_client.hset(Job.key_for("job-1"), "last_heartbeat", "2026-11-24T12:00:00.000000Z")
    assert put()
    assert ids("default") == ["job-1"]


def test_job_that_is_enqueued_concurrently_is_kept(redis_client: Redis, monkeypatch) -> None:
    put()
    waiting_since = redis_client.hget(Job.key_for("job-1"), "enqueued_at")
    redis_client.delete("rq:queue:default")  # a worker took it, and finishes before the fetch
    original = Job.fetch

    def fetch(job_id: str, **options: object) -> Job:
        monkeypatch.setattr(Job, "fetch", original)
        redis_client.delete(Job.key_for(job_id))
        put()
        redis_client.delete("rq:queue:default")  # another worker took it
        raise NoSuchJobError

    monkeypatch.setattr(Job, "fetch", fetch)
    assert not put()
    assert ids("default") == []
    assert redis_client.hget(Job.key_for("job-1"), "enqueued_at") not in (None, waiting_since)


@pytest.mark.parametrize("act", [put, lambda: queues.forget("job-1", "dead")], ids=["enqueued", "forgotten"])
def test_job_that_ends_before_it_is_deleted(redis_client: Redis, monkeypatch, act: Callable[[], object]) -> None:
    """RQ raised an error, which ended the round of enqueueing and marked the job that did it as failed."""
    strand(seconds_ago=600)
    redis_client.hset(Job.key_for("job-1"), mapping={"status": "started", "worker_name": "dead"})
    original = Job.delete

    def delete(job: Job) -> None:
        monkeypatch.setattr(Job, "delete", original)
        redis_client.delete(job.key)
        job.delete()

    monkeypatch.setattr(Job, "delete", delete)
    act()
    assert Job.delete is original
    assert ids("default") == (["job-1"] if act is put else [])


def test_jobs_are_enqueued_only_after_the_commit(world: World, redis_client: Redis) -> None:
    _, watch = world.watch()
    redis_client.flushall()
    with transaction.atomic():
        scheduling.enqueue(watch)
        transaction.set_rollback(True)
    assert ids("high") == []
    with transaction.atomic():
        scheduling.enqueue(watch)
        assert ids("high") == []
    assert ids("high") == [watch.job_id]


def test_services_work_without_redis(world: World, valkey_server: ValkeyServer) -> None:
    _, watch = world.watch()
    valkey_server.stop()
    started = time.monotonic()
    run = resync_single(Actor.command(), watch)
    assert SyncRun.objects.filter(pk=run.pk, outcome="").exists()
    assert AppRepository.objects.due().filter(pk=watch.pk).exists()
    assert not put()
    assert queues.job_ids("default") is None
    assert enqueue_due() == 0
    queues.drop(["job-1"])
    assert cancel_request(Actor.command(), watch) == 1
    world.sync(watch)
    unwatch_repository(Actor.command(), watch)
    assert time.monotonic() - started < 5
    watch.refresh_from_db()
    assert watch.ended_at is not None


def test_job_that_ends_without_redis_is_left_to_the_sweep(valkey_server: ValkeyServer) -> None:
    strand(seconds_ago=0)
    job = django_rq.get_queue("default").fetch_job("job-1")
    assert job is not None
    assert not put("high", owned=True)
    valkey_server.stop()
    queues.enqueue_again(job)


def test_hanging_redis_does_not_block(transactional_db: None, valkey_server: ValkeyServer) -> None:
    put()
    with valkey_server.frozen():
        started = time.monotonic()
        assert not put()
        assert time.monotonic() - started < 5


def test_enqueueing_leaks_no_descriptors() -> None:
    put()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(30):
        put(job_id=f"job-{number}")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_due_watches_are_enqueued_again_after_redis_was_flushed(world: World, redis_client: Redis) -> None:
    watches = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(3)]
    redis_client.flushall()
    assert enqueue_due() == 3
    assert sorted(ids("default")) == sorted(watch.job_id for watch in watches)
    redis_client.flushall()
    assert enqueue_due() == 3
    assert sorted(ids("default")) == sorted(watch.job_id for watch in watches)


@pytest.fixture
def queue_of_four(monkeypatch) -> None:
    monkeypatch.setattr(scheduling, "ENQUEUE_AHEAD", 4)
    monkeypatch.setattr(scheduling, "_next_keys", compiled(scheduling._next_keys.__wrapped__))


@pytest.mark.usefixtures("queue_of_four")
def test_queue_is_filled_in_small_batches_longest_waiting_first(world: World, redis_client: Redis) -> None:
    watches = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(6)]
    redis_client.flushall()
    for age, watch in enumerate(watches):
        AppRepository.objects.filter(pk=watch.pk).update(next_sync_at=Now() - timedelta(seconds=age + 1))
    enqueue_due()
    assert ids("default") == [watch.job_id for watch in reversed(watches)][:4]
    assert enqueue_due() == 0  # still half full
    assert len(ids("default")) == 4


def test_finding_the_next_watches_reads_no_repository(db: None, postgres_server) -> None:
    """While 10,000 watches were due, most of this query's time went into their repositories and the git hosts of these."""
    portal = make_app("Portal")
    for number in range(30):
        make_watch(portal, f"library-{number}", next_sync_at=timezone.now() - timedelta(minutes=1))
    assert len(scheduling._next_due()) == scheduling.ENQUEUE_AHEAD
    prepared.forget()  # a prepared statement can't be explained again
    assert read_rows(scheduling._next_keys, AppRepository._meta.db_table) > 0
    prepared.forget()
    assert read_rows(scheduling._next_keys, Repository._meta.db_table) == 0


@pytest.mark.usefixtures("queue_of_four")
def test_apps_take_turns(world: World, redis_client: Redis) -> None:
    """A bulk operation of one app does not delay another app's change."""
    bulk = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(5)]
    _, change = world.watch(name="acme/gadgets", app=world.add_app("Other"))
    redis_client.flushall()
    enqueue_due()
    assert ids("default") == [watch.job_id for watch in (bulk[0], change, bulk[1], bulk[2])]


def test_leased_cooling_down_and_paused_watches_are_not_enqueued(world: World, redis_client: Redis) -> None:
    _, watch = world.watch()
    redis_client.flushall()
    App.objects.update(paused=True)
    assert enqueue_due() == 0
    App.objects.update(paused=False, cooldown_until=Now() + timedelta(seconds=60))
    assert enqueue_due() == 0
    App.objects.update(cooldown_until=None)
    lease = claim(watch.pk)
    assert lease is not None
    assert enqueue_due() == 0
    lease.release()
    assert enqueue_due() == 1


def test_single_request_overtakes_bulk_work(world: World, redis_client: Redis) -> None:
    watches = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(3)]
    redis_client.flushall()
    enqueue_due()
    resync_single(Actor.command(), watches[2])
    assert ids("high") == [watches[2].job_id]
    assert watches[2].job_id not in ids("default")


def test_watches_in_the_high_queue_are_left_there_without_a_round_trip_for_each(
    world: World, redis_client: Redis
) -> None:
    watches = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(5)]
    redis_client.flushall()
    for watch in watches[:4]:
        resync_single(Actor.command(), watch)
    assert enqueue_due() == 1
    assert ids("default") == [watches[4].job_id]
    redis_client.config_resetstat()
    assert enqueue_due() == 0
    commands = redis_client.info("commandstats")
    assert {name: row["calls"] for name, row in commands.items() if name != "cmdstat_config|resetstat"} == {
        "cmdstat_lrange": 2,
        "cmdstat_set": 1,
        "cmdstat_evalsha": 1,  # releases the lock, with these two
        "cmdstat_get": 1,
        "cmdstat_del": 1,
    }
    assert ids("high") == [watch.job_id for watch in watches[:4]]


def test_many_single_requests_of_an_app_do_not_delay_another_app(world: World, redis_client: Redis) -> None:
    """An app that adds many repositories has a few jobs in the high queue. The others take turns with the other apps'."""
    other = world.watch(name="acme/gadgets", app=world.add_app("Other"))[1]
    redis_client.flushall()
    added = [world.watch(name=f"acme/widgets-{number}")[1].job_id for number in range(7)]
    resync_single(Actor.command(), other)
    assert ids("high") == [*added[:4], other.job_id]
    enqueue_due()
    assert ids("default") == added[4:]


def test_jobs_of_an_app_with_a_longer_id_take_no_places(world: World) -> None:
    """Imported ids may contain dashes: the jobs of `portal-eu` begin like those of `portal`."""
    longer = world.add_app("Europe", app_id="portal-eu")
    App.objects.filter(pk=world.app.pk).update(app_id="portal")
    world.app.refresh_from_db()
    others = [world.watch(name=f"acme/eu-{number}", app=longer)[1] for number in range(5)]
    own = [world.watch(name=f"acme/own-{number}")[1] for number in range(5)]
    assert ids("high") == [watch.job_id for watch in [*others[:4], *own[:4]]]


def test_job_leaves_the_default_queue_to_the_sweep_while_jobs_wait_in_the_high_queue(
    world: World, redis_client: Redis, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    """Otherwise, each of many first syncs would read the due watches, of which it could enqueue none."""
    watches = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(5)]
    with django_assert_num_queries(0):
        assert enqueue_due(after_job_of=0) == 0
    assert enqueue_due() == 1
    queues.drop(watch.job_id for watch in watches[1:])
    assert enqueue_due(after_job_of=0) == 4


@pytest.mark.usefixtures("queue_of_four")
def test_bulk_work_comes_after_the_other_watches_of_the_app(world: World, redis_client: Redis) -> None:
    *bulk, retry = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(6)]
    resync_many(Actor.command(), AppRepository.objects.filter(pk__in=[watch.pk for watch in bulk]))
    AppRepository.objects.filter(pk=retry.pk).update(next_sync_at=Now() - timedelta(seconds=1))
    AppRepository.objects.exclude(pk=retry.pk).update(next_sync_at=Now() - timedelta(hours=1))
    redis_client.flushall()
    enqueue_due()
    assert ids("default") == [watch.job_id for watch in (retry, *bulk[:3])]


@pytest.mark.usefixtures("queue_of_four")
def test_bulk_work_of_many_apps_does_not_delay_a_change(world: World, redis_client: Redis) -> None:
    apps = [world.add_app(f"App {number}") for number in range(5)]
    bulk = [world.watch(name=f"acme/widgets-{number}", app=app)[1] for number, app in enumerate([*apps, *apps])]
    _, change = world.watch(name="acme/gadgets", app=world.add_app("Other"))
    resync_many(Actor.command(), AppRepository.objects.exclude(pk=change.pk))
    AppRepository.objects.update(next_sync_at=Now() - timedelta(hours=1))
    AppRepository.objects.filter(pk=change.pk).update(next_sync_at=Now() - timedelta(seconds=1))
    redis_client.flushall()
    enqueue_due()
    assert ids("default") == [watch.job_id for watch in (change, *bulk[:3])]


def test_push_comes_before_the_bulk_work_of_its_app(world: World, redis_client: Redis) -> None:
    """A push to a repository that a bulk operation has not reached: without a place or a slot, its job in the high queue ends."""
    bulk = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(4)]
    resync_many(Actor.command(), AppRepository.objects.all())
    AppRepository.objects.update(next_sync_at=Now() - timedelta(hours=1))
    for proven in ([bulk[2].pk], []):  # the second push is too soon for another sync
        repository_pushed(Actor.system(), bulk[2].repository.repository_id, proven)
    redis_client.flushall()
    enqueue_due()
    assert ids("default") == [watch.job_id for watch in (bulk[2], bulk[0], bulk[1], bulk[3])]


def test_watch_is_not_bulk_work_after_its_operation(world: World, redis_client: Redis) -> None:
    first, second = (world.watch(name=f"acme/widgets-{number}")[1] for number in range(2))
    resync_many(Actor.command(), AppRepository.objects.filter(pk=first.pk))
    SyncRun.objects.update(outcome="succeeded", ended_at=Now())
    AppRepository.objects.update(next_sync_at=Now() - timedelta(seconds=1))
    AppRepository.objects.filter(pk=first.pk).update(next_sync_at=Now() - timedelta(hours=1))
    redis_client.flushall()
    enqueue_due()
    assert ids("default") == [first.job_id, second.job_id]


def test_only_one_process_at_a_time_fills_the_queue(world: World, redis_client: Redis) -> None:
    for number in range(3):
        world.watch(name=f"acme/{number}")
    redis_client.flushall()
    with queues.only_one("enqueue_due", seconds=60) as is_first:
        assert is_first
        assert enqueue_due() == 0
    assert enqueue_due() == 3


def test_killed_process_that_was_filling_the_queue_while_the_clock_of_redis_was_ahead(
    world: World, redis_client: Redis
) -> None:
    world.watch()
    redis_client.flushall()
    redis_client.set("docora:only:enqueue_due", "killed", ex=timedelta(days=365))
    assert [enqueue_due() for _ in range(2)] == [0, 1]


def test_hourly_work_continues_after_the_clock_of_redis_was_ahead(redis_client: Redis) -> None:
    redis_client.set("docora:first:work", "1", ex=timedelta(days=365))
    assert [queues.first_within("work", 3600) for _ in range(3)] == [False, True, False]


def test_process_that_takes_too_long_does_not_let_a_third_in(redis_client: Redis) -> None:
    with contextlib.ExitStack() as slow:
        assert slow.enter_context(queues.only_one("work", seconds=60))
        redis_client.flushall()  # its time is over
        with queues.only_one("work", seconds=60) as is_second_let_in:
            assert is_second_let_in
            slow.close()
            with queues.only_one("work", seconds=60) as is_third_let_in:
                assert not is_third_let_in
