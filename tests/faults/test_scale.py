"""Thousands of files, and twenty repositories at once: everything arrives, and the progress bar is right."""

import time

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, BulkOperation, Status
from deliveries_app.planning.delivery_rows import PAGE
from deliveries_app.progress import live
from deliveries_app.progress.live import Progress
from deliveries_app.services import resync_by_app
from tests.support.histories import assert_promise_kept
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.world import World


@pytest.fixture
def many_slots(daemons: Daemons) -> None:
    for name in ("LEASE_SECONDS", "RECORD_BATCH"):
        del daemons.environment[name]
    App.objects.update(max_in_flight=16)


def test_repository_of_thousands_of_files(world: World, daemons: Daemons, many_slots: None) -> None:
    count = 2 * PAGE + 100
    repo = world.git.make_large("acme/big", count=count, size=4096)
    watch = world.watch_url(repo)
    daemons.sweep()
    daemons.worker()
    wait_for(lambda: AppRepository.objects.get(pk=watch.pk).status == Status.SYNCED, 120, 0.2)
    assert_promise_kept(world, repo, watch)
    assert len(world.requests("create")) == count
    assert {record.outcome for record in world.requests()} == {"kept"}  # decoded, hashed and compared by the client
    run = world.runs(watch)[0]
    assert (run.files_done, run.files_total, run.bytes_done) == (count, count, count * 4096)


def test_progress_of_a_resync_of_20_repositories(world: World, daemons: Daemons, many_slots: None) -> None:
    watches = []
    for number in range(20):
        repo = world.git.make_large(f"acme/widgets-{number}", count=50, size=400)
        watches.append((repo, world.watch_url(repo)))
    daemons.sweep()
    daemons.worker()
    daemons.worker("high", "low", "default")
    wait_for(lambda: AppRepository.objects.filter(status=Status.SYNCED).count() == 20, 120, 0.2)
    first = len(world.requests())
    assert first == 1_000

    world.answer(lambda note: time.sleep(0.02))  # longer than between two looks at the bar
    operation = resync_by_app(Actor.command(), world.app)
    seen: list[Progress] = []
    deadline = time.monotonic() + 120
    while not seen or not seen[-1].finished:
        assert time.monotonic() < deadline
        operation = BulkOperation.objects.get(pk=operation.pk)
        seen.append(live.of_operation(operation))
        time.sleep(0.02)
    assert {progress.files_total for progress in seen} == {1_000}
    for name in ("files_done", "bytes_done", "percent", "completed"):
        shown = [getattr(progress, name) for progress in seen]
        assert shown == sorted(shown), name
    assert all(progress.percent < 100 for progress in seen[:-1])
    assert len({progress.percent for progress in seen}) > 10
    end = seen[-1]
    assert (end.files_done, end.succeeded, end.total, end.percent) == (1_000, 20, 20, 100)
    assert len(world.requests()) == first + 1_000
    for repo, watch in watches:
        assert_promise_kept(world, repo, watch)
