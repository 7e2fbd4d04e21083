"""A complete Docora started by `up`, with its own data directory, SQLite and the embedded Valkey."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.support.commands import run_script
from tests.support.shared import copy

PROJECT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """Return a port that is free, and that no socket gets unless it asks for it: it is not an ephemeral port."""
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = 10_000 + secrets.randbelow(first_ephemeral - 10_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def port_is_taken(host: str, port: int) -> bool:
    """Return whether a server listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


class Instance:
    """All its files are below `directory`. Commands run in `folder`, which is `directory` unless a test changes it."""

    def __init__(self, directory: Path) -> None:
        self.directory = self.folder = directory
        self.data = directory / "data"
        self.port = free_port()
        self.log = directory / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return kept | {"DATA_DIR": str(self.data), "DOCORA_ENV_FILE": os.devnull}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(PROJECT / "manage.py"), *arguments]

    def use_database(self, migrated: Path) -> None:
        """Begin with a copy of this database: a migration takes most of the first start."""
        self.data.mkdir(mode=0o700)
        copy(migrated, self.data / "docora.sqlite3")

    def start(self, *options: str) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command("up", "--port", str(self.port), *options),
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        self.wait_until(lambda: b"Ctrl-C" in self.log.read_bytes(), 90)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_script(PROJECT / "manage.py", *arguments, environment=self.environment, folder=self.folder)

    def wait_until(self, condition: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def family(self) -> dict[int, str]:
        """Return pid → command line of the instance's living processes, which have its directory in their environment."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environment = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                status = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if b"=" + os.fsencode(self.directory) in environment and status != "Z":
                found[int(entry.name)] = command
        return found

    def pids(self, command: str) -> list[int]:
        """Return the processes of this instance whose command line contains `command`, oldest first."""
        return sorted(pid for pid, line in self.family().items() if command in line)

    def end(self) -> int | None:
        """Stop it and return its exit status, or None if it was never started."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
        return self.process.returncode if self.process else None
