"""The web process: granian on one listening socket, which may be older than the process and outlive it.

granian by itself opens a listener for each of its processes (SO_REUSEPORT), and the kernel resets whoever waits at one that
is closed. Here they share one socket. So SIGHUP, on which granian starts a new process and then ends the old one, loses no
connection; and a socket that systemd keeps (`docora/deploy/docora-web.socket`) lets clients wait while everything restarts.

    python -m docora.web_server HOST PORT THREADS APPLICATION
"""

import os
import socket
import sys

from granian._granian import SocketHolder
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.mp import MPServer

_GIVEN_SOCKET = 3  # the first descriptor after stdin, stdout and stderr, by sd_listen_fds(3)
_BACKLOG = 1024  # connections that wait to be accepted, as granian has it
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

    def _init_shared_socket(self) -> None:
        self._listener.set_inheritable(True)
        self._sso = self._listener
        self._shd = SocketHolder(self._listener.fileno(), False, _BACKLOG)  # type: ignore[call-arg, assignment]


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
    WebServer(listener, int(threads), application).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
