"""The contents and sizes of objects, by their ids."""

import contextlib
import fcntl
import io
import os
import select
import subprocess
from collections import deque
from collections.abc import Buffer, Callable, Generator, Iterable, Iterator, Sequence
from itertools import batched
from typing import Self

from docora.text import format_bytes
from repositories_app.git import errors as git_errors
from repositories_app.git import process as git
from repositories_app.git.exceptions import Cause, GitError

MAX_TREE_BYTES = 64 << 20
"""Largest tree object that is read. It has more than a million files in one folder."""
_BATCH_OBJECTS = 400  # object names per write to `cat-file`
_EXIT_SECONDS = 0.5  # how long git may take to end once it prints nothing more
_QUESTION_BYTES = 80  # at most, with the command and the name


class BlobReader:
    """Reads contents and sizes through one `git cat-file --batch-command`, which the first call starts.

    Use it as a context manager. git unpacks in the background what `prefetch` has requested, as much as fits into the
    pipe. Every call raises `GitError` if an object cannot be read, or if git prints nothing for `timeout` seconds.
    """

    BLOCK = 1 << 18
    _PIPE = 1 << 20

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]], timeout: float) -> None:
        self._start = start
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._out: io.BufferedReader  # set with the process
        self._ahead: deque[str] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End git. The next call starts it again."""
        process, self._process = self._process, None
        self._ahead.clear()
        if process:
            git.stop(process)

    def prefetch(self, blobs: Sequence[str]) -> None:
        """Request the small contents that will be read next, in this order.

        `read` skips those that it does not need. Any other call discards those that were not read. Otherwise both git
        and this process would block on a full pipe.
        """
        self._skip_ahead()
        ahead = blobs[: self._batch_size()]
        self._ask("contents", ahead)
        self._ahead.extend(ahead)

    def read(self, blobs: Sequence[str]) -> Iterator[bytes]:
        """Yield the whole contents, in order. Each is read into memory, so use this for small files."""
        for part in self._batches(blobs):
            asked = self._ahead
            missing = part[_in_order(part, asked) :]
            if missing:
                self._ask("contents", missing)
                asked.extend(missing)
            for blob in part:
                while (found := asked.popleft()) != blob:
                    self._content(found)
                yield self._content(blob)

    def stream(self, blob: str) -> Iterator[bytes]:
        """Yield one content in blocks. Read it to its end before the next call."""
        self._skip_ahead()
        self._ask("contents", [blob])
        with self._closed_on_error():
            left = self._size(blob)
            while left:
                block = self._out.read(min(self.BLOCK, left))
                if not block:
                    raise self._unreadable(blob)
                left -= len(block)
                yield block
            self._out.read(1)

    def sizes(self, blobs: Sequence[str]) -> Iterator[int]:
        """Yield the objects' sizes in bytes, in order. Read all of them before the next call."""
        self._skip_ahead()
        with self._closed_on_error():
            for part in self._batches(blobs):
                self._ask("info", part)
                yield from (self._header(blob)[1] for blob in part)

    def trees(self, names: Sequence[str]) -> Generator[bytes]:
        """Yield the contents of tree objects as git stores them, in order.

        Read all of them, or close the generator, before the next call.
        """
        self._skip_ahead()
        with self._closed_on_error():
            for part in self._batches(names):
                self._ask("contents", part)
                for name in part:
                    kind, size = self._header(name)
                    if kind != b"tree":
                        raise git_errors.explain(Cause.CORRUPT, f"object {name[:12]} is not a folder")
                    if size > MAX_TREE_BYTES:
                        listing = f"its listing takes {format_bytes(size)}. Split the folder."
                        raise git_errors.too_large(f"The repository has a folder with too many files: {listing}")
                    yield self._body(name, size)

    def is_commit(self, name: str) -> bool:
        """Return whether this object is a commit."""
        self._skip_ahead()
        with self._closed_on_error():
            self._ask("info", [name])
            return self._header(name)[0] == b"commit"

    def has(self, commit: str) -> bool:
        """Return whether the commit and its tree are here."""
        self._skip_ahead()
        with self._closed_on_error():
            self._ask("info", [root_of(commit)])
            return len(self._out.readline().split()) == 3

    def _skip_ahead(self) -> None:
        while self._ahead:
            self._content(self._ahead.popleft())

    def _content(self, blob: str) -> bytes:
        with self._closed_on_error():
            return self._body(blob, self._size(blob))

    def _body(self, name: str, size: int) -> bytes:
        content = self._out.read(size)
        if len(content) != size or not self._out.read(1):
            raise self._unreadable(name)
        return content

    def _batches(self, names: Sequence[str]) -> Iterable[Sequence[str]]:
        return batched(names, self._batch_size()) if names else ()

    def _batch_size(self) -> int:
        """Return how many queries to write at once: at most half of git's input pipe, so that writing never blocks.

        Linux makes a user's pipes smaller once the user has many of them.
        """
        process = self._process or self._open()
        assert process.stdin
        capacity = fcntl.fcntl(process.stdin, fcntl.F_GETPIPE_SZ)
        return max(1, min(_BATCH_OBJECTS, capacity // (2 * _QUESTION_BYTES)))

    def _ask(self, command: str, names: Sequence[str]) -> None:
        if not names:
            return
        process = self._process or self._open()
        assert process.stdin
        try:
            process.stdin.write("".join(f"{command} {name}\n" for name in names).encode("ascii"))
            process.stdin.flush()
        except BrokenPipeError:
            error = self._unreadable(names[0])
            self.close()
            raise error from None

    def _open(self) -> subprocess.Popen[bytes]:
        self._process = process = self._start()
        assert process.stdout
        with contextlib.suppress(OSError):  # a system may allow less
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, self._PIPE)
        self._out = io.BufferedReader(_Pipe(process.stdout.fileno(), self._timeout), self.BLOCK)
        return process

    def _size(self, blob: str) -> int:
        kind, size = self._header(blob)
        if kind != b"blob":  # a tree made by hand may call anything a file
            raise git_errors.explain(Cause.CORRUPT, f"object {blob[:12]} is not the content of a file")
        return size

    def _header(self, name: str) -> tuple[bytes, int]:
        """Read the line that an answer begins with: the object's type and its size."""
        header = self._out.readline().split()
        if len(header) != 3:
            raise self._unreadable(name)
        return header[1], int(header[2])

    def _unreadable(self, name: str) -> GitError:
        """Return the error for an object that git has not printed: the mirror is damaged, unless git was killed."""
        process = self._process
        assert process
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EXIT_SECONDS)  # git may be about to end; after a missing object, it keeps running
        if process.returncode is not None and process.returncode < 0:
            return git_errors.classify(b"", ended=process.returncode, local=True)
        return git_errors.explain(Cause.CORRUPT, f"object {name[:12]} cannot be read")

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """End git after an error, because it is unknown which answer would come next."""
        try:
            yield
        except BaseException:
            self.close()
            raise


class _Pipe(io.RawIOBase):
    """git's output. Reading raises `GitError` if git prints nothing for `timeout` seconds."""

    def __init__(self, fd: int, timeout: float) -> None:
        self._fd, self._timeout = fd, timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        waiting = select.poll()
        waiting.register(self._fd, select.POLLIN)
        if not waiting.poll(self._timeout * 1000):
            raise git_errors.explain(Cause.TIMEOUT, f"git printed nothing for {self._timeout:.0f} seconds")
        return os.readv(self._fd, [buffer])


def root_of(commit: str) -> str:
    """Return git's name for the tree of a commit. git refuses it for any other object, which a host's HEAD may be."""
    return f"{commit}^{{commit}}^{{tree}}"


def _in_order(wanted: Sequence[str], asked: Iterable[str]) -> int:
    """Return how many of the first `wanted` blobs were requested, in this order."""
    count = 0
    for blob in asked:
        if count < len(wanted) and wanted[count] == blob:
            count += 1
    return count
