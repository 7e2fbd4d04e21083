"""Repositories whose objects are named by SHA-256: registered, synced, changed, re-synced and rewritten like others."""

import shutil

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Status
from deliveries_app.services import resync_single
from repositories_app.mirror import mirror as mirrors
from repositories_app.services import mirror_of
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept
from tests.support.world import World

FILES = {"readme.md": b"# Hello\n", "src/a.txt": b"a\n", "src/b.txt": b"b\n"}


def requests_of(world: World) -> list[str]:
    return [request.target.rpartition("/")[2] for request in world.git.server.requests]


def sha256_repo(world: World, name: str = "acme/modern") -> Repo:
    repo = world.git.repo(name, FILES, object_format="sha256")
    assert len(repo.head) == 64
    return repo


def test_whole_life_of_a_sha256_repository(world: World) -> None:
    repo = sha256_repo(world)
    watch = world.watch_url(repo)
    assert world.sync(watch).status == Status.SYNCED, watch.last_error
    assert (watch.last_commit, len(world.copy(watch))) == (repo.head, 3)

    repo.commit({"src/a.txt": b"changed\n", "src/b.txt": None, "new.txt": b"new\n"})
    asked = len(requests_of(world))
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)
    assert requests_of(world)[asked:] == ["git-upload-pack"] * 4  # check, HEAD, fetch, check

    sent = len(world.requests())
    resync_single(Actor.command(), watch)
    assert world.sync(watch).status == Status.SYNCED
    assert len(world.requests()) == sent + 3

    repo.force_push({"other.txt": b"other\n"})
    world.settle()
    assert_promise_kept(world, repo, AppRepository.objects.get())
    mirror = mirror_of(watch.repository)
    assert mirror._git(["rev-parse", "--show-object-format"]) == b"sha256\n"
    assert mirror._git(["fsck", "--strict", "--no-dangling"]) == b""


def test_git_itself_fetches_a_large_sha256_repository(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repositories_app.git.packs.MAX_PACK", 100)
    monkeypatch.setattr(mirrors, "MAX_PACKS", 1)
    repo = sha256_repo(world)
    watch = world.watch_url(repo)
    for number in range(3):
        world.settle()
        repo.commit({"src/a.txt": b"%d" % number})
    world.settle()
    assert_promise_kept(world, repo, AppRepository.objects.get(pk=watch.pk))


def test_private_sha256_repository(world: World) -> None:
    repo = sha256_repo(world)
    world.git.tokens[repo.name] = {"secret"}
    watch = world.watch_url(repo, token="secret")
    assert watch.repository.is_private
    assert world.sync(watch).status == Status.SYNCED, watch.last_error


def test_repository_converted_to_sha256_sends_only_what_changed(world: World) -> None:
    repo, watch = world.watch(FILES, name="acme/converted")
    world.settle()
    sent = len(world.requests())
    shutil.rmtree(repo.path)
    repo = world.git.repo(repo.name, FILES | {"src/a.txt": b"changed\n"}, object_format="sha256")
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)
    assert [(record.kind, record.path) for record in world.requests()[sent:]] == [("update", "src/a.txt")]
