"""Real workers that are killed (-9) again and again while repositories change. `make soak` runs it; `make test` does not.

Afterwards, every client's copy equals HEAD, and no run has failed.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Outcome, Status, SyncRun
from deliveries_app.services import resync_single
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept
from tests.support.processes import Daemon, Daemons, children
from tests.support.receiver import wait_for
from tests.support.world import World

SECONDS = float(os.environ.get("STORM_SECONDS", "20"))
SEED = int(os.environ.get("STORM_SEED", "1"))
FILES = 150
CALM_SECONDS = (
    120.0  # a repository that changed may wait for half a minute after the last kill, and retries take a while
)


@pytest.fixture
def daemons(world: World, instance_environment: dict[str, str], tmp_path: Path, settings):
    changed = {"REPOS_DIR": str(settings.REPOS_DIR), "SWEEP_INTERVAL_SECONDS": "1", "RETRY_BASE_DELAY_SECONDS": "0.5"}
    daemons = Daemons(tmp_path, instance_environment | changed)
    yield daemons
    daemons.close()


def changes(rng: random.Random) -> dict[str, bytes | None]:
    numbers = rng.sample(range(FILES), 20)
    return {f"folder-{n % 7}/{n:03}.txt": rng.randbytes(40) if rng.random() < 0.8 else None for n in numbers}


def kill_one(rng: random.Random, workers: list[Daemon]) -> bool:
    """Kill a worker, or its work-horse if it has one. Return whether it had one."""
    worker = rng.choice(workers)
    horse = next(children(worker.pid), 0)
    if horse and rng.random() < 0.5:
        os.kill(horse, signal.SIGKILL)
    else:
        worker.kill()
        workers.remove(worker)
    return bool(horse)


@pytest.mark.timeout(SECONDS + CALM_SECONDS + 120)
def test_storm(world: World, daemons: Daemons) -> None:
    rng = random.Random(SEED)
    world.answer(lambda note: time.sleep(0.03))
    files = {f"folder-{n % 7}/{n:03}.txt": b"content %d" % n for n in range(FILES)}
    apps = [world.app, world.add_app("Other")]
    watches: list[tuple[Repo, AppRepository]] = [
        world.watch(files, name=f"acme/storm-{number}", app=apps[number % 2]) for number in range(5)
    ]
    daemons.sweep()
    workers = [daemons.worker(), daemons.worker("high", "low", "default")]
    kills, ends_at = 0, time.monotonic() + SECONDS
    while time.monotonic() < ends_at:
        time.sleep(rng.uniform(0.1, 0.5))
        repo, watch = rng.choice(watches)
        what = rng.random()
        if what < 0.4:
            repo.commit(changes(rng))
            AppRepository.objects.filter(pk=watch.pk).update(next_check_at="2020-01-01T00:00:00Z")
        elif what < 0.6:
            resync_single(Actor.command(), watch)
        else:
            kills += kill_one(rng, workers)
            while len(workers) < 2:
                workers.append(daemons.worker())

    AppRepository.objects.update(next_check_at="2020-01-01T00:00:00Z")

    def is_calm() -> bool:
        synced = AppRepository.objects.filter(status=Status.SYNCED, next_sync_at=None, lease_until=None)
        heads = dict(synced.values_list("pk", "last_commit"))
        return all(heads.get(watch.pk) == repo.head for repo, watch in watches)

    wait_for(is_calm, CALM_SECONDS, 0.2)
    for repo, watch in watches:
        assert_promise_kept(world, repo, watch)
    assert not SyncRun.objects.filter(outcome=Outcome.FAILED).exists()
    assert "Traceback" not in daemons.logs()
    if summary := os.environ.get("SUMMARY"):
        Path(summary).write_text(json.dumps({"kills": kills, "notifications": len(world.requests())}))
