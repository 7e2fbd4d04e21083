"""Real servers for the tests, and the promise that nothing of them is left behind, however the tests end.

Two things may be left: processes and files. A server gets a signal from the kernel when its parent ends
(`die_with_parent`), which no way of dying can prevent. A folder is removed by its keeper, a small process that waits for
a lock: this process and every server share that lock's descriptor, so the kernel releases it exactly when the last of
them is gone, be it after a clean stop, Ctrl-C or `kill -9`.
"""

import fcntl
import functools
import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self, TypedDict

from docora.process import die_with_parent

_KEEPER = """
import fcntl, os, shutil, sys
fcntl.flock(os.open(os.path.join(sys.argv[1], "lock"), os.O_RDONLY), fcntl.LOCK_EX)
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""
_MAX_BASE_PATH = 50  # bytes; with what is added below it, a socket's path stays under 100 (the kernel's limit is 108)


def _temporary_base() -> Path:
    """The system's folder for temporary files, unless its path is too long for sockets or closed to other users."""
    base = Path(tempfile.gettempdir()).resolve()
    if len(os.fsencode(base)) > _MAX_BASE_PATH:
        return Path("/tmp")
    return base if all(folder.stat().st_mode & stat.S_IXOTH for folder in (base, *base.parents)) else Path("/tmp")


class ScratchFolder:
    """A temporary folder with a short path, which is gone once this process and all servers in it have ended."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="docora-test-", dir=_temporary_base()))
        self.path.chmod(0o711)  # a server that runs as another user passes through to its own folder
        self.lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER, str(self.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a pipe that it held open would keep `make test | tee` waiting
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the tests; the keeper still has work to do then
        )

    def make(self, name: str, owner: pwd.struct_passwd | None = None) -> Path:
        """A new private folder in this one, of `owner` (default: the user who runs this)."""
        folder = self.path / name
        folder.mkdir(mode=0o700)
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        return folder

    def close(self) -> None:
        """Give the lock back and wait until the folder is removed. Servers in it must have been stopped before."""
        if self._keeper.returncode is not None:
            return
        os.close(self.lock)
        try:
            self._keeper.wait(timeout=30)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"A process that the tests started still runs and holds {self.path}.") from None


class Identity(TypedDict):
    """The arguments of `Popen` that say as whom a program runs; all None: as the user who runs this."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None


class Server(ABC):
    """A server process in a folder of its own. Its address holds over every stop and start.

    Start it in a thread that lives as long as the server should: the kernel takes the end of that thread for the end
    of the parent.
    """

    name: ClassVar[str]
    refuses_root: ClassVar[bool] = False  # it then runs as `nobody`
    stop_signal: ClassVar[signal.Signals]  # ends it in order within a second or so, whoever is connected
    death_signal: ClassVar[signal.Signals]  # ends it for certain when its parent has died; its data are lost anyway

    def __init__(self, scratch: ScratchFolder | None = None) -> None:
        """Without a `scratch` of the caller's the server makes one, and `close()` removes it."""
        self._own_scratch = scratch is None
        self.scratch = scratch or ScratchFolder()
        self.user = pwd.getpwnam("nobody") if self.refuses_root and os.geteuid() == 0 else None
        self.folder = self.scratch.make(self.name, self.user)
        self.log = self.folder / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find it; valid before it was ever started."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command line of a server that stays in the foreground."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether a client is served."""

    def prepare(self) -> None:  # noqa: B027 - most servers need nothing
        """Make what must be there before the first start."""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The server's process, None while it is stopped."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def started(self) -> bool:
        """Whether it was ever started, running or not."""
        return self._process is not None

    def start(self, timeout: float = 30) -> None:
        """Start it and wait, at most `timeout` seconds, until it answers. Does nothing if it runs already."""
        if self.running:
            return
        if not self.started:
            self.prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment(),
                start_new_session=True,  # Ctrl-C is for the tests, which stop their servers in order
                pass_fds=[self.scratch.lock],
                preexec_fn=functools.partial(die_with_parent, self.death_signal),
                **self.identity(),
            )
        deadline = time.monotonic() + timeout
        while not self.answers():
            if not self.running or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self.name} did not start:\n{self.log_tail()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it and keep its data for the next start. Does nothing if it is not running."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(self.stop_signal)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=10)

    def restart(self) -> None:
        """What clients see when the machine they talk to is restarted: connections break, the address stays."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it for good and remove its files."""
        self.stop()
        if self._own_scratch:
            self.scratch.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def identity(self) -> Identity:
        """As whom it runs. `Popen` changes the user before `preexec_fn`; a change after it would clear the signal."""
        if self.user is None:
            return {"user": None, "group": None, "extra_groups": None}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def environment(self) -> dict[str, str]:
        """A fixed environment: nothing of the developer's (PGDATA, LANG, …) reaches the server."""
        return {"PATH": os.defpath, "HOME": str(self.folder), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    def log_tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
