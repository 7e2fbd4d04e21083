"""Hostile trees that git would not create but a host can serve.

Dangerous paths are listed and not sent, and unreadable trees fail the run. The client never loses a file.
"""

import resource
import subprocess
import time
from collections.abc import Callable

import pytest

from deliveries_app.models import AppRepository, Status
from tests.support.git import Repo, git_environment
from tests.support.raw_objects import FILE, FOLDER, LINK, MODULE, blob, serve, tree
from tests.support.world import World

UNSAFE, NOT_UTF8, LONG = "unsafe_path", "not_utf8", "path_too_long"

PATHS: dict[str, tuple[list[bytes], str]] = {
    "the parent directory": ([b"..", b"evil"], UNSAFE),
    "the parent directory, nested": ([b"src", b"..", b"..", b"etc", b"passwd"], UNSAFE),
    "the parent directory as a file": ([b".."], UNSAFE),
    "the parent directory with backslashes": ([b"..\\..\\evil"], UNSAFE),
    "the parent directory with backslashes, nested": ([b"src\\..\\..\\evil"], UNSAFE),
    "the parent directory with a trailing space": ([b".. ", b"evil"], UNSAFE),
    "the directory itself": ([b".", b"evil"], UNSAFE),
    "a drive letter": ([b"C:\\Windows\\evil"], UNSAFE),
    "a drive letter and a slash": ([b"c:", b"evil"], UNSAFE),
    "a network share": ([b"\\\\server\\share"], UNSAFE),
    "git's configuration": ([b".git", b"config"], UNSAFE),
    "a git hook": ([b".git", b"hooks", b"post-checkout"], UNSAFE),
    ".git as a file": ([b".git"], UNSAFE),
    "nested .git": ([b"src", b".git", b"config"], UNSAFE),
    "upper-case .git": ([b".GIT", b"config"], UNSAFE),
    "mixed-case .git": ([b".GiT", b"config"], UNSAFE),
    ".git by its short name": ([b"git~1", b"config"], UNSAFE),
    ".git by its upper-case short name": ([b"GIT~1", b"config"], UNSAFE),
    ".git with a trailing dot": ([b".git.", b"config"], UNSAFE),
    ".git with a trailing space": ([b".git ", b"config"], UNSAFE),
    ".git with an NTFS stream": ([b".git::$INDEX_ALLOCATION", b"config"], UNSAFE),
    ".git with a character that macOS ignores": ([".g\u200cit".encode(), b"config"], UNSAFE),
    ".git after a mark that macOS ignores": (["\u200e.git".encode(), b"config"], UNSAFE),
    ".git with backslashes": ([b"src\\.git\\config"], UNSAFE),
    "Latin-1": ([b"caf\xe9.txt"], NOT_UTF8),
    "an encoded surrogate": ([b"\xed\xa0\x80"], NOT_UTF8),
    "an overlong slash": ([b"..\xc0\xaf..\xc0\xafetc"], NOT_UTF8),
    "half a character": ([b"\xf0\x9f"], NOT_UTF8),
    "1,025 bytes": ([b"a" * 255] * 4 + [b"aa"], LONG),
    "a name of 10 MB": ([b"n" * 10_000_000], LONG),
    "a thousand levels": ([b"d"] * 1000, LONG),
}


def serve_beside_a_good_file(repo: Repo, mode: bytes, path: list[bytes], oid: bytes) -> None:
    """Commit `good.txt` and one entry at `path`, with its directories."""
    for name in path[:0:-1]:
        oid, mode = tree(repo, (mode, name, oid)), FOLDER
    entries = [(FILE, b"good.txt", blob(repo, b"good\n")), (mode, path[0], oid)]
    serve(repo, tree(repo, *sorted(entries, key=lambda entry: entry[1] + b"/" * (entry[0] == FOLDER))))


@pytest.fixture
def synced(world: World) -> tuple[Repo, AppRepository]:
    """A synced repository whose only file the client has."""
    repo, watch = world.watch({"good.txt": b"good\n"})
    assert world.sync(watch).status == Status.SYNCED
    return repo, watch


def assert_only_the_good_file_was_sent(world: World, watch: AppRepository) -> None:
    assert {record.path for record in world.requests()} == {"good.txt"}
    assert list(world.copy(watch)) == ["good.txt"]
    assert all(record.status == 200 for record in world.requests())


def test_unsafe_path_is_listed_and_not_sent(
    world: World, synced: tuple[Repo, AppRepository], subtests: pytest.Subtests
) -> None:
    repo, watch = synced
    for name, (path, cause) in PATHS.items():
        with subtests.test(name):
            serve_beside_a_good_file(repo, FILE, path, blob(repo))
            assert world.sync(watch).status == Status.SYNCED, watch.last_error
            assert_only_the_good_file_was_sent(world, watch)
            [listed] = watch.failures.all()
            assert (listed.kind, listed.cause) == ("skipped", cause)
            assert listed.message.endswith(".")
            assert watch.left_out == {cause: 1}


OTHERS: dict[str, tuple[bytes, bytes, str]] = {
    "a link to the password file": (LINK, b"/etc/passwd", "symlink"),
    "a link to a parent directory": (LINK, b"../../..", "symlink"),
    "a link to .git": (LINK, b".git", "symlink"),
    "a link to nowhere": (LINK, b"", "symlink"),
    "a submodule": (MODULE, b"", "submodule"),
}


def test_link_or_submodule_is_not_sent(
    world: World, synced: tuple[Repo, AppRepository], subtests: pytest.Subtests
) -> None:
    repo, watch = synced
    for name, (mode, target, cause) in OTHERS.items():
        with subtests.test(name):
            serve_beside_a_good_file(repo, mode, [b"evil"], b"1" * 40 if mode == MODULE else blob(repo, target))
            assert world.sync(watch).status == Status.SYNCED, watch.last_error
            assert_only_the_good_file_was_sent(world, watch)
            assert [failure.cause for failure in watch.failures.all()] == [cause]


# --- Trees that cannot be read ----------------------------------------------------------------------------------------
def file(repo: Repo, name: bytes = b"a") -> tuple[bytes, bytes, bytes]:
    return FILE, name, blob(repo)


def exponential(repo: Repo) -> bytes:
    """Ten trees with ten billion files."""
    oid = tree(repo, *(file(repo, b"%d" % number) for number in range(10)))
    for _ in range(9):
        oid = tree(repo, *((FOLDER, b"%d" % number, oid) for number in range(10)))
    return oid


# "bad pack header": the host itself fails on such a tree while it answers.
UNREADABLE: dict[str, tuple[Callable[[Repo], bytes], str]] = {
    "an exponential tree": (exponential, "more than MAX_FILES (100,000) files and folders"),
    "duplicate names": (lambda repo: tree(repo, file(repo), file(repo)), "malformed"),
    "names out of order": (lambda repo: tree(repo, file(repo, b"b"), file(repo, b"a")), "malformed"),
    "a name with a slash": (lambda repo: tree(repo, file(repo, b"a/b")), "malformed"),
    "the parent directory in one name": (lambda repo: tree(repo, file(repo, b"../../etc/passwd")), "malformed"),
    "an absolute path in one name": (lambda repo: tree(repo, file(repo, b"/etc/passwd")), "malformed"),
    "an empty name": (lambda repo: tree(repo, file(repo, b"")), "bad pack header"),
    "a file entry that is a tree": (
        lambda repo: tree(repo, (FILE, b"a", tree(repo, file(repo)))),
        "is not the content of a file",
    ),
    "a directory entry that is a blob": (lambda repo: tree(repo, (FOLDER, b"a", blob(repo))), "bad pack header"),
    "a missing blob": (lambda repo: tree(repo, (FILE, b"a", b"1" * 40)), "bad pack header"),
    "a missing tree": (lambda repo: tree(repo, (FOLDER, b"a", b"1" * 40)), "bad pack header"),
    "no mode": (lambda repo: tree(repo, (b"", b"a", blob(repo))), "bad pack header"),
}


def test_unreadable_tree_fails_the_sync_and_deletes_nothing(
    world: World, synced: tuple[Repo, AppRepository], subtests: pytest.Subtests, settings
) -> None:
    assert settings.MAX_FILES == 1_000_000
    settings.MAX_FILES = 100_000  # reading ten times as many entries would take seconds
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the children of other tests, such as a browser
    repo, watch = synced
    for name, (make, message) in UNREADABLE.items():
        with subtests.test(name):
            serve_beside_a_good_file(repo, FOLDER, [b"evil"], make(repo))
            assert world.sync(watch).status in {Status.PENDING, Status.FAILED}
            assert message in watch.last_error
            assert watch.last_error.endswith(".")
            assert_only_the_good_file_was_sent(world, watch)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # a child has as much until it runs git
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert largest < max(before, own) + (100 << 10)  # KiB: a git process used at most a tenth of a gigabyte more
    repo.force_push({"good.txt": b"good\n", "more.txt": b"more\n"})  # a readable tree syncs again
    assert world.sync(watch).status == Status.SYNCED, watch.last_error
    assert list(world.copy(watch)) == ["good.txt", "more.txt"]


# --- Bombs ------------------------------------------------------------------------------------------------------------
def test_quarter_of_a_gigabyte_of_zeros(world: World, synced: tuple[Repo, AppRepository]) -> None:
    repo, watch = synced
    size = 1 << 28
    importer = subprocess.Popen(
        ["git", "-C", str(repo.path), "fast-import", "--quiet", "--force"],
        env=git_environment({"core.bigFileThreshold": "1m", "core.compression": "1"}),
        stdin=subprocess.PIPE,
    )
    assert importer.stdin
    with importer.stdin as stream:
        stream.write(b"commit refs/heads/main\ncommitter a <a@b> 2 +0000\ndata 1\nx\nfrom refs/heads/main^0\n")
        stream.write(b"M 100644 inline zeros.bin\ndata %d\n" % size)
        for _ in range(size >> 20):
            stream.write(bytes(1 << 20))
        stream.write(b"\n")
    assert importer.wait(120) == 0

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert world.sync(watch).status == Status.SYNCED, watch.last_error
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < size // 4
    assert_only_the_good_file_was_sent(world, watch)
    [listed] = watch.failures.all()
    assert (listed.cause, listed.message) == (
        "too_large",
        "The file's 268,435,456 bytes exceed MAX_FILE_BYTES (104,857,600).",
    )


IGNORE_BOMBS: dict[str, tuple[bytes, str]] = {
    "a file of 1 MB": (b"# comment\n" * 100_000, "more than 65,536. Make it shorter"),
    "10,000 patterns": (b"a\nb\n" * 5_000, "patterns, more than 1,000. Use fewer"),
}


@pytest.mark.parametrize(("content", "message"), IGNORE_BOMBS.values(), ids=IGNORE_BOMBS)
def test_huge_ignore_file_fails_the_sync(
    world: World, synced: tuple[Repo, AppRepository], content: bytes, message: str
) -> None:
    repo, watch = synced
    repo.commit({".docoraignore": content, "hidden.txt": b"hidden\n"})
    assert world.sync(watch).status == Status.FAILED
    assert message in watch.last_error
    assert_only_the_good_file_was_sent(world, watch)


SLOW_PATTERNS = [
    b"*a" * 50 + b"b",
    b"**/" * 100 + b"x",
    b"[" + b"a-z" * 1000 + b"]*" * 20,
    b"!" * 1000,
    b"[[:alpha:]" * 500,
]


def test_catastrophic_patterns_are_matched_quickly(
    world: World, synced: tuple[Repo, AppRepository], subtests: pytest.Subtests
) -> None:
    repo, watch = synced
    for pattern in SLOW_PATTERNS:
        with subtests.test(repr(pattern[:12])):
            repo.commit({".docoraignore": pattern + b"\n", "a" * 200: b"a\n"})
            started = time.process_time()
            assert world.sync(watch).status == Status.SYNCED, watch.last_error
            assert time.process_time() - started < 2
