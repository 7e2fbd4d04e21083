"""Run Valkey, web, workers and sweep as children of one process, for `up`.

Each child runs in its own session, so that Ctrl-C in the terminal reaches only this process, which then stops the children in
order. A child that exits is restarted, after a longer delay each time. If this process is killed with -9, the kernel signals
every child (`docora.process`).
"""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

from django.conf import settings
from django.core.management.base import CommandError

from docora.process import die_with_parent, end

STOP_SECONDS = 12.0  # a worker stops within 8
_RESTART_DELAY, _MAX_RESTART_DELAY = 0.5, 15.0
_STABLE_SECONDS = 30.0
_SYSTEMD_SOCKET = 3  # the first descriptor after stdin, stdout and stderr, by sd_listen_fds(3)
_BACKLOG = 1024  # connections that wait to be accepted


@dataclass
class Child:
    """One process to keep running. It inherits `listener`, which stays open while it restarts.

    `ends_last`: the other children still use it while they stop.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    listener: socket.socket | None = None
    ends_last: bool = False
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restart_at: float | None = None  # once a restart is planned
    restart_delay: float = _RESTART_DELAY

    def start(self) -> None:
        self.started, self.restart_at = time.monotonic(), None
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, "PYTHONPATH": python_path(), **self.environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[self.listener.fileno()] if self.listener else [],
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Supervisor:
    """Start children, restart them, and stop them."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._write = report
        self._children: list[Child] = []
        self._stopping = False

    def add(self, child: Child) -> None:
        child.start()
        self._children.append(child)

    def watch(self) -> None:
        """Keep the children running until SIGINT, SIGTERM, or SIGHUP, which a closing terminal sends."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._request_stop)
        while not self._stopping:
            for child in self._children:
                if not child.running:
                    self._restart(child)
            time.sleep(0.2)

    def stop(self) -> None:
        """Ask the children to end, those with `ends_last` after the others. Kill those that take longer than `STOP_SECONDS`."""
        for child in self._children:
            if child.listener:
                child.listener.close()  # so that new clients are refused while the web process ends
        for last in (False, True):
            end([child.process for child in self._children if child.process and child.ends_last is last], STOP_SECONDS)
        self._children = []

    def _restart(self, child: Child) -> None:
        now = time.monotonic()
        if child.restart_at is None:
            code = child.process.returncode if child.process else None
            stable = now - child.started > _STABLE_SECONDS
            delay = _RESTART_DELAY if stable else child.restart_delay
            self._report(f"{child.name} ended with {code}; starting it again in {delay:g} s")
            child.restart_at = now + delay
            child.restart_delay = min(_MAX_RESTART_DELAY, delay * 2)
        elif now >= child.restart_at:
            try:
                child.start()
            except OSError as error:  # start it again later; the other children keep running
                self._report(f"{child.name} cannot be started: {error.strerror}")

    def _report(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the log's disk is full; the children keep running
            self._write(line)

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping = True


def python_path() -> str:
    """Return a PYTHONPATH with which children can import `docora` from any folder."""
    return os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))


def manage(*arguments: str) -> list[str]:
    """Return the command line of a `docora` command that works in any folder."""
    return [sys.executable, "-m", "docora", *arguments]


WEB_ENVIRONMENT = {"DOCORA_PROCESS": "web"}
"""Makes the settings of a web process use a pool of database connections."""


def web_command(listener: socket.socket, application: str = "docora.wsgi:application") -> list[str]:
    """Return the command line of the web process. It inherits the socket and reads its settings from the environment."""
    manager = [sys.executable, "-m", "docora.server.web_manager"]
    return [*manager, str(listener.fileno()), str(settings.WEB_THREADS), application]


def listening_socket() -> socket.socket:
    """Return the socket that systemd has passed, or else a new one on HOST and PORT.

    Raises CommandError if this process cannot listen there, for example because another one does.
    """
    if _has_socket_of_systemd():
        return socket.socket(fileno=_SYSTEMD_SOCKET)
    host, port = settings.HOST, settings.PORT
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CommandError(f"Port {port} on {host} is taken. Choose another one: --port {port + 1}.") from None
        reason = str(error.strerror).partition(" (while attempting")[0]  # `create_server` adds the address
        raise CommandError(f"Docora cannot listen on {host}, port {port}: {reason}. Check HOST and PORT.") from None


def require_free_port() -> None:
    """Raise CommandError if `listening_socket` would. Call this before work that would then be wasted."""
    if not _has_socket_of_systemd():
        listening_socket().close()


def _has_socket_of_systemd() -> bool:
    return os.environ.get("LISTEN_PID") == str(os.getpid())
