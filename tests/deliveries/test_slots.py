"""`max_in_flight` limits an app over all its repositories and all workers (`engine.md` §7)."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from django.db import connection
from django.db.models import F
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from deliveries_app import jobs, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Status
from deliveries_app.monitoring.counts import count_watches
from deliveries_app.receiver import Notification
from deliveries_app.services import resync_single
from deliveries_app.sync import attempt, slots
from deliveries_app.sync.attempt import MANY_FILES
from deliveries_app.sync.claim import claim
from deliveries_app.sync.lease import Lease
from deliveries_app.sync.time_slice import TimeSlice
from docora import file_locks
from docora.db.clock import from_now
from docora.redis import queues
from repositories_app.mirror import mirror
from repositories_app.models import Repository
from repositories_app.services import mirror_of
from tests.support.histories import assert_promise_kept
from tests.support.processes import in_threads, syncing
from tests.support.receiver import wait_for
from tests.support.syncing import sync
from tests.support.world import World

MANY_SLOTS = 230  # more than the connections of the client that checks git hosts


def several(world: World, count: int, files: int = 20, slots: int = 8) -> list[AppRepository]:
    """Return watches of one app with this many slots."""
    App.objects.filter(pk=world.app.pk).update(max_in_flight=slots)
    world.app.refresh_from_db()
    content = {f"{number:03}.txt": b"%d" % number for number in range(files)}
    return [world.watch(content, name=f"acme/widgets-{number}")[1] for number in range(count)]


def work_until_synced(watch: AppRepository) -> None:
    """Sync the watch whenever it is due, as a worker woken by the sweep does."""

    def synced() -> bool:
        AppRepository.objects.filter(pk=watch.pk, lease_until=None).update(next_sync_at=F("created_at"))
        sync(watch.pk)
        return AppRepository.objects.filter(pk=watch.pk, status=Status.SYNCED).exists()

    wait_for(synced, 40, 0.05)


def claimed(watch: AppRepository) -> Lease:
    lease = claim(watch.pk)
    assert lease is not None
    return lease


def rebalance(lease: Lease, in_flight: int) -> int:
    """Rebalance the lease at once and return its slots."""
    lease.slots.rebalance_at = 0.0
    lease.slots.rebalance(in_flight)
    return lease.slots.count


def queued() -> set[str]:
    return set(queues.job_ids("default") or [])


def slots_of(watch: AppRepository) -> int:
    watch.refresh_from_db()
    return watch.lease_slots


@pytest.mark.parametrize("slots", [1, 3])
def test_three_workers_share_the_limit_of_an_app(world: World, slots: int) -> None:
    watches = several(world, 3, files=12, slots=slots)
    world.answer(lambda note: time.sleep(0.02))
    in_threads(*[lambda watch=watch: work_until_synced(watch) for watch in watches])
    assert all(len(world.copy(watch)) == 12 for watch in watches)
    assert max(record.in_flight for record in world.receiver.log) <= slots
    if slots == 1:  # strictly one by one
        log = sorted(world.requests(), key=lambda record: record.received_at)
        assert all(before.answered_at <= after.received_at for before, after in pairwise(log))


@pytest.mark.parametrize(("files", "used"), [(MANY_FILES, 3), (MANY_FILES + 1, 6)])
def test_only_a_run_with_many_files_takes_more_than_half(
    world: World, files: int, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "_REBALANCE_SECONDS", (60.0, 60.0))  # it ends before slots are shared again
    (watch,) = several(world, 1, files=files, slots=6)
    world.answer(lambda note: time.sleep(0.005))
    world.sync(watch)
    assert max(record.in_flight for record in world.receiver.log) == used


def test_app_with_very_many_slots_uses_them_all_in_a_job(world: World) -> None:
    (watch,) = several(world, 1, files=2 * MANY_SLOTS, slots=MANY_SLOTS)
    all_in_flight = threading.Barrier(MANY_SLOTS)

    def hold(_note: Notification) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):  # too few came: the count below says how many
            all_in_flight.wait(20)

    world.answer(hold)
    world.make_due(watch)
    jobs.sync_watch(watch.pk)
    assert max(record.in_flight for record in world.receiver.log) == MANY_SLOTS


def test_each_claim_takes_half_of_the_free_slots(world: World) -> None:
    watches = several(world, 5)
    assert [claimed(watch).slots.count for watch in watches[:4]] == [4, 2, 1, 1]
    assert claim(watches[4].pk) is None


def test_watch_without_a_slot_stays_due_and_is_enqueued_when_one_is_free(world: World) -> None:
    first, second = several(world, 2, slots=1)
    holder = claimed(first)
    assert claim(second.pk) is None
    queues.drop([second.job_id])  # a worker has taken its job
    second.refresh_from_db()
    assert (second.retry_count, second.lease_until, second.status) == (0, None, Status.PENDING)
    assert scheduling.enqueue_due() == 0
    holder.finish(next_sync_in=None)
    assert scheduling.enqueue_due() == 1
    assert claimed(second).slots.count == 1


def test_holder_returns_slots_and_gets_them_back(world: World) -> None:
    first, second = several(world, 2, slots=8)
    holder = claimed(first)
    assert rebalance(holder, in_flight=0) == 8
    assert claim(second.pk) is None  # so it waits
    assert rebalance(holder, in_flight=8) == 4
    assert slots_of(first) == 8  # still in use
    assert claim(second.pk) is None
    assert rebalance(holder, in_flight=4) == 4
    assert slots_of(first) == 4
    newcomer = claimed(second)
    assert newcomer.slots.count == 2
    assert rebalance(newcomer, in_flight=0) == 4
    newcomer.finish(next_sync_in=None)
    assert rebalance(holder, in_flight=4) == 8
    assert slots_of(first) == 8


def test_run_takes_no_slots_that_another_one_still_uses(world: World) -> None:
    first, second = several(world, 2, slots=8)
    holder = claimed(first)
    assert rebalance(holder, in_flight=0) == 8
    assert claim(second.pk) is None  # so it waits
    assert rebalance(holder, in_flight=6) == 4
    newcomer = claimed(second)
    assert rebalance(newcomer, in_flight=0) == 2
    assert rebalance(holder, in_flight=4) == 4
    assert rebalance(newcomer, in_flight=2) == 4


def test_every_holder_has_at_least_one_slot(world: World) -> None:
    watches = several(world, 3, slots=2)
    holder = claimed(watches[0])
    assert rebalance(holder, in_flight=0) == 2
    assert claim(watches[1].pk) is None
    assert claim(watches[2].pk) is None
    assert rebalance(holder, in_flight=0) == 1
    assert claimed(watches[1]).slots.count == 1
    assert claim(watches[2].pk) is None


def test_slots_that_cannot_be_shared_evenly_are_all_used(world: World) -> None:
    watches = several(world, 3, slots=8)
    holders = [claimed(watch) for watch in watches]
    for _ in range(2):  # what the first returns, the others can take
        for holder in holders:
            rebalance(holder, in_flight=0)
    assert [holder.slots.count for holder in holders] == [3, 3, 2]
    holders[0].finish(next_sync_in=None)
    assert [rebalance(holder, in_flight=0) for holder in holders[1:]] == [4, 4]


def test_slots_of_a_dead_worker_expire_with_its_lease(world: World) -> None:
    first, second = several(world, 2)
    claimed(first)
    AppRepository.objects.filter(pk=first.pk).update(lease_until=F("created_at"))
    assert claimed(second).slots.count == 4


def test_apps_do_not_share_slots(world: World) -> None:
    (watch,) = several(world, 1)
    claimed(watch)
    _, other = world.watch(name="acme/gadgets", app=world.add_app("Other"))
    assert claimed(other).slots.count == 4


def test_slots_are_shared_during_a_long_fetch(world: World) -> None:
    """Otherwise the app's other repositories would wait for this repository's git host."""
    slow, quick = several(world, 2)
    asked, go_on = [], []

    def hook(method: str, target: str) -> None:
        if "widgets-0/" in target:
            asked.append(target)
            if len(asked) == 2:  # for the pack, after HEAD
                wait_for(lambda: go_on, 20)

    world.git.server.on_request = hook
    world.make_due(slow)
    worker = syncing(slow.pk)
    try:
        wait_for(lambda: len(asked) == 2)
        work_until_synced(quick)
        slow.refresh_from_db()
        assert slow.status == Status.SCANNING
    finally:
        go_on.append(True)
        worker.join(20)
    slow.refresh_from_db()
    assert slow.status == Status.SYNCED


def test_newcomer_gets_a_share_while_files_are_sent(world: World) -> None:
    (short,) = several(world, 1, files=10, slots=4)
    repo = world.git.repo("acme/long", {f"{number:03}.txt": b"%d" % number for number in range(260)})
    long = world.watch_url(repo)
    under_way: list[tuple[str, int]] = []

    def hook(note: Notification) -> None:
        under_way.append((note.repository, world.receiver._in_flight[note.app_id]))
        time.sleep(0.06)

    world.answer(hook)
    world.make_due(long)
    worker = syncing(long.pk)
    wait_for(lambda: len(under_way) > 8)
    work_until_synced(short)
    worker.join(30)
    mine = [index for index, (name, _) in enumerate(under_way) if name == "acme/widgets-0"]
    assert mine, "the newcomer was not served while the holder was working"
    assert mine[-1] < len(under_way) - 20
    assert max(record.in_flight for record in world.receiver.log) == 4
    assert max(count for _, count in under_way[mine[-1] + 40 :]) == 4


def test_slots_are_kept_for_one_waiting_watch_at_a_time(world: World) -> None:
    """Those kept for several would stay free until the last of them has begun."""
    holding, *waiting = several(world, 6, slots=8)
    holder = claimed(holding)
    assert rebalance(holder, in_flight=0) == 8
    assert all(claim(watch.pk) is None for watch in waiting)
    assert rebalance(holder, in_flight=0) == 4


def test_rebalancing_an_unchanged_share_is_one_query(
    world: World, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    (watch,) = several(world, 1)
    holder = claimed(watch)
    assert rebalance(holder, in_flight=0) == 8
    with django_assert_num_queries(1):
        assert rebalance(holder, in_flight=8) == 8


def test_full_app_is_not_woken_for_every_waiting_watch(world: World) -> None:
    """One watch asks for a slot each second; the jobs of the others would find none."""
    holding, *waiting = several(world, 4, slots=1)
    _, other = world.watch(name="acme/gadgets", app=world.add_app("Other"))
    queues.drop(watch.job_id for watch in AppRepository.objects.select_related("app", "repository"))
    claimed(holding)
    assert scheduling.enqueue_due() == 2
    assert queued() == {waiting[0].job_id, other.job_id}
    queues.drop(queued())
    assert claim(waiting[0].pk) is None  # it asks
    assert scheduling.enqueue_due() == 1
    assert queued() == {other.job_id}
    AppRepository.objects.filter(pk=waiting[0].pk).update(slots_requested_at=from_now(-2))
    assert scheduling.enqueue_due() == 1
    assert queued() == {waiting[0].job_id, other.job_id}


def test_watch_of_a_full_app_is_not_overdue(world: World) -> None:
    """A further worker could not start it."""
    holding, waiting = several(world, 2, slots=1)
    holder = claimed(holding)
    AppRepository.objects.filter(pk=waiting.pk).update(next_sync_at=from_now(-600))
    counts = count_watches()
    assert (counts.due, counts.overdue, counts.due_since) == (1, 0, None)
    holder.finish(next_sync_in=None)
    counts = count_watches()
    assert (counts.due, counts.overdue) == (1, 1)


def test_run_does_not_make_way_for_a_watch_without_a_slot(world: World) -> None:
    holding, waiting = several(world, 2, slots=1)
    holder = claimed(holding)
    AppRepository.objects.filter(pk=waiting.pk).update(next_sync_at=from_now(-600))
    _, other = world.watch(name="acme/gadgets", app=world.add_app("Other"))
    time_slice = TimeSlice(claimed(other))
    assert not time_slice.is_over()
    holder.finish(next_sync_in=None)
    time_slice._next_check = 0.0
    assert time_slice.is_over()


def test_other_watches_of_a_down_app_are_not_woken_beside_its_probe(world: World) -> None:
    probe, asking, waiting = several(world, 3)
    App.objects.filter(pk=world.app.pk).update(down_count=1)
    claimed(probe)
    assert claim(asking.pk) is None
    assert waiting not in AppRepository.objects.due().free().startable()


@contextlib.contextmanager
def fetching(world: World, watch: AppRepository) -> Iterator[None]:
    """Sync the watch in a thread. Meanwhile, it waits for the host's pack."""
    asked, go_on = [], threading.Event()

    def think(_method: str, target: str) -> None:
        asked.append(target)
        if len(asked) == 2:  # for the pack, after the branch
            go_on.wait(20)

    world.git.server.on_request = think
    world.make_due(watch)
    worker = syncing(watch.pk)
    try:
        wait_for(lambda: len(asked) == 2)
        yield
    finally:
        go_on.set()
        worker.join(20)


def test_run_does_not_wait_long_for_another_one_that_fetches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold a thread of the worker and slots of its app."""
    monkeypatch.setattr(attempt, "MIRROR_WAIT_SECONDS", 0.3)
    repo, first = world.watch()
    second = world.watch_url(repo, app=world.add_app("Other"))
    with fetching(world, first):
        world.sync(second)
        assert (second.status, second.lease_until, second.retry_count) == (Status.PENDING, None, 0)
        assert second.next_sync_at is not None
    world.sync(second)
    assert_promise_kept(world, repo, second)


def test_resync_does_not_wait_for_another_app_that_fetches(world: World) -> None:
    """The mirror has the commit. The other app watches a branch that is large, or whose host is slow."""
    repo, watch = world.watch()
    repo.commit({"dev.txt": b"1"}, branch="dev")
    other = world.watch_url(repo, app=world.add_app("Other"), ref="dev")
    world.settle()
    repo.commit({"dev.txt": b"2"}, branch="dev")
    with fetching(world, other):
        run = resync_single(Actor.command(), watch)
        world.sync(watch)
        run.refresh_from_db()
        assert (run.outcome, run.files_done) == ("succeeded", len(repo.files()))
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize(("held", "seconds"), [(5, 2), (100, 10), (1800, 30), (-60, 2)])
def test_run_asks_less_often_the_longer_another_one_fetches(
    world: World, monkeypatch: pytest.MonkeyPatch, held: float, seconds: float
) -> None:
    """Each time, it asks the host for HEAD and holds a thread while it waits. A fetch may take a quarter of an hour."""
    repo, watch = world.watch()
    world.settle()
    repo.commit({"readme.md": b"changed"})
    lock = Path(f"{mirror_of(watch.repository).directory}.fetch.lock")
    monkeypatch.setattr(attempt, "MIRROR_WAIT_SECONDS", 0.1)
    with file_locks.hold(lock, shared=False):
        os.utime(lock, (time.time() - held, time.time() - held))
        world.sync(watch)
    assert watch.next_sync_at is not None
    assert (watch.next_sync_at - timezone.now()).total_seconds() == pytest.approx(seconds, abs=1.5)


@pytest.mark.parametrize("waits_for", ["another reader", "the host"])
def test_attempt_that_waits_to_rebuild_the_mirror_does_not_count(
    world: World, monkeypatch: pytest.MonkeyPatch, settings, waits_for: str
) -> None:
    """The mirror is damaged while large files are sent."""
    monkeypatch.setattr(attempt, "MIRROR_WAIT_SECONDS", 0.1)
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 100_000, 100_000
    repo, watch = world.watch({f"large-{number}": os.urandom(3 << 20) for number in range(4)})
    App.objects.update(max_in_flight=1)
    folder = mirror_of(watch.repository).directory
    lock = Path(f"{folder}.use.lock")
    lock.parent.mkdir(exist_ok=True)

    def damage(_note: Notification) -> None:
        for pack in folder.glob("objects/pack/*.pack"):
            pack.unlink()
            if waits_for == "the host":
                world.git.server.stop()

    world.answer(damage)
    with file_locks.hold(lock, shared=True) if waits_for == "another reader" else contextlib.nullcontext():
        world.sync(watch)
    assert world.requests("create")
    assert (watch.status, watch.retry_count) == (Status.PENDING, 0)
    [run] = world.runs(watch)
    assert run.attempts == 0
    world.answer(None)
    if waits_for == "another reader":
        world.settle()
        assert_promise_kept(world, repo, watch)
        run.refresh_from_db()
        assert (run.outcome, run.attempts) == ("succeeded", 1)


def test_process_that_hangs_with_the_mirror_fails_the_run_in_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the watch is shown as pending for as long as that process exists, and nothing says why."""
    monkeypatch.setattr(attempt, "MIRROR_WAIT_SECONDS", 0.1)
    repo, watch = world.watch()
    world.settle()
    repo.commit({"readme.md": b"changed"})
    lock = Path(f"{mirror_of(watch.repository).directory}.fetch.lock")
    with file_locks.hold(lock, shared=False):
        hours_ago = time.time() - mirror.hangs_after()
        os.utime(lock, (hours_ago + 60, hours_ago + 60))
        world.sync(watch)
        assert (watch.is_failing, watch.retry_count) == (False, 0)
        os.utime(lock, (hours_ago - 60, hours_ago - 60))
        world.sync(watch)
        assert (watch.is_failing, watch.retry_count) == (True, 1)
        assert watch.last_error.startswith("Another process on this server has been using the repository's mirror for ")
        assert Repository.objects.get().consecutive_failures == 0
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert time.time() - lock.stat().st_mtime < 60, "the lock says since when it is held"


def test_waiting_watches_are_compared_with_all_open_runs_at_once(world: World) -> None:
    """Statistics know hardly any open run. With a join, each of 16,000 watches was compared with each of as many open runs."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no hash joins")
    lease = claimed(several(world, 1, slots=1)[0])
    assert "hashed SubPlan" in lease.slots.watches_without_slot().explain()
