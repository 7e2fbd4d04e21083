"""The mirrors of a machine stay within their limit. The least recently used ones are evicted without waiting, and rebuilt
when they are needed again."""

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from django.test import Client

from deliveries_app.monitoring.instance_checks import check_mirrors
from docora import file_locks, process
from repositories_app.mirror import cache
from repositories_app.mirror.mirror import Mirror
from repositories_app.models import Repository
from repositories_app.services import mirror_of
from tests.support.doctor import infos, warnings
from tests.support.git import GitFixture, Repo, has_commit

LARGE = 1_000_000
ROOM = LARGE + cache.EMPTY_BYTES + 10_000  # size of a mirror with one incompressible file of that size


@pytest.fixture(autouse=True)
def folder(transactional_db, tmp_path: Path, settings) -> Path:
    settings.REPOS_DIR = tmp_path / "repos"
    return settings.REPOS_DIR


@pytest.fixture
def mirrors(server: GitFixture, fetched: Callable[..., str]) -> Callable[..., list[Mirror]]:
    """Return a function that makes mirrors with a file of this size. They were used in this order, a minute apart."""

    def make(count: int, size: int = LARGE) -> list[Mirror]:
        made = []
        for number in range(count):
            repo = server.repo(f"acme/widgets-{Repository.objects.count()}", {"large.bin": os.urandom(size)})
            owner, name = repo.name.split("/")
            mirror = mirror_of(Repository.objects.create(canonical_url=repo.url, owner=owner, name=name))
            fetch(mirror, repo)
            used(mirror, minutes_ago=60 - number)
            made.append(mirror)
        return made

    return make


def fetch(mirror: Mirror, repo: Repo) -> str:
    with mirror.in_use(lambda: None):
        return mirror.fetch(repo.url, "", repo.head, "watch", timeout=60.0, tick=lambda: None)


def used(mirror: Mirror, *, minutes_ago: float) -> None:
    moment = time.time() - 60 * minutes_ago
    os.utime(f"{mirror.directory}.use.lock", (moment, moment))


def exist(mirrors: list[Mirror]) -> list[bool]:
    return [mirror.directory.exists() for mirror in mirrors]


def maintain(folder: Path) -> None:
    """Run the eviction as if it were due."""
    (folder / "mirrors.json").unlink(missing_ok=True)
    cache.maintain()


# --- What is evicted -----------------------------------------------------------------------------------------------------


def test_least_recently_used_mirrors_are_evicted(mirrors, folder: Path, settings) -> None:
    made = mirrors(4)
    with made[0].in_use(lambda: None):
        pass  # the first one fetched is now the last one used
    settings.REPOS_MAX_BYTES = 2 * ROOM
    maintain(folder)
    assert exist(made) == [True, False, False, True]
    assert not list(folder.glob(f"{made[1].directory.name}*")), "its locks were left behind"
    assert cache.measure().bytes <= settings.REPOS_MAX_BYTES


def test_nothing_is_evicted_without_a_limit(mirrors, folder: Path) -> None:
    made = mirrors(3)
    maintain(folder)
    assert exist(made) == [True, True, True]


def test_mirror_in_use_is_kept_without_waiting(mirrors, folder: Path, settings) -> None:
    made = mirrors(3)
    settings.REPOS_MAX_BYTES = 1
    with Mirror(made[0].directory).in_use(lambda: None):
        used(made[0], minutes_ago=90)
        maintain(folder)
        assert exist(made) == [True, False, False]
    maintain(folder)
    assert exist(made) == [False, False, False]


def test_orphaned_mirror_in_use_is_kept_without_waiting(mirrors, folder: Path) -> None:
    [made] = mirrors(1, 10)
    Repository.objects.all().delete()
    with Mirror(made.directory).in_use(lambda: None):
        maintain(folder)
        assert made.directory.exists()
    maintain(folder)
    assert not made.directory.exists()


def test_mirror_that_git_still_uses_is_kept(mirrors, folder: Path, settings) -> None:
    [made] = mirrors(1)
    settings.REPOS_MAX_BYTES = 1
    with made.in_use(lambda: None):
        reader = made.blobs()
        reader.prefetch(["1" * 40])  # starts the process, which inherits the lock
    with reader:
        maintain(folder)
        assert made.directory.exists()
    maintain(folder)
    assert not made.directory.exists()


def test_mirror_larger_than_the_limit_is_evicted_first(
    mirrors, folder: Path, settings, caplog: pytest.LogCaptureFixture
) -> None:
    small, [large] = mirrors(2, 1000), mirrors(1)
    used(large, minutes_ago=0)
    settings.REPOS_MAX_BYTES = LARGE
    with caplog.at_level(logging.INFO, "repositories_app.mirror.cache"):
        maintain(folder)
    assert exist([*small, large]) == [True, True, False]
    [said] = caplog.records
    assert (said.message, said.levelname, said.bound) == ("mirror_larger_than_bound", "WARNING", LARGE)  # type: ignore[attr-defined]
    assert f"{said.repository}.git" == large.directory.name  # type: ignore[attr-defined]


def test_orphaned_mirrors_are_removed_without_a_limit(mirrors, folder: Path) -> None:
    kept, gone = mirrors(2, 10)
    Repository.objects.filter(repository_id=gone.directory.stem).delete()
    (folder / "repo_without_mirror.git.use.lock").touch()
    names = ("lost+found", "repo_copy.git.old", "repo_1-copy.git", "notes.txt", "other.git", "other.git.lock", "x.lock")
    foreign = [folder / name for name in names]
    for path in foreign:
        path.mkdir()
    maintain(folder)
    left = {path.name for path in folder.iterdir()} - {path.name for path in foreign}
    ours = kept.directory.name
    assert left == {ours, f"{ours}.use.lock", f"{ours}.fetch.lock", "mirrors.json", "mirrors.lock"}
    assert all(path.is_dir() for path in foreign)


@pytest.mark.parametrize("public_id", ["Portal-docs", "-", "42", "repo_5f2b-1", "x" * 50])
def test_mirrors_with_imported_ids_are_evicted_too(
    mirrors, server: GitFixture, folder: Path, settings, public_id: str
) -> None:
    made = mirrors(2)
    repo = server.repo("acme/imported", {"large.bin": os.urandom(LARGE)})
    fields = {"canonical_url": repo.url, "owner": "acme", "name": "imported"}
    imported = mirror_of(Repository.objects.create(repository_id=public_id, **fields))
    fetch(imported, repo)
    used(imported, minutes_ago=30)
    made.append(imported)
    assert cache.measure().mirrors == 3
    settings.REPOS_MAX_BYTES = 2 * ROOM
    used(made[0], minutes_ago=10)
    maintain(folder)
    assert exist(made) == [True, False, True]
    Repository.objects.filter(repository_id=public_id).delete()
    maintain(folder)
    assert exist(made) == [True, False, False]
    assert not list(folder.glob(f"{public_id}.git*")), "its locks were left behind"


# --- When evictions run --------------------------------------------------------------------------------------------------


def test_eviction_runs_once_a_minute_in_one_process(mirrors, folder: Path, settings) -> None:
    made = mirrors(2)
    cache.maintain()
    settings.REPOS_MAX_BYTES = 1
    cache.maintain()
    assert exist(made) == [True, True], "evicted although the last eviction was a moment ago"
    moment = time.time() - cache.EVERY_SECONDS - 1
    os.utime(folder / "mirrors.json", (moment, moment))
    with (folder / "mirrors.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cache.maintain()
    assert exist(made) == [True, True], "evicted although another process was evicting"
    cache.maintain()
    assert exist(made) == [False, False]


def test_eviction_runs_after_the_clock_was_set_back(mirrors, folder: Path, settings) -> None:
    made = mirrors(2)
    settings.REPOS_MAX_BYTES = 1
    in_an_hour = time.time() + 3600
    (folder / "mirrors.json").touch()
    os.utime(folder / "mirrors.json", (in_an_hour, in_an_hour))
    cache.maintain()
    assert exist(made) == [False, False]


def test_stopping_worker_evicts_nothing_more(mirrors, folder: Path, settings, monkeypatch) -> None:
    made = mirrors(2)
    settings.REPOS_MAX_BYTES = 1
    monkeypatch.setattr(process, "_stopping", threading.Event())
    process.request_stop()
    maintain(folder)
    assert exist(made) == [True, True]


def test_eviction_on_a_full_disk_does_not_fail_the_job(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.maintain()  # nothing was ever fetched
    folder.mkdir()
    (folder / "mirrors.lock").mkdir()
    cache.maintain()
    assert [record.message for record in caplog.records] == ["mirror_upkeep_failed"]


def test_file_in_the_place_of_a_mirror_stops_nothing(mirrors, folder: Path, settings) -> None:
    made = mirrors(2)
    (folder / "repo_0123456789ab.git").touch()
    settings.REPOS_MAX_BYTES = 1
    cache.maintain()
    assert exist(made) == [False, False]


@pytest.mark.parametrize("was_measured", [True, False])
def test_eviction_on_a_full_disk_waits_a_minute_too(mirrors, folder: Path, settings, *, was_measured: bool) -> None:
    made = mirrors(2)
    (folder / "mirrors.new").mkdir()  # the new measurement cannot be written
    if was_measured:
        (folder / "mirrors.json").touch()
        os.utime(folder / "mirrors.json", (0, 0))
    cache.maintain()
    settings.REPOS_MAX_BYTES = 1
    cache.maintain()
    assert exist(made) == [True, True], "the job that ended a moment later evicted"
    assert cache.last_measured() is None


# --- Evicted mirrors -----------------------------------------------------------------------------------------------------


def test_evicted_mirror_is_rebuilt_at_the_next_fetch(server: GitFixture, mirrors, folder: Path, settings) -> None:
    [made] = mirrors(1, 1000)
    settings.REPOS_MAX_BYTES = 1
    maintain(folder)
    repo = Repo("acme/widgets-0", server.directory / "acme/widgets-0.git", server.server)
    assert not has_commit(made, repo.head)
    assert fetch(made, repo) == repo.head
    assert has_commit(made, repo.head)


def test_partly_removed_mirror_is_rebuilt(server: GitFixture, mirrors, monkeypatch: pytest.MonkeyPatch) -> None:
    [made] = mirrors(1, 1000)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # killed here
        made.remove()
    assert made.directory.exists()
    repo = Repo("acme/widgets-0", server.directory / "acme/widgets-0.git", server.server)
    assert not has_commit(made, repo.head)
    assert fetch(made, repo) == repo.head


def test_waiter_gets_the_new_lock_file_after_an_eviction(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    waits, holds, done = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        with file_locks.hold(path, shared=False, tick=waits.set):
            holds.set()
            done.wait(10)

    with file_locks.hold(path, shared=False):
        thread = threading.Thread(target=wait)
        thread.start()
        assert waits.wait(10)
        path.unlink()
    assert holds.wait(10)
    try:
        with pytest.raises(BlockingIOError), file_locks.hold(path, shared=False, wait=False):
            pass
    finally:
        done.set()
        thread.join(10)


# --- Metrics and doctor --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, LARGE])
def test_measured_size_is_close_to_disk_usage(mirrors, folder: Path, size: int) -> None:
    mirrors(5, size)
    # In memory a folder takes no blocks, and a disk gives it one.
    taken = sum(max(path.lstat().st_blocks * 512, 4096) for path in folder.rglob("*"))
    measured = cache.measure()
    assert measured.mirrors == 5
    assert 0.5 < measured.bytes / taken < 2


def metrics() -> dict[str, float]:
    lines = (line.split() for line in Client().get("/metrics").text.splitlines() if line.startswith("docora_mirrors"))
    return {name: float(value) for name, value in lines}


def test_metrics_show_the_last_measured_size(mirrors, folder: Path, settings) -> None:
    settings.REPOS_MAX_BYTES = 5 * ROOM
    mirrors(2)
    assert metrics() == {}, "measured before any worker ran"
    maintain(folder)
    size = cache.measure()
    assert size.bytes > 2 * LARGE
    assert metrics() == {
        "docora_mirrors_bytes": size.bytes,
        "docora_mirrors": 2,
        "docora_mirrors_max_bytes": settings.REPOS_MAX_BYTES,
    }
    for damaged in ("", "[]", "{}", json.dumps({"bytes": 1})):
        (folder / "mirrors.json").write_text(damaged)
        assert metrics() == {}


def test_doctor_reports_the_size_and_the_limit_of_the_mirrors(mirrors, folder: Path, settings) -> None:
    assert "0 mirrors (" in infos(check_mirrors())
    mirrors(1)
    assert "contains 1 mirror (1.1 MB). There is no limit (REPOS_MAX_BYTES)." in infos(check_mirrors())
    settings.REPOS_MAX_BYTES = 2_000_000
    assert "The limit is 2.0 MB (REPOS_MAX_BYTES)." in infos(check_mirrors())
    settings.REPOS_MAX_BYTES = 1000
    assert "removes the excess after its next sync" in infos(check_mirrors())
    settings.REPOS_MAX_BYTES = 10**18
    assert "The disk would be full before this limit is reached" in warnings(check_mirrors())
