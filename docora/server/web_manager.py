"""Run one web process on a listening socket, and replace it on SIGHUP.

The socket outlives the web process, so clients that connect during a replacement wait in its queue. On SIGHUP, start a new
process, which reads the current code and `.env`, and stop the old one once the new one has loaded the application. If
loading fails, keep the old one. SIGINT and SIGTERM stop everything. If the web process dies, this one exits too, and the
supervisor restarts both.

    python -m docora.server.web_manager LISTENER THREADS APPLICATION
"""

import os
import select
import signal
import subprocess
import sys

from docora.process import die_with_parent, end

_SIGNALS = {signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM}
_START_SECONDS = 60.0
_STOP_SECONDS = 11.0  # a web process drains for 10


def main(listener: str, threads: str, application: str) -> int:
    # Without a handler the signal may be discarded, and sigwait misses it.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    current = _start(listener, threads, application)
    draining: list[subprocess.Popen[bytes]] = []
    while current:
        match signal.sigwait(_SIGNALS):
            case signal.SIGHUP:
                problem = _startup_problem()
                new = None if problem else _start(listener, threads, application)
                if new:
                    current.terminate()
                    draining.append(current)
                    current = new
                else:
                    text = f"The new web process did not start, so the old one keeps running. {problem}"
                    print(text.strip(), file=sys.stderr, flush=True)  # noqa: T201
            case signal.SIGCHLD:
                draining = [process for process in draining if process.poll() is None]
                if current.poll() is not None:
                    break
            case _:
                # If no other process has the socket, new clients are now refused instead of reset later.
                os.close(int(listener))
                end([*draining, current], _STOP_SECONDS)
                return 0
    return 1


def _start(listener: str, *arguments: str) -> subprocess.Popen[bytes] | None:
    """Return a web process that has loaded its application, or None if it failed or took too long."""
    ready, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "docora.server.web", listener, str(write_end), *arguments],
        pass_fds=[int(listener), write_end],
        start_new_session=True,
        preexec_fn=_prepare_child,
    )
    os.close(write_end)
    with open(ready, "rb", buffering=0) as pipe:  # noqa: PTH123  a descriptor
        if select.select([pipe], [], [], _START_SECONDS)[0] and pipe.read(1):
            return process
    process.kill()
    process.wait()
    return None


def _prepare_child() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    die_with_parent(signal.SIGTERM)


def _startup_problem() -> str:
    """Return what is wrong with the current code and settings, or an empty string if nothing is."""
    try:
        check = subprocess.run([sys.executable, "-m", "docora", "check"], stderr=subprocess.PIPE, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "manage.py check did not end within a minute."
    return (check.stderr.strip() or "manage.py check failed.") if check.returncode else ""


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
