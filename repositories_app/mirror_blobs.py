"""The contents of files, by blob id."""

import subprocess
from collections.abc import Iterator, Sequence

from repositories_app import git, git_errors
from repositories_app.exceptions import Cause, GitError

_BATCH_OBJECTS = 500  # object names per write to `cat-file`; with 41 bytes each they fit into the pipe


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
        if header[1] != b"blob":  # a tree made by hand may call anything a file
            raise git_errors.explain(Cause.CORRUPT, f"object {blob[:12]} is not the content of a file")
        return int(header[2])

    def _damaged(self, blob: str) -> GitError:
        return git_errors.explain(Cause.CORRUPT, f"object {blob[:12]} cannot be read")
