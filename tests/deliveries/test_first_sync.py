"""The first sync of a repository: everything arrives, and the records show it."""

import hashlib
from urllib.parse import quote

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import Outcome, Status
from deliveries_app.services import watch_repository
from deliveries_app.services.watching import registered_fields
from tests.support.git import Entry
from tests.support.world import World


def shas(files: dict[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


@pytest.mark.parametrize("branch", ["main", "master", "trunk"])
def test_every_file_of_the_head_branch_arrives(world: World, branch: str) -> None:
    files = {
        "readme.md": b"# Hello\n",
        "src/deep/module.py": b"print('hi')\n",
        "latin-1.txt": "déjà vu".encode("latin-1"),
        "utf-16.txt": "déjà vu".encode("utf-16"),
        "bom-crlf.txt": b"\xef\xbb\xbfone\r\ntwo\r\n",
        "nul.bin": b"\0\1\2",
        "empty": b"",
        "unicode ✓/naïve.txt": "\u2028 \U0001f600".encode(),
        'quote"and\\backslash': b'"\\\x01\x1f\x7f',
    }
    repo = world.git.repo("acme/widgets", files, branch=branch)
    watch = world.sync(world.watch_url(repo))
    assert (watch.status, watch.branch, watch.last_commit) == (Status.SYNCED, branch, repo.head)
    assert world.copy(watch) == shas(files)
    assert {record.status for record in world.receiver.log} == {200}
    run = world.runs(watch)[0]
    assert (run.outcome, run.files_done, run.files_total) == (Outcome.SUCCEEDED, len(files), len(files))
    assert {record.reason for record in world.receiver.log} == {"initial"}


@pytest.mark.parametrize(
    ("name", "owner"), [("group/sub/widgets", "group/sub"), ("org/My Project/_git/widgets", "org/My Project")]
)
def test_owner_with_several_segments(world: World, name: str, owner: str) -> None:
    world.git.repo(name, {"readme.md": b"# Hello\n"})
    watch = watch_repository(Actor.command(), world.app, f"{world.git.url}/{quote(name)}").watch
    assert (registered_fields(watch)["owner"], registered_fields(watch)["name"]) == (owner, "widgets")
    watch = world.sync(watch)
    assert watch.status == Status.SYNCED, watch.last_error
    assert {record.repository for record in world.requests("create")} == {f"{owner}/widgets"}
    assert world.runs(watch)[0].repository_name == str(watch.repository) == f"{owner}/widgets"


def test_large_files_arrive_in_chunks(world: World, settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 10_000, 4_000
    files = {"big.txt": b"some text\n" * 3_000, "big.bin": bytes(range(256)) * 100, "small.txt": b"x"}
    _, watch = world.watch(files)
    assert world.sync(watch).status == Status.SYNCED
    assert world.copy(watch) == shas(files)
    chunks = [record.chunk for record in world.requests("create") if record.path == "big.txt"]
    assert len(chunks) == 10
    assert [chunk.index for chunk in chunks if chunk] == list(range(10))
    assert len({record.webhook_id for record in world.requests("create") if record.path == "big.txt"}) == 10


def test_files_that_cannot_be_sent_are_listed_with_reasons(world: World, settings) -> None:
    settings.MAX_FILE_BYTES = 100
    _, watch = world.watch(
        {
            "fine.txt": b"fine",
            "link": Entry.symlink("fine.txt"),
            "module": Entry.submodule("1" * 40),
            "huge.bin": b"x" * 101,
            "d/" * 511 + "long-name.txt": b"path of more than 1,024 bytes",
        }
    )
    assert world.sync(watch).status == Status.SYNCED
    assert set(world.copy(watch)) == {"fine.txt"}
    listed = {failure.cause for failure in watch.failures.all()}
    assert listed == {"symlink", "submodule", "too_large", "path_too_long"}
    assert world.runs(watch)[0].files_skipped == 4
