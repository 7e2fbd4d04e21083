"""A machine with room for few mirrors still syncs everything, and sends nothing twice."""

import os
import re
from pathlib import Path

from django.db.models.functions import Now

from deliveries_app.models import AppRepository
from docora.redis import inspect
from repositories_app.services import mirror_of
from tests.faults.test_kill import wait_until_synced
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.world import World

LIMIT = 1_000_000


def large(size: int = 600_000) -> dict[str, bytes]:
    """Return a file that cannot be compressed and two small ones."""
    return {"large.bin": os.urandom(size), "a.txt": b"a", "b.txt": b"b"}


def make_eviction_due(repos: Path) -> None:
    """Wait for the end of the current job, and make an eviction due after the next one."""
    wait_for(lambda: [worker.state for worker in inspect.read_workers()] == ["idle"], 20, 0.05)
    os.utime(repos / "mirrors.json", (0, 0))


def push(repo: Repo, watch: AppRepository, changes: dict[str, bytes | None]) -> None:
    repo.commit(changes)
    AppRepository.objects.filter(pk=watch.pk).update(next_check_at=Now())
    wait_for(AppRepository.objects.filter(pk=watch.pk, last_commit=repo.head).exists, 30, 0.05)


def test_evicted_mirror_is_fetched_again_and_only_changes_sent(world: World, daemons: Daemons, settings) -> None:
    daemons.environment["REPOS_MAX_BYTES"] = str(LIMIT)
    daemons.sweep()
    daemons.worker()
    repo, watch = world.watch(large(), name="acme/first")
    wait_until_synced(watch)
    mirror, repos = mirror_of(watch.repository).directory, Path(settings.REPOS_DIR)
    make_eviction_due(repos)
    other_repo, other = world.watch(large(), name="acme/second")
    wait_until_synced(other)
    wait_for(lambda: not mirror.exists(), 20, 0.05)
    assert mirror_of(other.repository).directory.exists()
    assert len(world.requests()) == 6

    make_eviction_due(repos)
    push(repo, watch, {"a.txt": b"changed", "b.txt": None})
    wait_for(lambda: not mirror_of(other.repository).directory.exists(), 20, 0.05)
    assert mirror.exists()
    assert sorted((note.kind, note.path) for note in world.requests()[6:]) == [("delete", "b.txt"), ("update", "a.txt")]
    push(repo, watch, {"a.txt": b"changed again"})
    assert [(note.kind, note.path) for note in world.requests()[8:]] == [("update", "a.txt")]
    for its_repo, its_watch in ((repo, watch), (other_repo, other)):
        assert_promise_kept(world, its_repo, its_watch)
    assert len(re.findall('"event": "mirror_evicted"', daemons.logs())) == 2
    assert "Traceback" not in daemons.logs(), daemons.logs().partition("Traceback")[2][:3000]


def test_repository_larger_than_the_mirror_limit(world: World, daemons: Daemons, settings) -> None:
    daemons.environment["REPOS_MAX_BYTES"] = str(LIMIT)
    daemons.sweep()
    daemons.worker()
    small_repo, small = world.watch(large(1000), name="acme/small")
    wait_until_synced(small)
    repos = Path(settings.REPOS_DIR)
    make_eviction_due(repos)
    repo, watch = world.watch(large(LIMIT + 1), name="acme/large")
    wait_until_synced(watch)
    for number in range(3):
        wait_for(lambda: not mirror_of(watch.repository).directory.exists(), 20, 0.05)
        assert_promise_kept(world, repo, watch)
        assert len(world.requests()) == 6 + number
        make_eviction_due(repos)
        push(repo, watch, {"a.txt": b"%d" % number})
    assert mirror_of(small.repository).directory.exists()
    assert_promise_kept(world, small_repo, small)
    assert daemons.logs().count('"event": "mirror_larger_than_bound"') >= 3
    assert "Traceback" not in daemons.logs(), daemons.logs().partition("Traceback")[2][:3000]
