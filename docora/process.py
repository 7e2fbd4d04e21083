"""Child processes that must not outlive their parent.

A supervisor killed with SIGKILL cannot clean up, but the kernel can: with `PR_SET_PDEATHSIG` it signals the child when
the parent's thread ends. This works on Linux only. Elsewhere these functions do nothing, and fencing in the database
(engine.md §4) still keeps an orphan from doing harm.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(sig: int = signal.SIGKILL) -> None:
    """Ask the kernel to send `sig` to this process when its parent ends. For use as `Popen(preexec_fn=…)`."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0)


def die_with(parent_pid: int, sig: int = signal.SIGKILL) -> None:
    """Do the same, and kill this process now if the parent with this PID has already ended."""
    die_with_parent(sig)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), sig)
