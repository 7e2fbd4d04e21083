"""Create large repositories by streaming into git, so that a million files take no memory here."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.git import GitFixture, Repo, git_environment

_LINE = b"All work and no play makes a dull file.\n"
_BLOCK = _LINE * 25_000


def make_large(fixture: GitFixture, name: str, count: int, size: int) -> Repo:
    """Create a repository of `count` different text files of `size` bytes, a hundred to a folder."""
    text = _LINE * (size // len(_LINE) + 1)
    files = ((b"folder-%04d/file-%06d.txt" % (n // 100, n), (b"%d\n%b" % (n, text))[:size]) for n in range(count))
    changes = (b'M 100644 inline "%b"\ndata %d\n%b\n' % (path, len(content), content) for path, content in files)
    return _make(fixture, name, changes)


def make_huge(fixture: GitFixture, name: str, size: int) -> Repo:
    """Create a repository with one text file of `size` bytes."""

    def changes() -> Iterator[bytes]:
        yield b'M 100644 inline "huge.txt"\ndata %d\n' % size
        for start in range(0, size, len(_BLOCK)):
            yield _BLOCK[: size - start]
        yield b"\n"

    return _make(fixture, name, changes())


def _make(fixture: GitFixture, name: str, changes: Iterator[bytes]) -> Repo:
    repo = fixture.repo(name)
    command = ["git", "-c", "core.compression=1", "-C", str(Path(repo.path)), "fast-import", "--quiet"]
    importer = subprocess.Popen(command, stdin=subprocess.PIPE, env=git_environment())
    assert importer.stdin
    with importer.stdin as stream:
        stream.write(
            b"commit refs/heads/main\ncommitter Bench <bench@docora.invalid> 1767225600 +0000\ndata 5\nStart\n"
        )
        for part in changes:
            stream.write(part)
    if importer.wait():
        raise RuntimeError(f"git fast-import ended with {importer.returncode}.")
    return repo
