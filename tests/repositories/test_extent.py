"""Counting what a tree expands to: exact, each distinct tree object read once, and refused before it is listed."""

from collections.abc import Callable, Iterator

import pytest

from repositories_app.git.exceptions import Cause, GitError
from repositories_app.mirror.blobs import BlobReader
from repositories_app.mirror.extent import MAX_DEPTH, check_extent
from repositories_app.mirror.mirror import Mirror
from tests.repositories.conftest import changed_paths
from tests.support.git import GitFixture, Repo, git
from tests.support.raw_objects import blob, serve, tree

FILE, FOLDER = b"100644", b"40000"


@pytest.fixture
def repo(server: GitFixture) -> Repo:
    return server.repo("acme/widgets", {"a/b/1": b"1", "a/b/2": b"2", "c/b/1": b"1", "c/b/2": b"2", "readme.md": b"#"})


@pytest.fixture
def reader(mirror: Mirror) -> Iterator[BlobReader]:
    with mirror.blobs() as reader:
        yield reader


def check(reader: BlobReader, commit: str) -> list[str]:
    """Return the trees that were read."""
    read: list[str] = []
    trees = reader.trees
    reader.trees = lambda names: (read.extend(names), trees(names))[1]  # type: ignore[method-assign]
    check_extent(reader, commit, lambda: None)
    return read


def refusal(reader: BlobReader, commit: str) -> str:
    with pytest.raises(GitError) as caught:
        check_extent(reader, commit, lambda: None)
    assert (caught.value.cause, caught.value.permanent) == (Cause.TOO_LARGE, True)
    return str(caught.value)


def nested(repo: Repo, inner: bytes, levels: int, times: int) -> bytes:
    """Return a tree of this many `levels`, each of which names the next one `times` times."""
    for _ in range(levels):
        inner = tree(repo, *((FOLDER, b"%d" % number, inner) for number in range(times)))
    return inner


def test_files_and_folders_are_counted_where_they_occur(
    repo: Repo, reader: BlobReader, fetched: Callable[..., str], settings
) -> None:
    commit = fetched(repo)
    settings.MAX_FILES = 9  # five files and four folders
    assert len(check(reader, commit)) == 3  # the root, "a" which equals "c", and "b"
    settings.MAX_FILES = 8
    assert refusal(reader, commit) == (
        "The repository has more than MAX_FILES (8) files and folders. "
        "Split it, or ask an administrator to raise the limit."
    )


def test_ten_trees_with_ten_billion_files_are_refused_after_reading_ten_trees(
    repo: Repo, mirror: Mirror, reader: BlobReader, fetched: Callable[..., str]
) -> None:
    base = fetched(repo)
    serve(repo, nested(repo, tree(repo, *((FILE, b"%d" % number, blob(repo)) for number in range(10))), 9, 10))
    commit = fetched(repo)
    assert "more than MAX_FILES (1,000,000)" in refusal(reader, commit)
    assert changed_paths(mirror, base, commit) is None


def test_billions_of_empty_folders_are_refused(
    repo: Repo, mirror: Mirror, reader: BlobReader, fetched: Callable[..., str]
) -> None:
    """git lists none of them, and would be silent while it walks."""
    base = fetched(repo)
    serve(repo, nested(repo, tree(repo), 10, 10))
    commit = fetched(repo)
    assert "more than MAX_FILES" in refusal(reader, commit)
    assert changed_paths(mirror, base, commit) is None


def test_more_distinct_trees_than_files_are_allowed_are_not_all_read(
    repo: Repo, reader: BlobReader, fetched: Callable[..., str], settings
) -> None:
    repo.force_push({f"{number}/{number}/{number}": b"%d" % number for number in range(50)})
    commit = fetched(repo)
    settings.MAX_FILES = 60
    assert "more than MAX_FILES" in refusal(reader, commit)
    settings.MAX_FILES = 150
    assert len(check(reader, commit)) == 101


@pytest.mark.parametrize(("levels", "refused"), [(MAX_DEPTH - 1, False), (MAX_DEPTH, True)])
def test_folders_nested_too_deep_are_refused(
    repo: Repo, reader: BlobReader, fetched: Callable[..., str], levels: int, refused: bool
) -> None:
    lines = [b"commit refs/heads/main\ncommitter a <a@b> 1 +0000\ndata 1\nx\n"]
    lines.append(b"M 100644 inline %b\ndata 1\nx\n" % (b"d/" * levels + b"f"))
    git(repo.path, "fast-import", "--quiet", "--force", stdin=lines)
    commit = fetched(repo)
    if refused:
        assert "nested more than 2,000 levels deep" in refusal(reader, commit)
    else:
        check_extent(reader, commit, lambda: None)


def test_depth_counts_the_longest_path(
    repo: Repo, reader: BlobReader, fetched: Callable[..., str], monkeypatch
) -> None:
    """The deepest tree is also named in the root."""
    monkeypatch.setattr("repositories_app.mirror.extent.MAX_DEPTH", 3)
    leaf = tree(repo, (FILE, b"f", blob(repo)))
    deep = nested(repo, leaf, 2, 1)
    serve(repo, tree(repo, (FOLDER, b"a", deep), (FOLDER, b"b", leaf)))
    assert "nested more than 3 levels deep" in refusal(reader, fetched(repo))


def test_huge_names_in_many_copies_of_a_folder_are_refused(
    repo: Repo, reader: BlobReader, fetched: Callable[..., str], monkeypatch
) -> None:
    """git would keep each copy in memory while it lists."""
    monkeypatch.setattr("repositories_app.mirror.extent.MAX_EXPANDED_BYTES", 100_000)
    folder = tree(repo, (FILE, b"x" * 10_000, blob(repo)))
    serve(repo, tree(repo, *((FOLDER, b"%d" % number, folder) for number in range(9))))
    check_extent(reader, fetched(repo), lambda: None)
    serve(repo, tree(repo, *((FOLDER, b"%02d" % number, folder) for number in range(10))))
    assert "folders take 101 kB to list" in refusal(reader, fetched(repo))


def test_folder_with_too_long_a_list_is_refused(
    repo: Repo, reader: BlobReader, fetched: Callable[..., str], monkeypatch
) -> None:
    monkeypatch.setattr("repositories_app.mirror.blobs.MAX_TREE_BYTES", 50)
    assert "a folder with too many files: its listing takes" in refusal(reader, fetched(repo))
    monkeypatch.undo()
    check_extent(reader, repo.head, lambda: None)  # the reader is still usable
