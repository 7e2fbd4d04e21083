"""Looking up one path in a mirror for a page, without fetching, waiting or creating anything."""

import fcntl
import subprocess
import tempfile
from collections.abc import Callable

import pytest

from repositories_app.git.exceptions import Cause, GitError
from repositories_app.mirror import tree
from repositories_app.mirror.blobs import BlobReader
from repositories_app.mirror.mirror import Mirror
from repositories_app.mirror.tree import stored_entries
from tests.repositories.test_hostile_trees import repo, strange_tree
from tests.support.git import Entry, GitFixture, Repo

__all__ = ["repo"]

NOWHERE = [
    b"", b"/", b"/readme.md", b"./readme.md", b"readme.md/", b"readme.md/x", b"..", b"README.md", b"*", b"-r", b":(top)readme.md",
    b"a\0b", b"\xff", b"x" * 300_000, b"a/" * 50_000 + b"a",
]  # fmt: skip


@pytest.mark.parametrize("deep", [False, True], ids=["at the top", "in a folder"])
def test_path_with_an_unusual_name_is_found(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str], deep: bool
) -> None:
    files = strange_tree(repo, deep)
    commit = fetched(repo)
    with mirror.blobs() as reader:
        found = tree.entries(reader, commit, files)
        assert found.keys() == files.keys()
        for path, content in files.items():
            entry = found[path]
            assert (entry.path, entry.mode, entry.size) == (path, "100644", len(content))
            assert list(reader.read([entry.blob])) == [content]


def test_missing_path_is_none(repo: Repo, mirror: Mirror, fetched: Callable[..., str]) -> None:
    commit = fetched(repo)
    with mirror.blobs() as reader:
        assert tree.entries(reader, commit, NOWHERE) == {}


def test_links_submodules_and_directories_have_their_mode(
    server: GitFixture, mirror: Mirror, fetched: Callable[..., str]
) -> None:
    files = {"docs/a.md": b"a", "link": Entry.symlink("docs/a.md"), "lib": Entry.submodule("1" * 40)}
    commit = fetched(server.repo("acme/docs", files))
    with mirror.blobs() as reader:
        found = tree.entries(reader, commit, [b"docs", b"link", b"lib", b"docs/a.md"])
    assert {path: entry.mode for path, entry in found.items()} == {
        b"docs": "040000",
        b"link": "120000",
        b"lib": "160000",
        b"docs/a.md": "100644",
    }


def test_each_folder_is_read_once(
    server: GitFixture, mirror: Mirror, fetched: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {"a": b"1", "b": b"2"}
    files = {f"{folder}/{name}": content for folder in ("one", "two", "three") for name, content in same.items()}
    commit = fetched(server.repo("acme/docs", files | {"three/c": b"3"}))
    paths = [name.encode() for name in files]
    with mirror.blobs() as reader:
        levels, trees = [], reader.trees
        monkeypatch.setattr(reader, "trees", lambda names: levels.append(names) or trees(names))
        found = tree.entries(reader, commit, [*paths, b"one/c", b"four/a"])
    assert found.keys() == set(paths)
    assert [len(names) for names in levels] == [1, 2]  # folders with the same content are one tree


def test_folder_without_the_name_is_not_parsed(
    server: GitFixture, mirror: Mirror, fetched: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change looks for `.docoraignore` in the root folder, which may have a hundred thousand files."""
    commit = fetched(server.repo("acme/docs", {"a": b"1", "folder/b": b"2"}))
    parsed: list[bytes] = []
    monkeypatch.setattr(tree, "stored_entries", lambda raw, size: parsed.append(raw) or stored_entries(raw, size))
    with mirror.blobs() as reader:
        assert tree.entries(reader, commit, [b".docoraignore"]) == {}
        assert parsed == []
        assert tree.entries(reader, commit, [b"folder/b"]).keys() == {b"folder/b"}
        assert len(parsed) == 2


@pytest.mark.parametrize("damage", [b"x", b"100644 \0" + bytes(20), b"100644 b\0" + bytes(19)])
def test_malformed_tree_is_refused(damage: bytes) -> None:
    raw = b"100644 a\0" + bytes(20)
    assert list(stored_entries(raw, 20)) == [(b"100644", b"a", bytes(20))]
    with pytest.raises(GitError) as raised:
        list(stored_entries(raw + damage, 20))
    assert raised.value.cause is Cause.CORRUPT


def test_lookup_from_a_process_with_threads(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python code in a child between fork and exec may wait forever for a lock that another thread held."""
    commit = fetched(repo)
    started: list[object] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *args, preexec_fn=None, **options) -> None:
            started.append(preexec_fn)
            super().__init__(*args, preexec_fn=preexec_fn, **options)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with mirror.in_use_nowait(), mirror.blobs() as reader:
        assert reader.has(commit)
        entry = tree.entries(reader, commit, [b"readme.md"])[b"readme.md"]
        assert list(reader.read([entry.blob]))
    assert started == [None]


def test_missing_mirror_is_reported_and_not_created(mirror: Mirror) -> None:
    with pytest.raises(GitError, match="no mirror"), mirror.in_use_nowait():
        pass
    assert not mirror.directory.parent.exists()


def test_lookup_does_not_wait_for_a_rebuild(repo: Repo, mirror: Mirror, fetched: Callable[..., str]) -> None:
    commit = fetched(repo)
    with open(f"{mirror.directory}.use.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(GitError, match="rebuilt"), mirror.in_use_nowait():
            pass
    with mirror.in_use_nowait(), mirror.blobs() as reader:
        assert tree.entries(reader, commit, [b"readme.md"])


def test_missing_commit(repo: Repo, mirror: Mirror, fetched: Callable[..., str]) -> None:
    fetched(repo)
    with mirror.blobs() as reader:
        assert not reader.has("1" * 40)


def test_slow_lookup_times_out() -> None:
    def start() -> subprocess.Popen[bytes]:
        silent = subprocess.Popen(
            ["sleep", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        silent.errors = tempfile.TemporaryFile()  # type: ignore[attr-defined]  # noqa: SIM115
        return silent

    with BlobReader(start, timeout=0.1) as reader, pytest.raises(GitError) as raised:
        tree.entries(reader, "1" * 40, [b"readme.md"])
    assert raised.value.cause is Cause.TIMEOUT
