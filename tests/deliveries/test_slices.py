"""A long run makes way for other watches, in slices, and nothing is lost or sent twice (`engine.md` §6)."""

import os
import signal
import time
from collections import Counter

import pytest
from redis import Redis
from rq.job import Job

from deliveries_app import scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Status
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import resync_many
from deliveries_app.sync import time_slice
from deliveries_app.sync.claim import claim
from deliveries_app.sync.time_slice import TimeSlice
from docora.db.clock import from_now
from docora.redis import queues
from docora.redis.connection import connection
from docora.server.worker import DocoraWorker
from tests.support.processes import forked, reap
from tests.support.receiver import wait_for
from tests.support.syncing import sync
from tests.support.world import World

FILES = {f"{number:03}.txt": b"%d" % number for number in range(40)}


@pytest.fixture(autouse=True)
def _short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_slice, "SLICE_SECONDS", 0.1)
    monkeypatch.setattr(time_slice, "SLICE_FACTOR", 0)


@pytest.fixture
def slow(world: World) -> AppRepository:
    """A watch of an app that takes 30 ms for each file, one at a time."""
    world.app.max_in_flight = 1
    world.app.save()
    world.answer(lambda note: time.sleep(0.03) if note.app_id == world.app.app_id else None)
    return world.watch(FILES)[1]


def another_app_waits(world: World) -> AppRepository:
    return another_waits(world, world.add_app("Other"))


def another_waits(world: World, app: App) -> AppRepository:
    _, watch = world.watch(name="acme/gadgets", app=app)
    AppRepository.objects.filter(pk=watch.pk).update(next_sync_at=from_now(-5))
    return watch


def slices_until_synced(world: World, watch: AppRepository) -> int:
    for number in range(1, 100):
        if world.sync(watch).status == Status.SYNCED:
            return number
    raise AssertionError("not synced after 100 slices")


def test_run_continues_where_it_made_way(world: World, slow: AppRepository) -> None:
    other = another_app_waits(world)
    assert slices_until_synced(world, slow) > 1
    slow.refresh_from_db()
    assert (slow.status, slow.retry_count) == (Status.SYNCED, 0)
    assert world.copy(slow).keys() == FILES.keys()
    sent = Counter(record.path for record in world.requests("create") if record.app_id == world.app.app_id)
    assert sent == Counter(FILES.keys())
    (run,) = world.runs(slow)
    assert (run.outcome, run.attempts, run.files_done, run.files_total) == ("succeeded", 1, 40, 40)
    assert world.copy(other) == {}  # this test syncs nothing else


@pytest.mark.parametrize(("fetch", "prepare", "seconds"), [(0, 0.1, 4), (25, 0.1, 4), (0, 2, 20), (25, 60, 30)])
def test_slice_is_as_long_as_repeating_the_preparation_justifies(
    world: World, monkeypatch: pytest.MonkeyPatch, fetch: float, prepare: float, seconds: float
) -> None:
    """A slow host or a large tree must not let one app keep a worker for minutes. A fetch is not repeated."""
    monkeypatch.undo()
    lease = claim(world.watch(FILES)[1].pk)
    assert lease is not None
    of_run = TimeSlice(lease)
    of_run._began_at -= fetch + prepare
    of_run.fetch_seconds = fetch
    assert of_run.seconds == pytest.approx(seconds, rel=0.1)


def test_watch_that_made_way_is_due_again(world: World, slow: AppRepository) -> None:
    another_app_waits(world)
    sync(slow.pk)
    slow.refresh_from_db()
    assert (slow.status, slow.retry_count, slow.lease_until) == (Status.PENDING, 0, None)
    assert slow in AppRepository.objects.due().free()
    assert 0 < len(world.copy(slow)) < len(FILES)


@pytest.mark.parametrize(
    "waiting", ["nothing", "a watch of the same app's bulk operation", "a watch that has just become due"]
)
def test_run_makes_way_only_for_a_watch_that_waits(world: World, slow: AppRepository, waiting: str) -> None:
    if waiting == "a watch of the same app's bulk operation":
        watch = another_waits(world, world.app)
        resync_many(Actor.command(), AppRepository.objects.filter(pk=watch.pk))
        AppRepository.objects.filter(pk=watch.pk).update(next_sync_at=from_now(-5))
    if waiting == "a watch that has just become due":
        watch = another_app_waits(world)

        def just_due(_note: object = None) -> None:
            AppRepository.objects.filter(pk=watch.pk).update(next_sync_at=from_now(0))
            time.sleep(0.03)

        just_due()
        world.answer(just_due)
    sync(slow.pk)
    assert world.copy(slow).keys() == FILES.keys()


def test_run_makes_way_for_a_watch_of_its_app_that_gets_no_slot(world: World, slow: AppRepository) -> None:
    """A re-sync of many files must not keep a push to another repository waiting for hours."""
    resync_many(Actor.command(), AppRepository.objects.filter(pk=slow.pk))
    change = another_waits(world, world.app)
    sync(slow.pk)
    assert 0 < len(world.copy(slow)) < len(FILES)
    first, *_ = scheduling._next_due()
    assert first == change
    assert world.sync(change).status == Status.SYNCED
    assert slices_until_synced(world, slow) == 1
    sent = Counter(record.path for record in world.requests("create") if record.path in FILES)
    assert sent == Counter(FILES.keys())


def test_run_that_can_share_its_slots_does_not_make_way_for_its_app(world: World, slow: AppRepository) -> None:
    App.objects.update(max_in_flight=2)
    another_waits(world, world.app)
    sync(slow.pk)
    assert world.copy(slow).keys() == FILES.keys()


def test_job_of_a_long_run_that_ends_early_does_not_replace_itself(
    world: World, slow: AppRepository, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It enqueued its own watch, and deleted the new job at its end. Until a worker had dropped its id, the sweep added none."""
    monkeypatch.setattr(queues, "_STALE_SECONDS", 0.1)

    def work() -> None:
        waiting = [queues._queue(name) for name in queues.QUEUES]
        DocoraWorker(waiting, connection=connection()).work(burst=True)

    worker = forked(work)
    wait_for(lambda: len(world.copy(slow)) > 5, 20)
    os.kill(worker, signal.SIGTERM)
    assert reap(worker) == 0
    assert len(world.copy(slow)) < len(FILES)
    assert queues.job_ids("default") == []
    assert scheduling.enqueue_due() == 1
    assert redis_client.hget(Job.key_for(slow.job_id), "status") == b"queued"


def test_large_file_is_sent_to_its_end(world: World, settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 100, 100
    world.answer(lambda note: time.sleep(0.03))
    large = {f"large-{number}.bin": bytes(range(256)) * 4 for number in range(4)}  # 14 chunks each
    world.app.max_in_flight = 2
    world.app.save()
    _, watch = world.watch(large)
    another_app_waits(world)
    assert slices_until_synced(world, watch) > 1
    chunks = Counter((record.path, record.chunk.id) for record in world.requests("create") if record.chunk)
    assert set(chunks.values()) == {14}
    assert len(chunks) == len(large)  # each under one id


def test_endpoint_that_does_not_answer_is_found_to_be_down(world: World) -> None:
    """In slices, its run would occupy a worker for ever, because no slice would see enough failures."""
    _, watch = world.watch(FILES)
    another_app_waits(world)

    def unavailable(note: Notification) -> Answer:
        time.sleep(0.03)
        return Answer(502)

    world.answer(unavailable)
    sync(watch.pk)
    world.app.refresh_from_db()
    assert world.app.down_count == 1
    assert world.app.cooldown_until is not None
