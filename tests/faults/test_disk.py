"""A full disk for mirrors or temporary files: the sync fails with a clear message, leaves no partial files, and succeeds
once there is room."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from deliveries_app.models import AppRepository, Status
from deliveries_app.models.root_causes import ErrorCause
from docora.conf.data_dir import embedded_redis_url
from docora.server.valkey import valkey_command
from repositories_app import services as repositories
from tests.support.commands import PROJECT
from tests.support.histories import assert_promise_kept
from tests.support.processes import forked, reap
from tests.support.receiver import wait_for
from tests.support.small_disk import mount_small_disk, resize
from tests.support.syncing import sync
from tests.support.world import World

NOT_PERMITTED = 77
FILES = {"large.bin": os.urandom(3_000_000), "small.txt": b"small"}


@dataclass
class Result:
    """How an attempt ended, and the files in the mirror's folder."""

    status: str
    error: str
    cause: str
    files: list[str]


def attempts_on_a_small_disk(
    world: World, watch: AppRepository, folder: Path, options: str, report: Path, between: Callable[[], None]
) -> tuple[Result, Result]:
    """Run two attempts in a process with a small disk at `folder`: one on the full disk, one after `between` made room."""

    def attempt() -> Result:
        world.make_due(watch)
        sync(watch.pk)
        watch.refresh_from_db()
        mirror = repositories.mirror_of(watch.repository).directory
        left = [str(path.relative_to(mirror)) for path in mirror.rglob("*") if path.is_file()]
        return Result(watch.status, watch.last_error, watch.last_error_cause, left)

    def work() -> None:
        try:
            mount_small_disk(folder, options)
        except OSError:
            os._exit(NOT_PERMITTED)
        first = attempt()
        between()
        report.write_text(json.dumps([asdict(first), asdict(attempt())]))

    ended = os.waitstatus_to_exitcode(reap(forked(work), 60))
    if ended == NOT_PERMITTED:
        pytest.skip("this process may not mount a small disk, as root or in a user namespace")
    assert ended == 0
    first, second = json.loads(report.read_text())
    return Result(**first), Result(**second)


@pytest.mark.parametrize(
    "options",
    ["size=1m", "size=100m,nr_inodes=4", "size=100m,nr_inodes=1"],
    ids=["no room for the pack", "no room for a repository", "no room for a lock"],
)
def test_full_mirror_disk_leaves_no_partial_pack(world: World, tmp_path: Path, settings, options: str) -> None:
    repo, watch = world.watch(FILES)
    disk = Path(settings.REPOS_DIR)
    full, roomy = attempts_on_a_small_disk(
        world, watch, disk, options, tmp_path / "report", lambda: resize(disk, "size=100m,nr_inodes=10000")
    )
    assert full.status != Status.SYNCED
    assert "No space left on device" in full.error
    assert "Free up space in" in full.error
    assert "REPOS_DIR" in full.error
    assert full.cause == ErrorCause.INTERNAL  # the repository is neither too large nor unreadable
    assert not [name for name in full.files if name.startswith("objects/") or name.endswith(".lock")]
    assert (roomy.status, roomy.error) == (Status.SYNCED, "")
    assert_promise_kept(world, repo, watch)


def test_full_temporary_disk_fails_with_a_message(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, watch = world.watch(FILES)
    disk = tmp_path / "tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    full, roomy = attempts_on_a_small_disk(
        world,
        watch,
        disk,
        "size=1m,nr_inodes=1",
        tmp_path / "report",
        lambda: resize(disk, "size=100m,nr_inodes=10000"),
    )
    assert full.status != Status.SYNCED
    assert "No space left on device" in full.error
    assert "Free up space in" in full.error
    assert "TMPDIR" in full.error
    assert roomy.status == Status.SYNCED
    assert_promise_kept(world, repo, watch)


def fill_disk_of_valkey(data: Path, client: Redis) -> None:
    """Write until Valkey refuses to, because it cannot store what it was sent."""
    with (data / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))
    for number in range(100_000):
        try:
            client.set(f"key-{number}", "x" * 1000)
        except ResponseError:
            return
    raise AssertionError("Valkey has not noticed that its disk is full")


@pytest.mark.early(1)
def test_full_data_directory_of_the_embedded_valkey(instance_environment: dict[str, str], tmp_path: Path) -> None:
    """A running worker ends, and a new one doesn't start. Both name the disk, not REDIS_URL."""
    data = tmp_path / "data"
    report = tmp_path / "report"
    environment = {name: value for name, value in instance_environment.items() if name != "REDIS_URL"}
    environment |= {"DATA_DIR": str(data)}
    command = [sys.executable, str(PROJECT / "manage.py"), "rqworker", "high", "default", "low"]

    def responds(client: Redis) -> bool:
        try:
            return bool(client.ping())
        except RedisError:
            return False

    def work() -> None:
        try:
            mount_small_disk(data, "size=2m")
        except OSError:
            os._exit(NOT_PERMITTED)
        valkey = subprocess.Popen(valkey_command(data))
        try:
            client = Redis.from_url(embedded_redis_url(data))
            wait_for(lambda: responds(client), 30)
            running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            wait_for(lambda: client.scard("rq:workers"), 60)
            fill_disk_of_valkey(data, client)
            new = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
            _, log = running.communicate(timeout=90)
            report.write_text(json.dumps([[running.returncode, log], [new.returncode, new.stderr]]))
        finally:
            valkey.kill()
            valkey.wait()

    ended = os.waitstatus_to_exitcode(reap(forked(work), 200))
    if ended == NOT_PERMITTED:
        pytest.skip("this process may not mount a small disk, as root or in a user namespace")
    assert ended == 0
    for code, log in json.loads(report.read_text()):
        assert code == 1, log
        assert log.splitlines()[-1].startswith(
            f"The disk of the data directory {data} is full, so Redis refuses every write: Errors writing"
        ), log
        assert "Free up space" in log.splitlines()[-1]
        assert "Traceback" not in log
        assert "REDIS_URL" not in log
