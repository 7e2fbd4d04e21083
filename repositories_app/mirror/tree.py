"""Parse git's listings of trees, and prepare paths for git's command line."""

import os
import re
import select
import stat
import subprocess
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from docora.text import format_bytes
from repositories_app.git import errors as git_errors
from repositories_app.git import process as git
from repositories_app.git.exceptions import Cause, GitError

DIRECTORY, SYMLINK, SUBMODULE = "040000", "120000", "160000"
_NOTHING = "000000"
MAX_TREE_BYTES = 64 << 20
"""Largest tree object that is read. It has more than a million files in one folder."""
_STORED = {size: re.compile(rb"([0-7]+) ([^\0]+)\0(.{%d})" % size, re.DOTALL) for size in (20, 32)}
"""Maps the length of an object id in bytes (SHA-1 or SHA-256) to the pattern of a tree object's entry."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a tree: `mode` as git writes it (`100644`, `100755`, `120000`, `160000`), `size` in bytes.

    Directories (`040000`) are listed only on request.
    """

    path: bytes
    mode: str
    blob: str
    size: int


type Difference = tuple[Entry | None, Entry | None]
"""The entries of two commits at one path, before and after; None unless there is a file."""


def entry_of(line: bytes) -> Entry:
    """Parse `<mode> SP <type> SP <object> SP <padded size> TAB <path>`. A submodule's size is `-`, a lost object's `BAD`."""
    fields, path = line.split(b"\t", 1)
    mode, _, blob, size = fields.split()
    if size == b"BAD":
        raise git_errors.explain(Cause.CORRUPT, f"object {blob.decode('ascii')[:12]} is missing")
    return Entry(path, mode.decode("ascii"), blob.decode("ascii"), 0 if size == b"-" else int(size))


def difference_of(line: bytes, path: bytes) -> Difference:
    """Parse `:<old mode> SP <new mode> SP <old object> SP <new object> SP <status>` of `git diff-tree --raw`.

    Return (None, None) for a folder. The sizes are 0.
    """
    old_mode, new_mode, old, new, _ = line.removeprefix(b":").split()
    return _file(path, old_mode, old), _file(path, new_mode, new)


def _file(path: bytes, mode: bytes, blob: bytes) -> Entry | None:
    text = mode.decode("ascii")
    return None if text in {_NOTHING, DIRECTORY} else Entry(path, text, blob.decode("ascii"), 0)


def root_of(commit: str) -> str:
    """Return git's name for the tree of a commit. git refuses it for any other object, which a host's HEAD may be."""
    return f"{commit}^{{commit}}^{{tree}}"


def stored_entries(raw: bytes, id_bytes: int) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield mode, name and object id of each entry of a tree object. Raises `GitError` where it is malformed."""
    position = 0
    while match := _STORED[id_bytes].match(raw, position):
        mode, name, oid = match.groups()
        yield mode, name, oid
        position = match.end()
    if position < len(raw):
        raise git_errors.explain(Cause.CORRUPT, "too-short tree object, or a malformed one")


def canonical_mode(mode: bytes) -> str:
    """Return the mode of a stored entry as git prints it, whatever its spelling."""
    number = int(mode, 8)
    if stat.S_ISREG(number):
        return "100755" if number & 0o100 else "100644"
    return DIRECTORY if stat.S_ISDIR(number) else SYMLINK if stat.S_ISLNK(number) else SUBMODULE


def unsorted_tree(path: bytes) -> GitError:
    """Return the error for a tree that is not sorted.

    git sorts trees, so this one was made by hand and has no defined meaning.
    """
    message = f"its tree is malformed ({git_errors.quoted(path, '', 100)!r} is out of order or duplicated)"
    return git_errors.explain(Cause.OTHER, message)


_BLOCK = 65536


def records(process: subprocess.Popen[bytes], max_bytes: int) -> Generator[bytes]:
    """Yield NUL-separated records of the process's output, and end the process when the iteration ends.

    Raises `GitError` if it fails, prints more than `max_bytes`, or prints nothing for `LOCAL_TIMEOUT` seconds, for example
    because the disk does not answer.
    """
    assert process.stdout
    try:
        parts: list[bytes] = []  # of a record that is not complete; a name may be megabytes long
        size = 0
        while block := _read(process.stdout.fileno()):
            size += len(block)
            if size > max_bytes:
                raise git_errors.explain(Cause.TOO_LARGE, f"its list of files exceeds {format_bytes(size)}")
            first, *more = block.split(b"\0")
            parts.append(first)
            for piece in more:
                yield b"".join(parts)
                parts = [piece]
        finished = process.wait(git.LOCAL_TIMEOUT) == 0
    finally:
        errors = git.stop(process)
    if not finished:
        raise git_errors.classify(errors, ended=process.returncode, local=True)


def _read(fd: int) -> bytes:
    """Return the next block; empty at the end."""
    wait_for_output(fd, git.LOCAL_TIMEOUT)
    return os.read(fd, _BLOCK)


def wait_for_output(fd: int, seconds: float) -> None:
    """Wait until there is something to read, or the end. Raises `GitError` after `seconds`."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    if not waiting.poll(seconds * 1000):
        raise git_errors.explain(Cause.TIMEOUT, f"git printed nothing for {seconds:.0f} seconds")
