"""The contents of files, by blob id."""

import contextlib
import fcntl
import subprocess
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from repositories_app.git import errors as git_errors
from repositories_app.git import process as git
from repositories_app.git.exceptions import Cause, GitError

_BATCH_OBJECTS = 400  # object names per write to `cat-file`; twice as many, of 65 bytes each, fit into the pipe


class BlobReader:
    """Contents by blob id through one `git cat-file --batch`; use it as a context manager.

    git unpacks while its reader does something else, if it was asked ahead and the pipe holds what comes of it.
    """

    BLOCK = 1 << 18
    _PIPE = 1 << 20

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(OSError):  # a system may allow less
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, self._PIPE)
        self._in = process.stdin
        self._out = open(process.stdout.fileno(), "rb", buffering=self.BLOCK, closefd=False)  # noqa: SIM115
        self._ahead: deque[str] = deque()

    def __enter__(self) -> "BlobReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        git.stop(self._process)
        git.stderr_of(self._process)

    def ask_ahead(self, blobs: Sequence[str]) -> None:
        """These are wanted next, in this order, and small. What of them is not is read over then."""
        ahead = blobs[:_BATCH_OBJECTS]
        self._ask(ahead)
        self._ahead.extend(ahead)

    def read(self, blobs: Sequence[str]) -> Iterator[bytes]:
        """The whole contents, in order, asked for together: for files that fit into memory."""
        for start in range(0, len(blobs), _BATCH_OBJECTS):
            part = blobs[start : start + _BATCH_OBJECTS]
            asked = self._ahead
            missing = part[_in_order(part, asked) :]
            if missing:
                self._ask(missing)
                asked.extend(missing)
            for blob in part:
                while (found := asked.popleft()) != blob:
                    self._content(found)
                yield self._content(blob)

    def stream(self, blob: str) -> Iterator[bytes]:
        """One content in blocks; read it to its end before the next question."""
        while self._ahead:
            self._content(self._ahead.popleft())
        self._ask([blob])
        left = self._size(blob)
        while left:
            block = self._out.read(min(self.BLOCK, left))
            if not block:
                raise self._damaged(blob)
            left -= len(block)
            yield block
        self._out.read(1)

    def _content(self, blob: str) -> bytes:
        size = self._size(blob)
        content = self._out.read(size + 1)[:-1]
        if len(content) != size:
            raise self._damaged(blob)
        return content

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
        if header[1] != b"blob":  # a tree made by hand may call anything a file
            raise git_errors.explain(Cause.CORRUPT, f"object {blob[:12]} is not the content of a file")
        return int(header[2])

    def _damaged(self, blob: str) -> GitError:
        return git_errors.explain(Cause.CORRUPT, f"object {blob[:12]} cannot be read")


def _in_order(wanted: Sequence[str], asked: Iterable[str]) -> int:
    """How many of the wanted, from the first on, are among the asked, in their order."""
    count = 0
    for blob in asked:
        if count < len(wanted) and wanted[count] == blob:
            count += 1
    return count
