"""Trees that git would never create but a server can serve: they are read as they are, or refused with a clear message."""

import re
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from repositories_app.git.exceptions import Cause, GitError
from repositories_app.mirror import tree as trees
from repositories_app.mirror.mirror import Mirror
from tests.repositories.conftest import changed_paths, listed
from tests.support.git import GitFixture, Repo, git
from tests.support.raw_objects import FILE, FOLDER, MODULE, blob, serve, tree, write


@pytest.fixture
def repo(server: GitFixture) -> Repo:
    return server.repo("acme/hostile", {"readme.md": b"# Hello\n"})


def paths(mirror: Mirror, commit: str, only: list[bytes] | None = None) -> list[bytes]:
    """Return the paths in the order of the tree: all of them, or those in `only`."""
    if only is None:
        return [entry.path for entry in listed(mirror, commit)]
    with mirror.blobs() as reader:
        return sorted(trees.entries(reader, commit, only))


STRANGE = [
    b"..", b".", b".git", b".GIT", b".git ", b"git~1", b"-x", b"--help", b":(top)x", b":!x", b"*", b"a\nb", b"a\tb", b"a\\b",
    b"\x01", b"\x7f", b"\xff\xfe", b"caf\xe9", b"CON", b"~", b'"', b" ", b"a" * 5000, "\u202e".encode(), b"\xed\xa0\x80",
]  # fmt: skip


def strange_tree(repo: Repo, deep: bool) -> dict[bytes, bytes]:
    """Serve a tree with a file of every strange name, at the top or in a folder of the same name. Return path → content."""
    found, entries = {}, []
    for number, name in enumerate(STRANGE):
        content = b"strange %d" % number
        file = (FILE, name, blob(repo, content))
        found[name + b"/" + name if deep else name] = content
        entries.append((FOLDER, name, tree(repo, file)) if deep else file)
    entries.sort(key=lambda entry: entry[1] + (b"/" if deep else b""))  # as git sorts
    serve(repo, tree(repo, *entries))
    return dict(sorted(found.items()))


@pytest.mark.parametrize("deep", [False, True], ids=["at the top", "in a folder"])
def test_unusual_names_are_listed_found_and_compared(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str], deep: bool
) -> None:
    base = fetched(repo)
    files = strange_tree(repo, deep)
    commit = fetched(repo)
    assert paths(mirror, commit) == list(files)
    assert paths(mirror, commit, list(files)) == list(files)
    for path in files:
        assert paths(mirror, commit, [path]) == [path]
        assert paths(mirror, commit, [b"readme.md", path, b"zzz"]) == [path]
    assert changed_paths(mirror, base, commit) == sorted([*files, b"readme.md"])
    with mirror.blobs() as reader:
        assert list(reader.read([entry.blob for entry in listed(mirror, commit)])) == list(files.values())


IMPOSSIBLE = [
    b"", b"/", b"/x", b"//", b"../x", b"..", b"x/../../y", b".", b"./x", b"a//b", b"a/", b"a/./b", b"/etc/passwd", b":/",
    b":(exclude)*", b":^x", b"*", b"[", b"-r", b"--", b"\xff", b"\n", b"x" * 300_000, b"a/" * 50_000 + b"a",
]  # fmt: skip


def test_looking_up_an_impossible_path_finds_nothing(repo: Repo, mirror: Mirror, fetched: Callable[..., str]) -> None:
    commit = fetched(repo)
    for path in IMPOSSIBLE:
        assert paths(mirror, commit, [path]) == [], path[:14]
        assert paths(mirror, commit, [path, b"readme.md"]) == [b"readme.md"], path[:14]


@pytest.mark.parametrize(
    "names",
    [
        [b"b", b"a"], [b"a", b"a"], [b"a", b"a.b", b"a"], [b"a/b", b"a"], [b"\xff", b"a"], [b"x/y"], [b"x/y/"],
        [b"a/", b"a/"], [b"a", b"a/"], [b"a", b"a!", b"a-b", b"a/"], [b"b/", b"a"], [b"a/", b"a.b/"],
    ],
    ids=lambda names: repr(names),
)  # fmt: skip
def test_unsorted_tree_is_refused(repo: Repo, mirror: Mirror, fetched: Callable[..., str], names: list[bytes]) -> None:
    """Names that end in a slash are those of folders. In one that is listed twice, some paths would not be found."""
    base = fetched(repo)
    made = []
    for number, name in enumerate(names):
        file = FILE, b"%d" % number, blob(repo)
        made.append((FOLDER, name[:-1], tree(repo, file)) if name.endswith(b"/") else (FILE, name, blob(repo)))
    serve(repo, tree(repo, *made))
    commit = fetched(repo)
    for read in (lambda: paths(mirror, commit), lambda: changed_paths(mirror, base, commit)):
        with pytest.raises(GitError, match="malformed") as caught:
            read()
        assert caught.value.cause is Cause.OTHER


BROKEN = {
    "garbage": b"garbage",
    "cut": b"100644 a\0short",
    "no name": b"100644 \0" + b"\1" * 20,
    "bad mode": b"999999 a\0" + b"\1" * 20,
    "no mode": b"xyz a\0" + b"\1" * 20,
    "missing file": b"100644 a\0" + b"\1" * 20,
    "missing folder": b"40000 a\0" + b"\1" * 20,
    "no end of name": b"100644 a" + b"\1" * 20,
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_broken_tree_on_the_host_is_not_taken_for_a_broken_mirror(
    repo: Repo, fetched: Callable[..., str], raw: bytes
) -> None:
    serve(repo, write(repo, b"tree", raw))
    with pytest.raises(GitError, match=r"host message: .*on the remote side") as caught:
        fetched(repo)
    assert caught.value.cause is Cause.NETWORK


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_broken_tree_in_the_mirror_is_a_clear_error(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str], raw: bytes
) -> None:
    base = fetched(repo)
    here = Repo("mirror", mirror.directory, repo.server)
    commit = serve(here, write(here, b"tree", raw))
    with pytest.raises(GitError) as caught:
        paths(mirror, commit)
    assert caught.value.cause is Cause.CORRUPT
    if b"\1" not in raw:
        with pytest.raises(GitError):
            changed_paths(mirror, base, commit)


def test_entry_with_a_wrong_type_is_not_a_file(repo: Repo, mirror: Mirror, fetched: Callable[..., str]) -> None:
    serve(repo, tree(repo, (FILE, b"file", tree(repo, (FILE, b"a", blob(repo))))))
    with pytest.raises(GitError), mirror.blobs() as reader:
        list(reader.read([entry.blob for entry in listed(mirror, fetched(repo))]))


def test_file_in_the_place_of_a_folder_is_refused(repo: Repo, mirror: Mirror, fetched: Callable[..., str]) -> None:
    """Even if its content is written like a folder. The host's git sends no such tree."""
    fetched(repo)
    here = Repo("mirror", mirror.directory, repo.server)
    looks_like_a_folder = blob(here, b"100644 a\0" + bytes.fromhex(blob(here).decode()))
    commit = serve(here, tree(here, (FOLDER, b"folder", looks_like_a_folder)))
    with pytest.raises(GitError, match="is not a folder") as caught:
        paths(mirror, commit)
    assert caught.value.cause is Cause.CORRUPT


def test_any_mode_is_read_as_one_that_git_writes(repo: Repo, mirror: Mirror, fetched: Callable[..., str]) -> None:
    modes = {
        b"100600": "100644", b"100664": "100644", b"644": "160000", b"100777": "100755", b"60000": "160000", b"0": "160000",
        b"120777": "120000",
    }  # fmt: skip
    base = fetched(repo)
    serve(repo, tree(repo, *((mode, b"%d" % number, blob(repo)) for number, mode in enumerate(modes))))
    commit = fetched(repo)
    with mirror.blobs() as reader:
        found = trees.entries(reader, commit, [b"%d" % number for number in range(len(modes))])
        changes = trees.differences(reader, base, commit, lambda: None)
    assert changes is not None
    assert git(mirror.directory, "ls-tree", "--format=%(objectmode)", commit).decode().split() == list(modes.values())
    for read in (listed(mirror, commit), found.values(), [entry for _, entry in changes.values() if entry]):
        assert [entry.mode for entry in read] == list(modes.values())


@pytest.mark.parametrize("mode", [b"7" * 40, b"0" * 5 + FILE])
def test_long_mode_is_refused(repo: Repo, mirror: Mirror, fetched: Callable[..., str], mode: bytes) -> None:
    """git reads modes of megabytes. To list such a folder many times would take days, although its paths are short."""
    base = fetched(repo)
    serve(repo, tree(repo, (FOLDER, b"d", tree(repo, (mode, b"a", blob(repo))))))
    commit = fetched(repo)
    for read in (
        lambda: paths(mirror, commit),
        lambda: paths(mirror, commit, [b"d/a"]),
        lambda: changed_paths(mirror, base, commit),
    ):
        with pytest.raises(GitError, match="malformed") as caught:
            read()
        assert caught.value.cause is Cause.CORRUPT


def test_trees_deeper_than_two_thousand_levels_are_refused(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str]
) -> None:
    lines = [b"commit refs/heads/main\ncommitter a <a@b> 1 +0000\ndata 1\nx\n"]
    lines.append(b"M 100644 inline %b\ndata 1\nx\n" % (b"d/" * 2000 + b"f"))
    git(repo.path, "fast-import", "--quiet", "--force", stdin=lines)
    commit = fetched(repo)
    assert paths(mirror, commit) == [b"d/" * 2000 + b"f"]
    assert paths(mirror, commit, [b"d/" * 2000 + b"f"]) == [b"d/" * 2000 + b"f"]
    root = git(repo.path, "rev-parse", "main^{tree}").strip()
    for _ in range(10):  # git itself refuses more than 2,048
        root = tree(repo, (FOLDER, b"d", root))
    serve(repo, root)
    assert "nested more than 2,000 levels deep" in refusal(mirror, fetched(repo))


def test_name_of_ten_megabytes(repo: Repo, mirror: Mirror, fetched: Callable[..., str]) -> None:
    base = fetched(repo)
    name = b"n" * 10_000_000
    serve(repo, tree(repo, (FILE, name, blob(repo))))
    commit = fetched(repo)
    started = time.process_time()
    assert paths(mirror, commit) == [name]
    assert paths(mirror, commit, [name]) == [name]
    assert changed_paths(mirror, base, commit) is None  # a full plan streams, a list of paths would not
    assert time.process_time() - started < 2


def test_fifty_thousand_entries_in_one_folder_are_streamed(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str]
) -> None:
    content = blob(repo)
    names = [b"file-%06d" % number for number in range(50_000)]
    serve(repo, tree(repo, *((FILE, name, content) for name in names)))
    commit = fetched(repo)
    assert paths(mirror, commit) == names
    assert paths(mirror, commit, [names[7], names[40_000]]) == [names[7], names[40_000]]
    with mirror.blobs() as reader:
        files = trees.files(reader, commit, lambda: None)
        assert next(files).path == names[0]
        assert list(reader.read([content.decode()])) == [b"x"]  # the reader may be used between two files
        assert next(files).path == names[1]


def nested(repo: Repo, inner: bytes, levels: int, times: int) -> bytes:
    """Return a tree of this many `levels`, each of which names the next one `times` times."""
    for _ in range(levels):
        inner = tree(repo, *((FOLDER, b"%d" % number, inner) for number in range(times)))
    return inner


def test_tree_that_expands_exponentially_is_refused(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str], monkeypatch
) -> None:
    monkeypatch.setattr(trees, "MAX_LISTED_BYTES", 200_000)
    leaf = tree(repo, *((FILE, b"%d" % number, blob(repo)) for number in range(10)))
    serve(repo, nested(repo, leaf, 9, 10))  # ten trees, ten billion files
    with pytest.raises(GitError, match="list of files exceeds 200 kB") as caught:
        listed(mirror, fetched(repo))
    assert caught.value.cause is Cause.TOO_LARGE


def refusal(mirror: Mirror, commit: str) -> str:
    with pytest.raises(GitError) as caught:
        paths(mirror, commit)
    assert (caught.value.cause, caught.value.permanent) == (Cause.TOO_LARGE, True)
    return str(caught.value)


def test_files_and_folders_are_counted_where_they_occur(
    server: GitFixture, mirror: Mirror, fetched: Callable[..., str], settings
) -> None:
    files = {"a/b/1": b"1", "a/b/2": b"2", "c/b/1": b"1", "c/b/2": b"2", "readme.md": b"#"}
    commit = fetched(server.repo("acme/widgets", files))
    settings.MAX_FILES = 9  # five files and four folders
    assert paths(mirror, commit) == [path.encode() for path in files]
    settings.MAX_FILES = 8
    assert refusal(mirror, commit) == (
        "The repository has more than MAX_FILES (8) files and folders. "
        "Split it, or ask an administrator to raise the limit."
    )


@pytest.mark.parametrize("has_files", [True, False])
def test_ten_trees_that_expand_to_billions_of_entries_are_refused(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str], settings, *, has_files: bool
) -> None:
    settings.MAX_FILES = 20_000
    base = fetched(repo)
    names = range(10) if has_files else []
    leaf = tree(repo, *((FILE, b"%d" % number, blob(repo)) for number in names))
    serve(repo, nested(repo, leaf, 10 - has_files, 10))
    commit = fetched(repo)
    assert "more than MAX_FILES (20,000)" in refusal(mirror, commit)
    assert changed_paths(mirror, base, commit) is None


def test_lease_is_extended_while_many_folders_are_compared(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str]
) -> None:
    """A stranger's pack can store each folder as a change of the one before, and reading the last one then takes long."""
    commits = []
    for content in (b"1", b"2"):
        leaf = tree(repo, (FILE, b"f", blob(repo, content)))
        serve(repo, nested(repo, leaf, 2, 10))
        commits.append(fetched(repo))
    ticks: list[int] = []
    with mirror.blobs() as reader:
        changes = trees.differences(reader, *commits, lambda: ticks.append(1))
    assert changes is not None
    assert (len(changes), len(ticks)) == (100, 111)


def test_lease_is_extended_while_small_folders_are_read_together(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str]
) -> None:
    folders = [(FOLDER, b"%03d" % number, tree(repo, (FILE, b"%d" % number, blob(repo)))) for number in range(100)]
    serve(repo, tree(repo, *folders))
    ticks: list[int] = []
    commit = fetched(repo)
    with mirror.blobs() as reader:
        next(trees.files(reader, commit, lambda: ticks.append(1)))
    assert len(ticks) > 100


@pytest.mark.parametrize(
    ("limit", "value"),
    [("MAX_DIFF_PATHS", 2), ("MAX_DIFF_FOLDERS", 2), ("MAX_DIFF_BYTES", 10), ("MAX_COMPARED_BYTES", 180), ("_MAX_PAIR_BYTES", 150)],
)  # fmt: skip
def test_differences_are_left_to_a_full_plan_beyond_each_limit(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str], monkeypatch, limit: str, value: int
) -> None:
    base = fetched(repo)
    repo.commit({"a/1": b"1", "b/2": b"2", "c/3": b"3"})
    commit = fetched(repo)
    assert changed_paths(mirror, base, commit) == [b"a/1", b"b/2", b"c/3"]
    monkeypatch.setattr(trees, limit, value)
    assert changed_paths(mirror, base, commit) is None


def test_submodule_with_the_id_of_a_file_has_no_size(repo: Repo, mirror: Mirror, fetched: Callable[..., str]) -> None:
    base = fetched(repo)
    content = blob(repo, b"content")
    serve(repo, tree(repo, (FILE, b"file", content), (MODULE, b"module", content)))
    commit = fetched(repo)
    with mirror.blobs() as reader:
        found = trees.entries(reader, commit, [b"file", b"module"])
        changes = trees.differences(reader, base, commit, lambda: None)
    assert changes is not None
    for read in (listed(mirror, commit), found.values(), [entry for _, entry in changes.values() if entry]):
        assert [entry.size for entry in read] == [7, 0]


def test_huge_names_of_nested_folders_are_refused(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str], monkeypatch
) -> None:
    """They are in memory while a file below them is listed."""
    monkeypatch.setattr(trees, "MAX_OPEN_BYTES", 3_000_000)
    root = tree(repo, (FILE, b"f", blob(repo)))
    for levels in range(3):
        serve(repo, root)
        if levels < 2:
            assert len(paths(mirror, fetched(repo))) == 1
        root = tree(repo, (FOLDER, b"x" * 1_000_000, root))
    assert "nested folders whose names take 3.0 MB" in refusal(mirror, fetched(repo))


def test_huge_names_in_many_copies_of_a_folder_are_refused(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str], monkeypatch
) -> None:
    monkeypatch.setattr(trees, "MAX_LISTED_BYTES", 10_000_000)
    folder = tree(repo, (FILE, b"x" * 1_000_000, blob(repo)))
    serve(repo, nested(repo, folder, 9, 10))
    assert "its list of files exceeds 10 MB" in refusal(mirror, fetched(repo))


def test_folder_with_too_long_a_list_is_refused(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str], monkeypatch
) -> None:
    commit = fetched(repo)
    with mirror.blobs() as reader:
        monkeypatch.setattr("repositories_app.mirror.blobs.MAX_TREE_BYTES", 30)
        with pytest.raises(GitError, match="a folder with too many files: its listing takes"):
            trees.entries(reader, commit, [b"readme.md"])
        monkeypatch.undo()
        assert trees.entries(reader, commit, [b"readme.md"])  # the reader is still usable


def test_path_through_folders_that_are_listed_twice(repo: Repo, mirror: Mirror, fetched: Callable[..., str]) -> None:
    """Of two entries with one name, the first counts. Otherwise, each level would double the work."""
    root = tree(repo, (FILE, b"f", blob(repo)))
    for _ in range(22):
        root = tree(repo, (FOLDER, b"d", root), (FOLDER, b"d", root))
    serve(repo, root)
    commit = fetched(repo)
    tracemalloc.start()
    assert paths(mirror, commit, [b"d/" * 22 + b"f"]) == [b"d/" * 22 + b"f"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_file_that_expands_to_gigabytes_is_not_held_in_memory(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str]
) -> None:
    size = 256_000_000
    serve(repo, tree(repo, (FILE, b"zeros", blob(repo, bytes(size)))))
    commit = fetched(repo)
    assert sum(path.stat().st_size for path in (mirror.directory / "objects").rglob("*.pack")) < 2_000_000
    [entry] = listed(mirror, commit)
    assert entry.size == size
    with mirror.blobs() as reader:
        assert sum(map(len, reader.stream(entry.blob))) == size
        status = Path(f"/proc/{reader._process.pid}/status").read_text()
    peak = re.search(r"Vm(?:HWM|RSS):\s+(\d+) kB", status)
    assert peak
    assert int(peak[1]) * 1000 < size // 2


@pytest.mark.parametrize("target", ["tag", "tree", "blob"])
def test_head_that_is_not_a_commit_is_a_clear_error(
    repo: Repo, mirror: Mirror, fetched: Callable[..., str], target: str
) -> None:
    oid = {"tree": git(repo.path, "rev-parse", "HEAD^{tree}").decode().strip(), "blob": blob(repo).decode()}.get(target)
    if oid is None:
        tag = b"object %b\ntype blob\ntag x\ntagger a <a@b> 1 +0000\n\nx\n" % blob(repo)
        oid = write(repo, b"tag", tag).decode()
    git(repo.path, "update-ref", "refs/tags/x", oid)
    with pytest.raises(GitError) as caught:
        listed(mirror, fetched(repo, commit=oid))
    assert str(caught.value).endswith(".")
