"""Processes that must not outlive the one that started them.

A supervisor that is killed with -9 can run no clean-up; only the kernel can. `PR_SET_PDEATHSIG` makes it signal the
child when the parent's thread ends. It is Linux only; elsewhere the functions do nothing and fencing in the database
(engine.md §4) still keeps an orphan from doing harm.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(sig: int = signal.SIGKILL) -> None:
    """Ask the kernel to send `sig` to this process when its parent ends; made for `Popen(preexec_fn=…)`."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0)


def die_with(parent_pid: int, sig: int = signal.SIGKILL) -> None:
    """The same for a process that knows its parent's pid; ends at once if that parent is gone already."""
    die_with_parent(sig)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), sig)
