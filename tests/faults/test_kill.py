"""Workers that are killed, stopped, or lose Redis. Every client still gets HEAD. Real processes, real signals."""

import os
import signal
import time
from collections import Counter

import pytest
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Status
from deliveries_app.services import resync_single
from tests.faults.conftest import MAX_IN_FLIGHT, RECORD_BATCH
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept
from tests.support.processes import Daemons, children, is_alive
from tests.support.receiver import Answer, wait_for
from tests.support.valkey import ValkeyServer
from tests.support.world import World

FILES = 400
KILLS = 2


def watch_slow_client(world: World, count: int = FILES, pause: float = 0.01) -> tuple[Repo, AppRepository]:
    """Watch a repository of `count` files for a client that takes `pause` seconds per request."""
    world.answer(lambda note: time.sleep(pause))
    return world.watch({f"folder-{n % 7}/file-{n:05}.txt": b"content %d\n" % n for n in range(count)})


def wait_until_synced(watch: AppRepository, timeout: float = 60) -> None:
    wait_for(lambda: AppRepository.objects.filter(pk=watch.pk, status=Status.SYNCED).exists(), timeout, 0.05)
    watch.refresh_from_db()


def duplicates(world: World) -> int:
    counts = Counter(record.path for record in world.requests())
    return sum(count - 1 for count in counts.values())


def test_repeated_kill_9_of_the_worker(world: World, daemons: Daemons) -> None:
    repo, watch = watch_slow_client(world)
    sweep = daemons.sweep()
    killed = 0
    for share in (0.3, 0.6):
        worker = daemons.worker()
        wait_for(lambda share=share: len(world.requests()) > share * FILES, 30)
        horse = worker.horse()
        worker.kill()
        killed += 1
        wait_for(lambda horse=horse: not is_alive(horse), 2)  # an orphan must not run beside its successor
    started = time.monotonic()
    daemons.worker()
    wait_until_synced(watch)
    assert time.monotonic() - started < 60
    assert sweep.running
    assert_promise_kept(world, repo, watch)
    assert duplicates(world) <= killed * (RECORD_BATCH + MAX_IN_FLIGHT)
    (run,) = world.runs(watch)
    assert (run.outcome, run.files_done, run.files_total, run.attempts) == ("succeeded", FILES, FILES, killed + 1)


def test_kill_9_of_the_work_horse(world: World, daemons: Daemons) -> None:
    repo, watch = watch_slow_client(world, 200)
    daemons.sweep()
    worker = daemons.worker()
    wait_for(lambda: len(world.requests()) > 60, 30)
    os.kill(worker.horse(), signal.SIGKILL)
    wait_until_synced(watch)
    assert worker.running
    assert_promise_kept(world, repo, watch)
    assert duplicates(world) <= RECORD_BATCH + MAX_IN_FLIGHT


@pytest.mark.parametrize("victim", ["worker", "work-horse"])
def test_watch_of_a_dead_process_resumes_before_its_lease_expires(world: World, daemons: Daemons, victim: str) -> None:
    """The lease lasts half a minute, but this machine knows that its process is gone. `make bench` bounds the time."""
    for name in ("LEASE_SECONDS", "RECORD_BATCH", "SWEEP_INTERVAL_SECONDS"):
        del daemons.environment[name]
    App.objects.update(max_in_flight=8)
    repo, watch = watch_slow_client(world, 700, pause=0.02)
    if victim == "worker":  # a worker itself notices the end of its work-horse, where the sweep runs elsewhere
        daemons.sweep()
    workers = [daemons.worker(), daemons.worker("high", "low", "default")]
    waits = []
    for kill in range(1, KILLS + 1):
        wait_for(lambda kill=kill: len(world.requests()) > kill * 120, 30)
        busy = next(worker for worker in workers if worker.running and list(children(worker.pid)))
        horse = busy.horse()
        if victim == "worker":
            busy.kill()
            workers.append(daemons.worker())
        else:
            os.kill(horse, signal.SIGKILL)
        killed_at = time.monotonic()
        wait_for(lambda horse=horse: not is_alive(horse), 5)
        sent = len(world.requests())
        wait_for(lambda sent=sent: len(world.requests()) > sent, 60, 0.05)
        waits.append(time.monotonic() - killed_at)
    wait_until_synced(watch)
    assert max(waits) < 15, waits
    assert_promise_kept(world, repo, watch)
    assert duplicates(world) <= KILLS * (100 + 8)
    (run,) = world.runs(watch)
    assert (run.outcome, run.attempts) == ("succeeded", KILLS + 1)


def test_sigterm_hands_over_to_another_worker(world: World, daemons: Daemons) -> None:
    repo, watch = watch_slow_client(world, 300)
    world.answer(lambda note: time.sleep(1.5 if note.path.endswith("60.txt") else 0.01))  # some are slow
    first = daemons.worker()
    wait_for(lambda: len(world.requests()) > 60, 30)
    horse = first.horse()
    started = time.monotonic()
    first.terminate()
    assert first.process.wait(10) == 0
    assert time.monotonic() - started < 10
    assert not is_alive(horse)
    watch.refresh_from_db()
    assert (watch.lease_until, watch.retry_count, watch.status) == (None, 0, Status.PENDING)
    assert AppRepository.objects.due().filter(pk=watch.pk).exists()
    recorded = watch.deliveries.filter(acknowledged=True).count()
    assert recorded == len(world.requests())
    daemons.sweep()
    daemons.worker()
    wait_until_synced(watch, 30)
    assert_promise_kept(world, repo, watch)
    assert duplicates(world) == 0


def test_sigterm_ends_an_idle_worker_and_the_sweep(world: World, daemons: Daemons) -> None:
    worker, sweep = daemons.worker(), daemons.sweep()
    _repo, watch = watch_slow_client(world, 3)
    wait_until_synced(watch, 30)
    for daemon in (worker, sweep):
        daemon.terminate()
    for daemon in (worker, sweep):
        assert daemon.process.wait(5) == 0
    assert "Traceback" not in daemons.logs()


def test_run_continues_while_redis_is_down(world: World, daemons: Daemons, valkey_server: ValkeyServer) -> None:
    repo, watch = watch_slow_client(world)
    daemons.sweep()
    worker = daemons.worker()
    wait_for(lambda: len(world.requests()) > 50, 30)
    valkey_server.stop()
    wait_until_synced(watch, 30)
    assert_promise_kept(world, repo, watch)
    assert duplicates(world) == 0
    resync_single(Actor.command(), watch)  # requested while Redis is down
    valkey_server.start()
    wait_until_synced(watch, 30)
    assert_promise_kept(world, repo, watch)
    assert worker.running
    assert len(world.requests()) == 2 * FILES


def test_due_watches_are_found_after_a_flush(world: World, daemons: Daemons, valkey_server: ValkeyServer) -> None:
    repo, watch = watch_slow_client(world, 100)
    others = [world.watch(name=f"acme/gadgets-{number}") for number in range(4)]
    daemons.sweep()
    daemons.worker()
    wait_for(lambda: len(world.requests()) > 30, 30)
    with valkey_server.client() as client:
        client.flushall()
    for its_repo, its_watch in [(repo, watch), *others]:
        wait_until_synced(its_watch, 40)
        assert_promise_kept(world, its_repo, its_watch)
    assert duplicates(world) == 3  # readme.md of four repositories


def test_push_retry_and_resync_through_the_real_queue(world: World, daemons: Daemons) -> None:
    repo, watch = watch_slow_client(world, 5)
    daemons.sweep()
    daemons.worker()
    wait_until_synced(watch, 30)
    repo.commit({"pushed.txt": b"new"})
    AppRepository.objects.update(next_check_at=Now())
    wait_for(lambda: AppRepository.objects.filter(pk=watch.pk, last_commit=repo.head).exists(), 30, 0.05)
    failing = True
    world.answer(lambda note: Answer(500) if failing else None)
    resync_single(Actor.command(), watch)
    wait_for(lambda: AppRepository.objects.filter(pk=watch.pk, retry_count__gte=2).exists(), 30, 0.05)
    failing = False
    wait_until_synced(watch, 30)
    assert_promise_kept(world, repo, watch)
