"""Locks on files that every process of this machine sees; the kernel frees them when their last holder ends.

Whoever holds one exclusively may remove its file: those who have opened it meanwhile notice, and open the one that took
its place.
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
    """Hold the lock; its descriptor, which children may inherit and then hold it as well.

    Raises BlockingIOError where somebody else holds it and `wait` is off; `tick` is called while it is waited for.
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
            if _lies_at(path, fd):
                break
            os.close(fd)
            fd = _open(path)
        yield fd
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lies_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
