"""The mirror of one repository on this machine: bare, shallow, a cache that may be deleted at any time.

Pure git, no models. Two file locks stand *beside* it: `fetch` (exclusive, for whoever adds objects) and `use` (shared
by readers, exclusive for removing and repacking). Git children inherit the locks' descriptors, so that a lock is free
only when nobody works any more, also after a kill -9.

Refs keep what is needed: `refs/docora/<watch>/run` the commit that a run reads, `refs/docora/<watch>/base` the commit
that a watch's rows equal.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from repositories_app import git
from repositories_app.exceptions import Cause, GitError

MAX_PACKS = 50
MAX_DIFF_PATHS = 2000
_ARGUMENT_BYTES = 100_000
_LOCK_POLL_SECONDS = 0.1
_BATCH_OBJECTS = 500  # object names per write to `cat-file`; with 41 bytes each they fit into the pipe


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a tree: `mode` as git writes it (`100644`, `100755`, `120000`, `160000`), `size` in bytes."""

    path: bytes
    mode: str
    blob: str
    size: int


class Mirror:
    """`directory` is `REPOS_DIR/{repository_id}.git`; it need not exist."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._fds: list[int] = []

    @contextlib.contextmanager
    def in_use(self, tick: git.Tick) -> Iterator[None]:
        """Hold the shared lock: nobody removes or repacks the mirror meanwhile."""
        with self._lock("use", fcntl.LOCK_SH, tick):
            yield

    def fetch(self, url: str, token: str, commit: str, watch: str, *, timeout: float, tick: git.Tick) -> str:
        """Have `commit`, or what HEAD is meanwhile where the host does not serve a commit by name; the commit that is
        there now, kept by the watch's `run` ref. Call it inside `in_use`."""
        with self._lock("fetch", fcntl.LOCK_EX, tick):
            self._prepare()
            ref = f"refs/docora/{watch}/run"
            if self.has(commit):
                self._git(["update-ref", ref, commit])
                return commit
            options = ["fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"]
            try:
                self._git([*options, "--", url, f"+{commit}:{ref}"], token=token, timeout=timeout, tick=tick)
            except GitError as error:
                if error.cause not in {Cause.OTHER, Cause.NOT_FOUND, Cause.NETWORK}:
                    raise
                self._git([*options, "--", url, f"+HEAD:{ref}"], token=token, timeout=timeout, tick=tick)
            return self._git(["rev-parse", "--verify", f"{ref}^{{commit}}"]).decode("ascii").strip()

    def has(self, commit: str) -> bool:
        """Whether the commit and its tree are here."""
        if not commit or not self.directory.exists():
            return False
        try:
            self._git(["cat-file", "-e", f"{commit}^{{tree}}"])
        except GitError:
            return False
        return True

    def keep_base(self, watch: str, commit: str) -> None:
        """Remember `commit` as what the watch's rows equal, and let its `run` ref go."""
        self._git(["update-ref", f"refs/docora/{watch}/base", commit])
        self._git(["update-ref", "-d", f"refs/docora/{watch}/run"])

    def tree(self, commit: str, paths: Sequence[bytes] | None = None) -> Iterator[Entry]:
        """The files of a commit in byte order of their paths, all or just those named, streaming."""
        arguments = ["ls-tree", "-r", "-l", "-z", "--full-tree", commit]
        if paths is None:
            yield from self._ls_tree(arguments)
            return
        for part in _slices(paths):
            wanted = set(part)
            named = [os.fsdecode(path) for path in part]
            yield from (entry for entry in self._ls_tree([*arguments, "--", *named]) if entry.path in wanted)

    def changed_paths(self, base: str, commit: str) -> list[bytes] | None:
        """The paths that differ between two commits, in byte order; None when they are more than a full plan is worth."""
        output = self._git(["diff-tree", "-r", "-z", "--name-only", "--no-renames", base, commit])
        paths = output.split(b"\0")[:-1]
        return sorted(set(paths)) if len(paths) <= MAX_DIFF_PATHS else None

    def repack_if_many(self, tick: git.Tick) -> bool:
        """Put many small packs into one and drop what no ref keeps, if nobody uses the mirror just now."""
        if len(list((self.directory / "objects" / "pack").glob("*.pack"))) <= MAX_PACKS:
            return False
        try:
            with (
                self._lock("use", fcntl.LOCK_EX, tick, wait=False),
                self._lock("fetch", fcntl.LOCK_EX, tick, wait=False),
            ):
                self._git(["repack", "-a", "-d", "-q"], timeout=1800.0, tick=tick)
                self._git(["prune", "--expire=now"], timeout=1800.0, tick=tick)
        except BlockingIOError:
            return False
        return True

    def remove(self, tick: git.Tick) -> None:
        """Delete the mirror once nobody uses it. Not inside `in_use`."""
        with self._lock("use", fcntl.LOCK_EX, tick), self._lock("fetch", fcntl.LOCK_EX, tick):
            shutil.rmtree(self.directory, ignore_errors=True)

    def blobs(self) -> "BlobReader":
        return BlobReader(
            git.start(["cat-file", "--batch"], directory=self.directory, fds=self._fds, stdin=subprocess.PIPE)
        )

    def _prepare(self) -> None:
        """Create the repository if it is not there, and clear what a killed writer left. Holds the `fetch` lock."""
        if not (self.directory / "HEAD").exists():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            git.run(["init", "--quiet", "--bare", "--template=", "--", str(self.directory)], fds=self._fds)
        for pattern in ("*.lock", "refs/**/*.lock", "objects/pack/tmp_*", "objects/**/tmp_obj_*"):
            for stale in self.directory.glob(pattern):
                stale.unlink(missing_ok=True)

    def _git(
        self, args: Sequence[str], *, token: str = "", timeout: float = git.LOCAL_TIMEOUT, tick: git.Tick | None = None
    ) -> bytes:
        return git.run(args, directory=self.directory, token=token, fds=self._fds, timeout=timeout, tick=tick)

    def _ls_tree(self, arguments: Sequence[str]) -> Iterator[Entry]:
        process = git.start(arguments, directory=self.directory, fds=self._fds)
        assert process.stdout
        try:
            rest = b""
            while block := process.stdout.read(65536):
                *lines, rest = (rest + block).split(b"\0")
                yield from map(_entry, lines)
            finished = process.wait(git.LOCAL_TIMEOUT) == 0
        finally:
            git.stop(process)
            errors = git.stderr_of(process)
        if not finished:
            raise git.classify(errors, with_token=False)

    @contextlib.contextmanager
    def _lock(self, name: str, kind: int, tick: git.Tick, *, wait: bool = True) -> Iterator[None]:
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(f"{self.directory}.{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not wait:
                        raise
                    tick()
                    time.sleep(_LOCK_POLL_SECONDS)
            self._fds.append(fd)
            try:
                yield
            finally:
                self._fds.remove(fd)
        finally:
            os.close(fd)


def _entry(line: bytes) -> Entry:
    """`<mode> SP <type> SP <object> SP <padded size> TAB <path>`; a submodule's size is `-`, a lost object's `BAD`."""
    facts, path = line.split(b"\t", 1)
    mode, _, blob, size = facts.split()
    if size == b"BAD":
        raise git.explain(Cause.CORRUPT, f"object {blob.decode('ascii')[:12]} is missing", with_token=False)
    return Entry(path, mode.decode("ascii"), blob.decode("ascii"), 0 if size == b"-" else int(size))


def _slices(paths: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The paths in portions that fit on a command line."""
    part: list[bytes] = []
    size = 0
    for path in paths:
        if part and size + len(path) > _ARGUMENT_BYTES:
            yield part
            part, size = [], 0
        part.append(path)
        size += len(path) + 1
    if part:
        yield part


class BlobReader:
    """Contents by blob id through one `git cat-file --batch`; use it as a context manager."""

    BLOCK = 1 << 18

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        assert process.stdin
        assert process.stdout
        self._in, self._out = process.stdin, process.stdout

    def __enter__(self) -> "BlobReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        git.stop(self._process)
        git.stderr_of(self._process)

    def read(self, blobs: Sequence[str]) -> Iterator[bytes]:
        """The whole contents, in order, asked for together: for files that fit into memory."""
        for start in range(0, len(blobs), _BATCH_OBJECTS):
            part = blobs[start : start + _BATCH_OBJECTS]
            self._ask(part)
            for blob in part:
                size = self._size(blob)
                content = self._out.read(size + 1)[:-1]
                if len(content) != size:
                    raise self._damaged(blob)
                yield content

    def stream(self, blob: str) -> Iterator[bytes]:
        """One content in blocks; read it to its end before the next question."""
        self._ask([blob])
        left = self._size(blob)
        while left:
            block = self._out.read(min(self.BLOCK, left))
            if not block:
                raise self._damaged(blob)
            left -= len(block)
            yield block
        self._out.read(1)

    def _ask(self, blobs: Sequence[str]) -> None:
        try:
            self._in.write("".join(f"{blob}\n" for blob in blobs).encode("ascii"))
            self._in.flush()
        except BrokenPipeError:
            raise self._damaged(blobs[0]) from None

    def _size(self, blob: str) -> int:
        header = self._out.readline().split()
        if len(header) != 3:
            raise self._damaged(blob)
        return int(header[2])

    def _damaged(self, blob: str) -> GitError:
        return git.explain(Cause.CORRUPT, f"object {blob[:12]} cannot be read", with_token=False)
