"""The mirror: a cache that may be damaged, shared and deleted at any time (`engine.md` §8)."""

import base64
import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Status
from deliveries_app.services import resync_single
from deliveries_app.sync.content import Contents
from docora import file_locks
from repositories_app import services as repositories
from repositories_app.git import packs
from repositories_app.git.exceptions import Cause, GitError
from repositories_app.git.packs import MAX_PACK
from repositories_app.mirror import mirror as mirrors
from repositories_app.mirror.mirror import Mirror
from tests.deliveries.conftest import world
from tests.support.git import git, has_commit
from tests.support.histories import assert_promise_kept, refusing
from tests.support.processes import forked, git_processes, is_alive, offspring, reap
from tests.support.receiver import wait_for
from tests.support.world import World

__all__ = ["world"]


def directory_of(watch: AppRepository) -> Path:
    return repositories.mirror_of(watch.repository).directory


def objects(watch: AppRepository) -> list[Path]:
    return [path for path in (directory_of(watch) / "objects").rglob("*") if path.is_file()]


def resync(world: World, watch: AppRepository) -> AppRepository:
    resync_single(Actor.command(), watch)
    return world.sync(watch)


def commits(watch: AppRepository) -> int:
    return int(git(directory_of(watch), "rev-list", "--all", "--count"))


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_resync_of_the_same_commit_writes_no_file_but_a_lock(world: World) -> None:
    repo, watch = world.watch({"a.txt": b"1"})
    world.sync(watch)
    refs = directory_of(watch) / "refs" / "docora" / watch.watch_id
    before = {path: path.stat().st_mtime_ns for path in directory_of(watch).rglob("*")}
    resync(world, watch)
    assert {path: path.stat().st_mtime_ns for path in directory_of(watch).rglob("*")} == before
    assert [path.name for path in refs.iterdir()] == ["base"]
    repo.commit({"a.txt": b"2"})
    world.sync(watch)
    assert [path.name for path in refs.iterdir()] == ["base"]
    assert (refs / "base").read_text().strip() == repo.head


def test_mirror_is_bare_shallow_and_shared_by_apps(world: World, settings) -> None:
    repo, watch = world.watch({"a.txt": b"1"})
    for number in range(4):
        repo.commit({"a.txt": b"%d" % number})
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    assert [entry.name for entry in Path(settings.REPOS_DIR).iterdir() if entry.is_dir()] == [directory_of(watch).name]
    assert git(directory_of(watch), "rev-parse", "--is-bare-repository").strip() == b"true"
    assert (directory_of(watch) / "shallow").exists()
    assert commits(watch) == 1
    for each in (watch, other):
        each.refresh_from_db()
        assert_promise_kept(world, repo, each)


def test_mirrors_are_readable_by_their_owner_only(world: World, settings, tmp_path: Path) -> None:
    settings.REPOS_DIR = tmp_path / "made" / "repos"
    _, watch = world.watch()
    world.sync(watch)
    assert settings.REPOS_DIR.stat().st_mode & 0o077 == 0


def test_mirrors_are_private_even_in_a_folder_that_others_can_open(world: World, settings, tmp_path: Path) -> None:
    """`REPOS_DIR` may be the root of a disk of its own."""
    settings.REPOS_DIR = tmp_path / "disk"
    settings.REPOS_DIR.mkdir(mode=0o755)
    _, watch = world.watch()
    world.sync(watch)
    assert directory_of(watch).stat().st_mode & 0o077 == 0


def test_base_commits_survive_a_repack(world: World, monkeypatch) -> None:
    repo, watch = world.watch({"a.txt": b"1", "b.txt": b"1"})
    world.settle()
    for number in range(4):
        repo.commit({"a.txt": b"change %d" % number})
        world.settle()
    assert len(list((directory_of(watch) / "objects" / "pack").glob("*.pack"))) == 5  # no loose objects accumulate
    monkeypatch.setattr(mirrors, "MAX_PACKS", 2)
    mirror = repositories.mirror_of(watch.repository)
    watch_ids = watch.repository.watches.watch_ids
    with mirror.in_use(lambda: None):
        assert not repositories.mirror_of(watch.repository).repack_if_many(watch_ids)  # it is being read
    with repositories.mirror_of(watch.repository)._lock("fetch"):
        assert not mirror.repack_if_many(watch_ids)  # it is being fetched
    assert mirror.repack_if_many(watch_ids)
    assert len(list((directory_of(watch) / "objects" / "pack").glob("*.pack"))) == 1
    assert commits(watch) == 1
    watch.refresh_from_db()
    assert has_commit(mirror, watch.base_commit)
    repo.commit({"b.txt": b"2"})
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)


def test_repack_drops_what_removed_watches_had(world: World, monkeypatch) -> None:
    """The cleanup removes refs on its own machine only."""
    repo, watch = world.watch({"a.txt": b"1", "old.txt": b"only the other watch had it"})
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    old = git(repo.path, "rev-parse", "HEAD:old.txt").decode().strip()
    other.delete()
    repo.commit({"old.txt": None})
    monkeypatch.setattr(mirrors, "MAX_PACKS", 1)
    world.settle()
    assert [folder.name for folder in (directory_of(watch) / "refs/docora").iterdir()] == [watch.watch_id]
    assert (directory_of(watch) / "shallow").read_text().split() == [repo.head]
    with pytest.raises(subprocess.CalledProcessError):
        git(directory_of(watch), "cat-file", "-e", old)
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)


def lose(here: Path, blob: str) -> None:
    """Unpack all objects of this mirror into files of their own, and remove one."""
    for pack in list((here / "objects/pack").glob("*.pack")):
        content = pack.read_bytes()
        for path in (here / "objects/pack").glob(f"{pack.stem}.*"):
            path.unlink()
        git(here, "unpack-objects", "-q", stdin=[content])
    (here / "objects" / blob[:2] / blob[2:]).unlink()


def test_mirror_that_cannot_be_repacked_is_rebuilt(world: World, monkeypatch) -> None:
    repo, watch = world.watch({"keep": b"k", "old": b"only the other watch still has it"})
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    old = git(repo.path, "rev-parse", "HEAD:old").decode().strip()
    repo.commit({"old": None})
    world.sync(watch)
    here = directory_of(watch)
    lose(here, old)
    monkeypatch.setattr(mirrors, "MAX_PACKS", -1)
    for number in range(2):
        repo.commit({"new": b"%d" % number})
        world.sync(watch)
        assert_promise_kept(world, repo, watch)
        assert (watch.last_error, watch.repository.consecutive_failures) == ("", 0)
        assert here.exists() == (number > 0), "not removed, or not rebuilt by the next run"
    world.sync(other)
    assert_promise_kept(world, repo, other)


def test_stale_locks_of_a_killed_writer_are_removed(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    here = directory_of(watch)
    stale = [
        here / "shallow.lock",
        here / "config.lock",
        here / "packed-refs.lock",
        here / f"refs/docora/{watch.watch_id}/run.lock",
        here / "objects/pack/tmp_pack_abc",
        here / "objects/pack/pack-abc.keep",
        here / "objects/pack/pack-abc.pack.temp",
        here / "objects/tmp_obj_abc",
        here / "objects/ab/tmp_obj_abc",
    ]
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    repo.commit({"new.txt": b"x"})
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)
    assert [path for path in stale if path.exists()] == []


def remove_everything(watch: AppRepository) -> None:
    shutil.rmtree(directory_of(watch))


def truncate_objects(watch: AppRepository) -> None:
    for path in objects(watch):
        path.chmod(0o600)
        os.truncate(path, path.stat().st_size // 2)


def remove_objects(watch: AppRepository) -> None:
    for path in objects(watch):
        path.unlink()


def lose_a_blob(watch: AppRepository) -> None:
    """Remove the content of one file. The commit and its tree stay."""
    here = directory_of(watch)
    lose(here, git(here, "rev-parse", f"{watch.base_commit}:readme.md").decode().strip())


def empty_files(watch: AppRepository) -> None:
    """Empty all files, as after a power cut."""
    for path in [*objects(watch), directory_of(watch) / "HEAD", directory_of(watch) / "config"]:
        path.chmod(0o600)
        os.truncate(path, 0)


@pytest.mark.parametrize("damage", [remove_everything, truncate_objects, remove_objects, lose_a_blob, empty_files])
@pytest.mark.parametrize("moved", [False, True])
def test_damaged_mirror_is_rebuilt_within_the_attempt(world: World, damage, moved: bool) -> None:
    repo, watch = world.watch({"readme.md": b"# Hello\n", "b.txt": b"2"})
    world.settle()
    watch.refresh_from_db()
    damage(watch)
    if moved:
        repo.commit({"c.txt": b"3"})
    resync(world, watch)
    assert watch.last_error == ""
    assert_promise_kept(world, repo, watch)


def test_file_delivered_after_the_rebuild_is_not_listed_as_failed(world: World, settings, monkeypatch) -> None:
    """It failed before the damage was found, and the same attempt began its plan anew."""
    settings.RECORD_BATCH = 3
    repo, watch = world.watch({f"{number:02}.txt": b"%d" % number for number in range(9)})
    world.answer(refusing("00.txt"))
    read, blocks = Contents.read, count()

    def damaged_at_the_third_block(*arguments: Any) -> Any:
        if next(blocks) == 2:
            wait_for(lambda: any(record.path == "00.txt" for record in world.requests()))
            world.answer(None)
            raise GitError(Cause.CORRUPT, "The mirror is damaged.")
        return read(*arguments)

    monkeypatch.setattr(Contents, "read", damaged_at_the_third_block)
    world.sync(watch)
    assert next(blocks) > 4
    assert watch.status == Status.SYNCED
    assert world.runs(watch)[0].attempts == 1
    assert not watch.failures.exists()
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize("in_use", ["shared", "exclusive"])
def test_mirror_that_another_process_holds_does_not_occupy_a_worker(world: World, in_use: str) -> None:
    """A damaged mirror cannot be removed while it is read, which may take hours, nor read while it is repacked."""
    repo, watch = world.watch({"readme.md": b"# Hello\n", "b.txt": b"2"})
    world.settle()
    watch.refresh_from_db()
    if in_use == "shared":
        truncate_objects(watch)
    lock = Path(f"{directory_of(watch)}.use.lock")
    resync_single(Actor.command(), watch)
    with file_locks.hold(lock, shared=in_use == "shared"):
        began = time.monotonic()
        world.sync(watch)
        assert time.monotonic() - began < 30
        watch.refresh_from_db()
        assert (watch.status, watch.last_error, watch.lease_until) == (Status.PENDING, "", None)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_incomplete_later_fetch_is_noticed(world: World) -> None:
    """git does not check the whole tree after a later fetch. Missing objects show when they are read."""
    repo, watch = world.watch({"a.txt": b"1", "b.txt": b"2"})
    world.settle()
    repo.commit({"a.txt": b"11"})
    lost = git(repo.path, "rev-parse", f"{repo.head}:b.txt").decode().strip()
    here = directory_of(watch)
    emptied = list((here / "objects/pack").glob("*.pack"))
    lose(here, lost)
    for pack in emptied:
        pack.touch()
    resync(world, watch)
    assert watch.last_error == ""
    assert_promise_kept(world, repo, watch)


def test_mirror_is_not_served_without_own_access(world: World) -> None:
    repo = world.git.repo("acme/private", {"secret.txt": b"1"}, token="good")
    mine = world.sync(world.watch_url(repo, token="good"))
    theirs = world.watch_url(repo, app=world.add_app("Other"), token="good")
    AppRepository.objects.filter(pk=theirs.pk).update(github_token="guessed")
    world.git.server._log.clear()
    world.sync(theirs)
    assert world.copy(theirs) == {}
    assert (theirs.status, theirs.last_error_cause) == (Status.FAILED, "auth")
    assert [request.token for request in world.git.server.requests] == ["guessed"]
    assert_promise_kept(world, repo, mine)


def test_every_run_begins_with_ls_refs_and_its_own_token(world: World) -> None:
    repo = world.git.repo("acme/private", {"secret.txt": b"1"}, token="one")
    world.git.tokens["acme/private"] = {"one", "two"}
    first = world.sync(world.watch_url(repo, token="one"))
    second = world.watch_url(repo, app=world.add_app("Other"), token="two")
    for watch, token in ((second, "two"), (first, "one")):
        world.git.server._log.clear()
        resync(world, watch)
        assert [(request.target, request.token) for request in world.git.server.requests] == [
            ("/acme/private/git-upload-pack", token)
        ]
        assert_promise_kept(world, repo, watch)


def test_commit_pushed_during_a_run(world: World) -> None:
    repo, watch = world.watch({"a.txt": b"1"})
    world.settle()
    repo.commit({"a.txt": b"2"})
    asked = repo.head

    numbers = count()

    def push_late(*_: object) -> None:
        if next(numbers) == 1:  # for the pack, after HEAD
            repo.commit({"a.txt": b"3"})

    world.git.server.on_request = push_late
    world.sync(watch)
    assert watch.last_commit == asked
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)


@pytest.fixture
def hanging(world: World) -> Iterator[tuple[Mirror, int, list[str], threading.Event]]:
    """A fetch in a child process that hangs halfway: the mirror, the child, git's requests, and the event that releases
    the server."""
    repo, watch = world.watch(name="acme/hangs")
    AppRepository.objects.filter(pk=watch.pk).update(github_token="ghp_neverseen")
    mirror = repositories.mirror_of(watch.repository)
    asked: list[str] = []
    go_on = threading.Event()

    def hang(method: str, target: str) -> None:
        asked.append(target)
        go_on.wait(20)

    def work() -> None:
        with mirror.in_use(lambda: None):
            mirror.fetch(repo.url, "ghp_neverseen", repo.head, "watch", timeout=60, tick=lambda: None)

    world.git.server.on_request = hang
    child = forked(work)
    wait_for(lambda: any("info/refs" in target for target in asked))
    yield mirror, child, asked, go_on
    go_on.set()
    if is_alive(child):
        os.kill(child, signal.SIGKILL)
        reap(child)


def test_git_dies_with_its_parent(hanging) -> None:
    mirror, child, _, go_on = hanging
    locks = [Path(f"{mirror.directory}.{name}.lock") for name in ("fetch", "use")]
    family = offspring(child)
    assert family
    assert all(map(is_locked, locks))
    os.kill(child, signal.SIGKILL)
    reap(child)
    wait_for(lambda: not is_alive(family[0]), 2)
    # git's helper ends once the server answers. Until then, the mirror is locked. A process that ends releases its locks first.
    wait_for(lambda: all(map(is_locked, locks)) or not any(map(is_alive, family)))
    go_on.set()
    wait_for(lambda: not any(map(is_alive, family)))
    assert not any(map(is_locked, locks))


def test_token_is_in_no_argument_and_no_file(hanging) -> None:
    mirror, child, asked, go_on = hanging
    secrets = [b"ghp_neverseen", base64.b64encode(b"x-access-token:ghp_neverseen")]
    lines = b"\n".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in offspring(child))
    assert b"fetch" in lines
    go_on.set()
    assert os.waitstatus_to_exitcode(reap(child)) == 0
    written = [path.read_bytes() for path in mirror.directory.parent.rglob("*") if path.is_file()]
    assert len(written) > 3
    for text in [lines, *written, *[target.encode() for target in asked]]:
        assert not any(secret in text for secret in secrets)


@pytest.mark.parametrize("status", [401, 403, 404, 500, 302])
def test_token_is_in_no_error_and_no_log(world: World, caplog, capfd, monkeypatch, status: int) -> None:
    repo = world.git.repo("acme/private", {"secret.txt": b"1"}, token="ghp_neverseen")
    watch = world.watch_url(repo, token="ghp_neverseen")
    for answered, largest in ((0, MAX_PACK), (1, MAX_PACK), (2, 0)):  # the requests for HEAD, for the pack, and by git
        monkeypatch.setattr(packs, "MAX_PACK", largest)
        numbers = count()
        world.git.server.on_request = lambda *_, answered=answered, numbers=numbers: (
            status if next(numbers) >= answered else None
        )
        world.sync(watch)
        assert watch.last_error
        assert watch.last_error_cause in set(Cause)
    said = caplog.text + "".join(capfd.readouterr()) + watch.last_error + repr(world.runs(watch)[0].__dict__)
    for secret in ("ghp_neverseen", base64.b64encode(b"x-access-token:ghp_neverseen").decode()):
        assert secret not in said


def test_fetch_beyond_its_time_limit_ends_every_process(world: World, settings, monkeypatch) -> None:
    monkeypatch.setattr(packs, "MAX_PACK", 0)  # git fetches
    settings.FETCH_TIMEOUT_SECONDS = 1
    repo, watch = world.watch()
    go_on = threading.Event()

    def hang(method: str, target: str) -> None:
        if "info/refs" in target:
            go_on.wait(8)

    world.git.server.on_request = hang
    world.sync(watch)
    go_on.set()
    assert watch.last_error_cause == "timeout"
    wait_for(lambda: git_processes() == [])
    world.git.server.on_request = None
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_empty_repository_deletes_nothing_at_the_client(world: World) -> None:
    repo, watch = world.watch({"a.txt": b"1"})
    world.settle()
    git(repo.path, "symbolic-ref", "HEAD", "refs/heads/unborn")
    world.sync(watch)
    assert watch.status == Status.FAILED
    assert "no commit" in watch.last_error
    assert set(world.copy(watch)) == {"a.txt"}


def test_missing_object_is_a_mirror_error(world: World) -> None:
    _, watch = world.watch()
    world.settle()
    mirror = repositories.mirror_of(watch.repository)
    with mirror.in_use(lambda: None), mirror.blobs() as reader, pytest.raises(GitError) as caught:
        list(reader.read(["0" * 40]))
    assert caught.value.cause is Cause.CORRUPT
    connections.close_all()
