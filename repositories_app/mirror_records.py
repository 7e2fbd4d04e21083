"""What a git process prints between NULs, streaming: its length and its silences are bounded."""

import os
import select
import subprocess
from collections.abc import Generator
from typing import IO

from docora.text import format_bytes
from repositories_app import git, git_errors
from repositories_app.exceptions import Cause

_BLOCK = 65536


def records(process: subprocess.Popen[bytes], max_bytes: int, patience: float = git.LOCAL_TIMEOUT) -> Generator[bytes]:
    """Record by record; the process is over when this is, however it ends. `GitError` when it fails, prints more than
    `max_bytes`, or prints nothing for `patience` seconds, as where the disk does not answer."""
    assert process.stdout
    try:
        parts: list[bytes] = []  # of a record that is not complete; a name may be megabytes long
        size = 0
        while block := _read(process.stdout, patience):
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
        git.stop(process)
        errors = git.stderr_of(process)
    if not finished:
        raise git_errors.classify(errors, ended=process.returncode, local=True)


def _read(pipe: IO[bytes], patience: float) -> bytes:
    """The next block, empty at the end."""
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    if not waiting.poll(patience * 1000):
        raise git_errors.explain(Cause.TIMEOUT, f"git printed nothing for {patience:.0f} seconds")
    return os.read(pipe.fileno(), _BLOCK)
