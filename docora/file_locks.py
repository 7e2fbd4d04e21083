"""File locks between the processes of one machine. The kernel releases a lock when its last holder ends.

The holder of an exclusive lock may delete the lock file. A process that has already opened the old file notices this and
opens the new one.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_SECONDS = 0.1


@contextlib.contextmanager
def hold(path: Path, *, shared: bool, wait: bool = True, tick: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold the lock and yield its file descriptor. Child processes that inherit the descriptor hold the lock too.

    Call `tick` repeatedly while waiting. Without `wait`, raise BlockingIOError if another process holds the lock.
    """
    fd = _open(path)
    try:
        while True:
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                tick()
                time.sleep(_POLL_SECONDS)
                continue
            if _is_same_file(path, fd):
                break
            new = _open(path)
            os.close(fd)
            fd = new
        yield fd
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_same_file(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
