"""The web process: granian on one listening socket, which may be older than the process and outlive it.

granian by itself opens a listener for each of its processes (SO_REUSEPORT), and the kernel resets whoever waits at one that
is closed. Here they share one socket. So SIGHUP, on which granian starts a new process and then ends the old one, loses no
connection; and a socket that systemd keeps (`docora/deploy/docora-web.socket`) lets clients wait while everything restarts.

One that ends first stops accepting and waits a moment: granian closes what was accepted and has not asked anything yet.

    python -m docora.server.web HOST PORT THREADS APPLICATION
"""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from typing import Any

from granian._granian import SocketHolder
from granian._internal import load_target
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.mp import MPServer, WorkerProcess

from docora.process import die_with

_GIVEN_SOCKET = 3  # the first descriptor after stdin, stdout and stderr, by sd_listen_fds(3)
_BACKLOG = 1024  # connections that wait to be accepted, as granian has it
_SETTLE_SECONDS = 1.0  # for what was accepted last to ask
_STOP_SECONDS = 10  # for requests under way, before their process is killed


class WebServer(MPServer):
    """granian's server on a socket that is there already."""

    def __init__(self, listener: socket.socket, threads: int, application: str) -> None:
        super().__init__(
            application,
            interface=Interfaces.WSGI,
            blocking_threads=threads,
            backlog=_BACKLOG,
            websockets=False,
            workers_kill_timeout=_STOP_SECONDS,
            log_level=LogLevels.error,  # it warns of threads in any number that is more than it would choose
        )
        self._listener = listener

    def run(self) -> None:
        self.serve(target_loader=partial(_load, os.getpid(), self._listener.fileno()))

    def _reload(self, *args: Any) -> None:
        """On SIGHUP: what runs is replaced only by what can start. granian would end with a new process that cannot."""
        problem = _why_it_cannot_start()
        if problem:
            self.reload_signal = False
            self.main_loop_interrupt.clear()
            print(f"Nothing is replaced, the web process goes on as it was. {problem}", file=sys.stderr, flush=True)  # noqa: T201
        else:
            super()._reload(*args)  # type: ignore[no-untyped-call]

    def _spawn_worker(self, *args: Any, **kwargs: Any) -> WorkerProcess:
        worker = super()._spawn_worker(*args, **kwargs)
        end = worker.terminate

        def settle_and_end() -> None:
            worker.interrupt_by_parent = True
            if worker.inner.is_alive():
                os.kill(worker.inner.pid, signal.SIGUSR1)
                time.sleep(_SETTLE_SECONDS)
            end()  # type: ignore[no-untyped-call]

        worker.terminate = settle_and_end  # type: ignore[method-assign]
        return worker

    def _init_shared_socket(self) -> None:
        self._listener.set_inheritable(True)
        self._sso = self._listener
        self._shd = SocketHolder(self._listener.fileno(), False, _BACKLOG)  # type: ignore[call-arg, assignment]


def _why_it_cannot_start() -> str:
    """What is wrong with the code and the settings of now, in a sentence; empty if nothing is."""
    try:
        check = subprocess.run([sys.executable, "-m", "docora", "check"], stderr=subprocess.PIPE, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "manage.py check did not end within a minute."
    return (check.stderr.strip() or "manage.py check failed.") if check.returncode else ""


def _load(parent: int, listener: int, application: str) -> Any:
    """The application, in the process that serves it and must not outlive the one that watches it."""
    die_with(parent, signal.SIGTERM)
    signal.signal(signal.SIGUSR1, lambda *_: _stop_accepting(listener))
    return load_target(application)


def _stop_accepting(listener: int) -> None:
    """Put a socket that nobody connects to in the place of the shared one, for this process alone."""
    place = os.fstat(listener)
    silent = socket.create_server(("127.0.0.1", 0))
    silent.setblocking(False)
    for name in os.listdir("/dev/fd"):  # noqa: PTH208  the server may hold copies of the descriptor
        try:
            if os.path.samestat(os.fstat(int(name)), place):
                os.dup2(silent.fileno(), int(name))
        except OSError:
            continue  # the one that the folder was read by


def socket_is_given() -> bool:
    """Whether systemd has passed a listening socket to this process."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def listening_socket(host: str, port: int) -> socket.socket:
    """The one that was given, whatever its address is, or a new one. Raises OSError where there can be none."""
    if socket_is_given():
        return socket.socket(fileno=_GIVEN_SOCKET)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def main(host: str, port: str, threads: str, application: str) -> None:
    try:
        listener = listening_socket(host, int(port))
    except OSError as error:
        raise SystemExit(f"The web process cannot listen at {host}, port {port}: {error.strerror}.") from None
    WebServer(listener, int(threads), application).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
