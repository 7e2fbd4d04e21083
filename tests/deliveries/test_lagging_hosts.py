"""Git hosts whose replicas lag, sweeps that are killed, and commits that arrive while a watch waits for its next attempt."""

import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Status
from deliveries_app.services import push_hooks
from deliveries_app.sweep import head_checks
from repositories_app.git import remote
from tests.support.git import Repo, git
from tests.support.histories import assert_promise_kept, refusing
from tests.support.syncing import sync
from tests.support.world import World


class Lagging:
    """A repository with two replicas: `answers` lists which one answers each of the next requests."""

    def __init__(self, world: World, repo: Repo) -> None:
        self.fresh, self.stale = repo.path.with_suffix(".fresh"), repo.path.with_suffix(".stale")
        self._link = repo.path
        repo.path.rename(self.fresh)
        shutil.copytree(self.fresh, self.stale)
        git(self.stale, "config", "uploadpack.allowAnySHA1InWant", "false")
        self._point_at(self.fresh)
        self.answers: list[Path] = []
        world.git.server.on_request = self._choose

    def _point_at(self, replica: Path) -> None:
        new = self._link.with_suffix(".link")
        os.symlink(replica, new)
        new.rename(self._link)

    def _choose(self, method: str, target: str) -> None:
        self._point_at(self.answers.pop(0) if self.answers else self.fresh)


def pushed(watch: AppRepository) -> None:
    """Receive a signed push hook and run its job."""
    push_hooks.repository_pushed(Actor.system(), watch.repository.repository_id, [watch.pk])
    sync(watch.pk)
    watch.refresh_from_db()


def seconds_until_check(watch: AppRepository) -> float:
    watch.refresh_from_db()
    return (watch.next_check_at - timezone.now()).total_seconds()


def let_pass(seconds: float) -> None:
    """Let this many seconds pass: move all times in the rows back."""
    for watch in AppRepository.objects.all():
        moved = {
            name: getattr(watch, name) - timedelta(seconds=seconds)
            for name in ("next_check_at", "next_sync_at", "pushed_at", "moved_at", "created_at")
            if getattr(watch, name)
        }
        AppRepository.objects.filter(pk=watch.pk).update(**moved)


def check(world: World) -> int:
    """Run a round of checks for the watches that are due for one."""
    with remote.new_client() as client:
        return head_checks.check_due(client)


@pytest.fixture
def synced(world: World, settings) -> tuple[Repo, AppRepository]:
    settings.RESCAN_MIN_INTERVAL_SECONDS = settings.RESCAN_INTERVAL_SECONDS = 300
    repo, watch = world.watch({"a.txt": b"a"})
    world.settle()
    watch.refresh_from_db()
    return repo, watch


def test_head_is_read_again_after_a_push_hook_that_arrived_early(
    world: World, synced: tuple[Repo, AppRepository]
) -> None:
    repo, watch = synced
    host = Lagging(world, repo)
    repo.commit({"a.txt": b"pushed"})
    host.answers = [host.stale]
    pushed(watch)
    assert watch.next_sync_at is None
    assert 3 < seconds_until_check(watch) <= 5

    let_pass(5.1)
    host.answers = [host.stale]
    assert check(world) == 1
    assert 20 < seconds_until_check(watch) <= 25

    let_pass(25)
    assert check(world) == 1
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert seconds_until_check(watch) > 200


def test_push_hook_without_a_new_commit_causes_two_checks(world: World, synced: tuple[Repo, AppRepository]) -> None:
    _, watch = synced
    pushed(watch)
    let_pass(5.1)
    assert check(world) == 1
    let_pass(25)
    assert check(world) == 1
    assert seconds_until_check(watch) > 200


def test_push_hook_that_finds_its_commit_is_done(world: World, synced: tuple[Repo, AppRepository]) -> None:
    repo, watch = synced
    repo.commit({"a.txt": b"pushed"})
    pushed(watch)
    assert seconds_until_check(watch) > 200
    assert_promise_kept(world, repo, watch)


def test_fetch_that_brings_an_older_commit_leaves_the_watch_due(
    world: World, synced: tuple[Repo, AppRepository]
) -> None:
    repo, watch = synced
    host = Lagging(world, repo)
    head = repo.commit({"a.txt": b"pushed"})
    host.answers = [host.fresh, *[host.stale] * 10]  # HEAD from one replica, the fetch from the other
    assert world.sync(watch).last_commit != head
    assert watch.status == Status.SYNCED
    waits = [(watch.next_sync_at - timezone.now()).total_seconds()]
    host.answers = [host.fresh, *[host.stale] * 10]
    world.sync(watch)
    waits.append((watch.next_sync_at - timezone.now()).total_seconds())
    assert all(20 < seconds <= 30 for seconds in waits)  # the host serves what the app has already

    host.answers = []
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)
    assert watch.next_sync_at is None


def test_fetch_that_brings_a_commit_in_between_leaves_the_watch_due_soon(
    world: World, synced: tuple[Repo, AppRepository]
) -> None:
    repo, watch = synced
    between = repo.commit({"a.txt": b"between"})
    host = Lagging(world, repo)
    repo.commit({"a.txt": b"newest"})
    host.answers = [host.fresh, *[host.stale] * 10]
    assert world.sync(watch).last_commit == between
    assert 2 < (watch.next_sync_at - timezone.now()).total_seconds() <= 5
    host.answers = []
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)


def test_checks_of_a_killed_sweep_are_repeated_soon(world: World, synced: tuple[Repo, AppRepository]) -> None:
    repo, watch = synced
    repo.commit({"a.txt": b"pushed"})

    def killed() -> None:
        raise KeyboardInterrupt

    let_pass(1000)
    with remote.new_client() as client, pytest.raises(KeyboardInterrupt):
        head_checks.check_due(client, killed)
    assert check(world) == 0  # another sweep leaves alone what this one might still be asking about
    assert 50 < seconds_until_check(watch) <= 60
    let_pass(61)
    assert check(world) == 1
    watch.refresh_from_db()
    assert watch.next_sync_at is not None


def failing_by(world: World, repo: Repo, watch: AppRepository, how: str) -> None:
    if how == "a refused file":
        world.answer(refusing("a.txt"))
        repo.commit({"a.txt": b"poison"})
    else:
        repo.commit({".docoraignore": b"#" * 70_000})
    for _ in range(10):
        world.sync(watch)
    assert watch.status == Status.FAILED


@pytest.mark.parametrize("how", ["a refused file", "rules that are too large"])
def test_new_commit_is_found_while_a_failed_watch_waits(
    world: World, synced: tuple[Repo, AppRepository], how: str
) -> None:
    repo, watch = synced
    failing_by(world, repo, watch, how)
    waiting_until = watch.next_sync_at
    assert world.check() == 1
    watch.refresh_from_db()
    assert watch.next_sync_at == waiting_until  # HEAD is what it has already tried

    world.answer(None)
    repo.commit({"a.txt": b"mended", ".docoraignore": None} if how != "a refused file" else {"a.txt": b"mended"})
    assert world.check() == 1
    watch.refresh_from_db()
    assert watch.next_sync_at < timezone.now() < waiting_until
    sync(watch.pk)
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)


def test_repository_that_can_be_read_again_is_found_while_its_watch_waits(
    world: World, synced: tuple[Repo, AppRepository], settings
) -> None:
    repo, watch = synced
    settings.RESCAN_INTERVAL_SECONDS = 10_000
    world.git.tokens[repo.name] = {"secret"}
    assert world.sync(watch).status == Status.FAILED
    assert world.check() == 1
    watch.refresh_from_db()
    assert watch.next_sync_at > timezone.now()  # still as it was
    world.git.tokens.clear()
    assert world.check() == 1
    watch.refresh_from_db()
    assert watch.next_sync_at < timezone.now()


def test_host_that_asked_to_wait_is_not_checked(world: World, synced: tuple[Repo, AppRepository]) -> None:
    _, watch = synced

    def limited(connection) -> None:
        connection.sendall(b"HTTP/1.1 429 Slow down\r\nRetry-After: 600\r\nContent-Length: 0\r\n\r\n")

    world.git.server.on_request = lambda method, target: limited
    world.sync(watch)
    assert 590 < seconds_until_check(watch) <= 600


def test_watch_of_an_app_on_hold_is_not_checked(world: World, synced: tuple[Repo, AppRepository]) -> None:
    """It reads HEAD when the hold ends."""
    _, watch = synced
    AppRepository.objects.update(next_sync_at=timezone.now() + timedelta(hours=1))
    type(watch.app).objects.update(cooldown_until=timezone.now() + timedelta(hours=1))
    assert world.check() == 0
