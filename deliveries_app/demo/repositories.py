"""Create bare git repositories for the demo and the tests, with plain git and without a checkout."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deliveries_app.demo import contents

Mode = Literal["100644", "100755", "120000", "160000"]

_AUTHOR = "Docora Demo <demo@docora.invalid>"
_DEMO_TIME = 1_767_225_600  # Unix seconds; fixed, so that the commit ids are the same everywhere
_REPOSITORIES = {
    "acme/handbook": ("main", contents.handbook),
    "acme/assets": ("main", contents.assets),
    "acme/legacy": ("master", contents.legacy),
    "acme/website": ("main", contents.website),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tree entry other than a regular file.

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


def make_demo_repositories(directory: Path) -> list[str]:
    """Create the demo's repositories as `directory/{owner}/{name}.git` and return their names.

    Existing ones are left alone. A new repository gets its final name only once it is complete.
    """
    for name, (branch, files) in _REPOSITORIES.items():
        target = directory / f"{name}.git"
        if target.exists():
            continue
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        init(unfinished, branch)
        commit(unfinished, files(), "Initial content", when=_DEMO_TIME)
        unfinished.rename(target)
    return list(_REPOSITORIES)


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


def git(repository: Path, *arguments: str, stdin: Iterable[bytes] = ()) -> bytes:
    """Run git in a bare repository and return its output. Raises CalledProcessError, whose `stderr` says why."""
    finished = subprocess.run(
        ["git", "-C", str(repository), *arguments],
        env=git_environment(),
        input=b"".join(stdin),
        capture_output=True,
        check=True,
    )
    return finished.stdout


def git_environment(config: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which git uses only the given `config` and never prompts."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    settings = {"gc.auto": "0", "maintenance.auto": "false"} | dict(config or {})
    for number, (name, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return environment | {"GIT_CONFIG_COUNT": str(len(settings))}
