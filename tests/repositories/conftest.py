"""A git server and a mirror, without an app, a database or a queue."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repositories_app.mirror import tree
from repositories_app.mirror.mirror import Mirror
from repositories_app.mirror.tree import Entry
from tests.support.git import GitFixture, Repo


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitFixture]:
    with GitFixture(tmp_path / "git") as server:
        yield server


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return Mirror(tmp_path / "repos" / "repo_1.git")


@pytest.fixture
def fetched(mirror: Mirror) -> Callable[..., str]:
    """Return a function that fetches a repository's HEAD into the mirror, as a sync does, and returns the commit."""

    def fetch(repo: Repo, token: str = "", commit: str | None = None, timeout: float = 60.0) -> str:
        with mirror.in_use(lambda: None):
            return mirror.fetch(repo.url, token, commit or repo.head, "watch", timeout=timeout, tick=lambda: None)

    return fetch


def listed(mirror: Mirror, commit: str) -> list[Entry]:
    """Return all files of a commit, in order."""
    with mirror.blobs() as reader:
        return list(tree.files(reader, commit, lambda: None))


def changed_paths(mirror: Mirror, base: str, commit: str) -> list[bytes] | None:
    """Return the paths that differ between two commits, in order, or None if there are too many."""
    with mirror.blobs() as reader:
        changes = tree.differences(reader, base, commit, lambda: None)
    return None if changes is None else list(changes)
