"""Create and change bare git repositories, with plain git and without a checkout."""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deliveries_app.demo.repositories import git

_AUTHOR = "Docora Tests <tests@docora.invalid>"
Mode = Literal["100644", "100755", "120000", "160000"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tree entry of any kind. Plain bytes stand for an ordinary file.

    `content` is the content of a file, the target of a symbolic link, or the hexadecimal commit id of a submodule.
    """

    content: bytes
    mode: Mode = "100644"

    @classmethod
    def executable(cls, content: bytes) -> "Entry":
        return cls(content, "100755")

    @classmethod
    def symlink(cls, target: str) -> "Entry":
        return cls(os.fsencode(target), "120000")

    @classmethod
    def submodule(cls, commit_id: str) -> "Entry":
        return cls(commit_id.encode(), "160000")


Changes = Mapping[str, bytes | Entry | None]
"""Maps a path to its new content, or to None to delete it. Bytes that are not UTF-8 are decoded by `os.fsdecode`."""


def init(repository: Path, branch: str = "main", object_format: str = "sha1") -> None:
    """Create an empty bare repository, with its parent directories. HEAD points to `branch`."""
    repository.mkdir(parents=True)
    options = [f"--initial-branch={branch}", f"--object-format={object_format}", "--template="]
    git(repository, "init", "--quiet", "--bare", *options, ".")


def commit(
    repository: Path,
    changes: Changes,
    message: str = "Change",
    branch: str | None = None,
    *,
    replace: bool = False,
    when: int | None = None,
) -> str:
    """Add a commit to a bare repository and return its id.

    `branch` defaults to HEAD's branch and is created if it does not exist. With `replace`, the commit has no parent and
    contains only `changes`, like a force-push of a new history. `when` (Unix seconds) defaults to now.
    """
    branch = branch or git(repository, "symbolic-ref", "--short", "HEAD").decode().strip()
    ref = f"refs/heads/{branch}"
    parent = "" if replace else _tip(repository, ref)
    timestamp = f"{int(time.time()) if when is None else when} +0000"
    lines = [
        b"commit %b\nmark :1\n" % os.fsencode(ref),
        f"committer {_AUTHOR} {timestamp}\n".encode(),
        _data(message.encode()),
    ]
    if parent:
        lines.append(f"from {parent}\n".encode())
    lines.extend(_change(path, entry) for path, entry in changes.items())
    lines.append(b"get-mark :1\n")
    return git(repository, "fast-import", "--quiet", "--force", stdin=lines).decode().strip()


def _tip(repository: Path, ref: str) -> str:
    """Return the commit that a ref points to, or an empty string if there is no such ref."""
    if (loose := repository / ref).is_file():  # much faster than asking git
        return loose.read_text().strip()
    return git(repository, "for-each-ref", "--format=%(objectname)", ref).decode().strip()


def _change(path: str, entry: bytes | Entry | None) -> bytes:
    quoted = re.sub(rb'["\\\n]', lambda found: {b"\n": rb"\n"}.get(found[0], b"\\" + found[0]), os.fsencode(path))
    if entry is None:
        return b'D "%b"\n' % quoted
    if isinstance(entry, bytes):
        entry = Entry(entry)
    if entry.mode == "160000":
        return b'M 160000 %b "%b"\n' % (entry.content, quoted)
    return b'M %b inline "%b"\n%b' % (entry.mode.encode(), quoted, _data(entry.content))


def _data(content: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(content), content)
