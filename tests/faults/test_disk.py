"""A full disk for mirrors or temporary files: the sync fails with a clear message, leaves no partial files, and succeeds
once there is room."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from deliveries_app.models import AppRepository, Status
from deliveries_app.sync.attempt import sync
from repositories_app import services as repositories
from tests.support.histories import assert_promise_kept
from tests.support.processes import forked, reap
from tests.support.small_disk import mount_small_disk, resize
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
