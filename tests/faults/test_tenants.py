"""Apps share the workers: one with a slow endpoint or git host does not delay the others, nor does one that kills its worker."""

import threading
import time
from collections.abc import Callable

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Status
from deliveries_app.receiver import Answer, Notification
from deliveries_app.scheduling import request_sync
from deliveries_app.services import resync_many
from tests.deliveries.test_pace import RateLimit
from tests.faults.conftest import MAX_IN_FLIGHT
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.world import World


def seconds_until(condition: Callable[[], object], limit: float) -> float:
    began = time.monotonic()
    wait_for(condition, limit)
    return time.monotonic() - began


def test_hanging_endpoint_does_not_keep_the_worker_from_others(world: World, daemons: Daemons) -> None:
    """One worker, and six repositories of an app that takes 25 seconds to answer each request."""
    hanging, quick = world.app, world.add_app("Quick")
    over = threading.Event()

    def hang(note: Notification) -> None:
        if note.app_id == hanging.app_id:
            over.wait(25)

    world.answer(hang)
    for number in range(6):
        world.watch(name=f"acme/hanging-{number}")
    daemons.sweep()
    daemons.worker()
    held = AppRepository.objects.filter(app=hanging).leased()
    wait_for(lambda: held.count() == MAX_IN_FLIGHT, 20)
    changes = [world.watch(name=f"acme/change-{number}", app=quick)[1] for number in range(3)]
    assert seconds_until(lambda: all(world.copy(change) for change in changes), 20) < 10
    assert held.count() == MAX_IN_FLIGHT
    over.set()


def test_slow_git_host_does_not_keep_the_worker_from_others(world: World, daemons: Daemons) -> None:
    over = threading.Event()

    def hang(method: str, target: str) -> None:
        if "slow" in target:
            over.wait(20)

    slow = [world.watch(name=f"acme/slow-{number}")[1] for number in range(3)]
    world.git.server.on_request = hang
    daemons.sweep()
    daemons.worker()
    held = AppRepository.objects.filter(pk__in=[watch.pk for watch in slow]).leased()
    wait_for(lambda: held.count() == 3, 20)
    _, change = world.watch(name="acme/change", app=world.add_app("Quick"))
    assert seconds_until(lambda: world.copy(change), 20) < 10
    assert held.count() == 3
    over.set()


def test_watch_that_kills_its_worker_is_found_and_the_others_are_synced(world: World, daemons: Daemons) -> None:
    daemons.environment |= {
        "FILE_TRANSFORMS": "tests.support.transforms.Kills",
        "MAX_RETRY_ATTEMPTS": "2",
        "RETRY_BASE_DELAY_SECONDS": "0.1",
    }
    _, poisoned = world.watch({"file": b"poison"}, name="acme/poisoned")
    others = [world.watch(name=f"acme/other-{number}")[1] for number in range(6)]
    world.answer(lambda note: time.sleep(0.2))
    daemons.sweep()
    daemons.worker()

    def ended() -> bool:
        poisoned.refresh_from_db()
        return poisoned.status == Status.FAILED

    wait_for(ended, 90)
    assert poisoned.last_error.startswith("The worker died during every attempt.")
    for watch in others:
        watch.refresh_from_db()
        assert (watch.status, watch.crash_count) == (Status.SYNCED, 0)
        assert world.copy(watch)


def test_busy_app_and_poisoned_repository_delay_no_other(world: World, daemons: Daemons) -> None:
    """One worker, an app that accepts five requests a second, and one that accepts no file of one of its repositories."""
    busy, mixed, quick = world.app, world.add_app("Mixed"), world.add_app("Quick")
    daemons.environment |= {"MAX_RETRY_ATTEMPTS": "2", "RETRY_BASE_DELAY_SECONDS": "0.1"}
    limit = RateLimit(5, 429, {"Retry-After": "1"})

    def answer(note: Notification) -> Answer | None:
        if note.app_id == busy.app_id:
            return limit(note)
        return Answer(502) if note.repository == "acme/poisoned" else None

    world.answer(answer)
    _, large = world.watch({f"{number:03}.txt": b"%d" % number for number in range(500)}, name="acme/large")
    _, poisoned = world.watch(
        {f"{number}.txt": b"%d" % number for number in range(12)}, name="acme/poisoned", app=mixed
    )
    healthy = [world.watch(name=f"acme/healthy-{number}", app=mixed)[1] for number in range(3)]
    daemons.sweep()
    daemons.worker()
    wait_for(lambda: limit.refused, 20)
    _, change = world.watch(name="acme/change", app=quick)
    assert seconds_until(lambda: world.copy(change), 20) < 10
    wait_for(lambda: all(world.copy(watch) for watch in healthy), 30)
    wait_for(lambda: AppRepository.objects.filter(pk=poisoned.pk, status=Status.FAILED).exists(), 90)
    large.refresh_from_db()
    assert (large.failing_since, limit.accepted < 500) == (None, True)


def test_slow_app_makes_way_for_another(world: World, daemons: Daemons) -> None:
    """With one worker, which the slow app would occupy for more than half a minute."""
    slow, quick = world.app, world.add_app("Quick")
    App.objects.filter(pk=slow.pk).update(max_in_flight=1)
    world.answer(lambda note: time.sleep(0.3) if note.app_id == slow.app_id else None)
    files = {f"{number:03}.txt": b"%d" % number for number in range(60)}
    tenants = [world.watch(files, name=f"acme/slow-{number}")[1] for number in range(2)]
    daemons.sweep()
    worker = daemons.worker()
    wait_for(lambda: len(world.requests()) > 3, 30)
    _, change = world.watch(name="acme/change", app=quick)
    wait_for(lambda: world.copy(change), 30)
    assert not AppRepository.objects.filter(app=slow, status=Status.SYNCED).exists()
    assert 0 < len(world.copy(tenants[0])) + len(world.copy(tenants[1])) < 60
    assert worker.running


def test_resync_makes_way_for_a_push_of_an_app_with_one_slot(world: World, daemons: Daemons) -> None:
    """With two workers: the one that has made way must not take the slot again first."""
    App.objects.filter(pk=world.app.pk).update(max_in_flight=1)
    repo, pushed = world.watch(name="acme/pushed")
    _, large = world.watch({f"{number:03}.txt": b"%d" % number for number in range(100)}, name="acme/large")
    daemons.sweep()
    workers = [daemons.worker(), daemons.worker()]
    wait_for(lambda: AppRepository.objects.filter(status=Status.SYNCED).count() == 2, 60)
    world.answer(lambda note: time.sleep(0.5) if note.repository == "acme/large" else None)
    resync_many(Actor.command(), AppRepository.objects.filter(pk=large.pk))
    wait_for(lambda: len(world.requests("create")) > 103, 30)
    repo.commit({"pushed.txt": b"pushed"})
    request_sync(AppRepository.objects.filter(pk=pushed.pk))
    assert seconds_until(lambda: "pushed.txt" in world.copy(pushed), 30) < 20
    large.refresh_from_db()
    assert large.status != Status.SYNCED
    assert all(worker.running for worker in workers)
