"""Stop this process, end its children even if it is killed, and name processes so that others can tell whether they run.

A supervisor killed with SIGKILL cannot clean up, but the kernel can: with `PR_SET_PDEATHSIG` it signals the child when
the parent's thread ends. If that fails, fencing in the database (engine.md §4) still keeps an orphan from doing harm.
"""

import contextlib
import ctypes
import functools
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_stopping = threading.Event()


def stopping() -> bool:
    """Return whether this process was asked to stop. If so, a job must send nothing new and end within seconds."""
    return _stopping.is_set()


def request_stop(signum: int = 0, frame: FrameType | None = None) -> None:
    """Handle SIGTERM in a work-horse and in the sweep: only set a flag, so that requests in flight can finish."""
    _stopping.set()


def die_with_parent(sig: int = signal.SIGKILL) -> None:
    """Ask the kernel to send `sig` to this process when its parent ends. For use as `Popen(preexec_fn=…)`."""
    _libc.prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0)


def die_with_parent_pid(parent_pid: int) -> None:
    """Call `die_with_parent`, and kill this process now if the parent with this PID has already ended."""
    die_with_parent()
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def with_parent_death_signal(command: Sequence[str], sig: int) -> list[str]:
    """Wrap a command line so that the program receives `sig` when the thread that started it ends.

    Unlike `die_with_parent`, this runs no Python in the child. So it is safe in a process with threads, and `subprocess`
    can use `vfork`, which is faster.
    """
    return ["setpriv", "--pdeathsig", signal.Signals(sig).name.removeprefix("SIG"), "--", *command]


def with_limits(command: Sequence[str], limits: Mapping[str, int]) -> list[str]:
    """Wrap a command line so that the program and its children run with resource limits.

    `limits` maps `data` (memory) and `fsize` (size of a written file) to bytes. If this process has a lower limit, that one
    applies.
    """
    if not limits:
        return list(command)
    options = []
    for name, limit in limits.items():
        allowed = _allowed(getattr(resource, f"RLIMIT_{name.upper()}"), limit)
        options.append(f"--{name}={allowed}:{allowed}")
    return ["prlimit", *options, "--", *command]


def limit_child(pid: int, memory: int, cpu_seconds: int | None = None) -> None:
    """Limit a child's memory in bytes and its processor time, without the cost of starting another program.

    The limits are set a moment after the child's start. Processes that it has already started don't have them. A child that
    uses more processor time ends with SIGXCPU, and dumps no core.
    """
    memory = _allowed(resource.RLIMIT_DATA, memory)
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_DATA, (memory, memory))
        if cpu_seconds is not None:
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.prlimit(pid, resource.RLIMIT_CPU, (_allowed(resource.RLIMIT_CPU, cpu_seconds), hard))
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _allowed(resource_number: int, limit: int) -> int:
    hard = resource.getrlimit(resource_number)[1]
    return limit if hard == resource.RLIM_INFINITY else min(limit, hard)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group that a child leads, unless the child has ended and its ID may have been reused."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def end(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Ask children that lead process groups to end, and wait. Kill the groups of those that take longer than `seconds`."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))
        kill_group(process)
        process.wait()


def process_name(pid: int = 0) -> str:
    """Return a name that no other process ever has, for the process with this PID (by default, this process).

    The name contains the host, the boot, the PID namespace, the PID and the start time. Return an empty string if there
    is no such process, or if the kernel does not provide these values.
    """
    pid = pid or os.getpid()
    try:
        return f"{_pid_scope()} {pid} {_state_and_start(pid)[1]}"
    except OSError:
        return ""


def has_ended(name: str) -> bool:
    """Return whether the process that `process_name` named has certainly ended.

    Return False if it ran on another machine or in another PID namespace, such as another container: this process cannot
    know.
    """
    place, *process = name.rsplit(" ", 2)
    try:
        if not process or place != _pid_scope():
            return False
        pid, start = process
        os.kill(int(pid), 0)
        state, started = _state_and_start(int(pid))
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's, or hidden
        return False
    return started != start or state in "ZX"


@functools.cache
def _pid_scope() -> str:
    """Return the scope in which a PID is unique: the host, its boot and the PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"


def _state_and_start(pid: int) -> tuple[str, str]:
    """Return the state, such as `S` or `Z`, and the start time in clock ticks since boot (`man proc_pid_stat`)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]
