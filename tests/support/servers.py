"""Real servers for the tests, which leave no process and no file behind, however the tests end.

The kernel signals a server when its parent ends in any way (`die_with_parent`). A folder is removed by its keeper, a small
process that waits for a lock. This process and every server share the descriptor of that lock, so the kernel releases it
when the last of them is gone: after a clean stop, Ctrl-C or `kill -9`.
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
_MAX_BASE_PATH = 50  # bytes; a socket's path below it stays under 100 (the kernel's limit is 108)


def _temporary_base() -> Path:
    """Return the system's temporary folder, or /tmp if that path is too long for sockets or closed to other users."""
    base = Path(tempfile.gettempdir()).resolve()
    if len(os.fsencode(base)) > _MAX_BASE_PATH:
        return Path("/tmp")
    return base if all(folder.stat().st_mode & stat.S_IXOTH for folder in (base, *base.parents)) else Path("/tmp")


class ScratchFolder:
    """A temporary folder with a short path. It is removed once this process and all servers in it have ended."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="docora-test-", dir=_temporary_base()))
        self.path.chmod(0o711)  # a server that runs as another user must reach its own folder
        self.lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER, str(self.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # holding a pipe open would keep `make test | tee` waiting
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the tests; the keeper still has work to do then
        )

    def make(self, name: str, owner: pwd.struct_passwd | None = None) -> Path:
        """Create a private subfolder that belongs to `owner` (default: the current user)."""
        folder = self.path / name
        folder.mkdir(mode=0o700)
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        return folder

    def close(self) -> None:
        """Release the lock and wait until the folder is removed. Stop the servers in it first."""
        if self._keeper.returncode is not None:
            return
        os.close(self.lock)
        try:
            self._keeper.wait(timeout=30)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"A process that the tests started is still running in {self.path}.") from None


class Identity(TypedDict):
    """The arguments of `Popen` for the user that a program runs as. All None means the current user."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None


class Server(ABC):
    """A server process in its own folder. Its address stays the same over every restart.

    Start it in a thread that lives as long as the server: to the kernel, the end of that thread is the end of the parent.
    """

    name: ClassVar[str]
    refuses_root: ClassVar[bool] = False  # if so, root runs it as `nobody`
    stop_signal: ClassVar[signal.Signals]  # a clean stop within a second or so, even with clients connected
    death_signal: ClassVar[signal.Signals]  # a certain end when the parent has died; the data may be lost

    def __init__(self, scratch: ScratchFolder | None = None) -> None:
        """Without a `scratch` folder the server creates one, and `close()` removes it."""
        self._own_scratch = scratch is None
        self.scratch = scratch or ScratchFolder()
        self.user = pwd.getpwnam("nobody") if self.refuses_root and os.geteuid() == 0 else None
        self.folder = self.scratch.make(self.name, self.user)
        self.log = self.folder / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The address for clients, valid even before the first start."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line that runs the server in the foreground."""

    @abstractmethod
    def answers(self) -> bool:
        """Return whether the server answers a client."""

    def prepare(self) -> None:  # noqa: B027 - most servers need nothing
        """Prepare the first start."""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The pid of the server, or None while it is stopped."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def started(self) -> bool:
        """Whether it was ever started, running or not."""
        return self._process is not None

    def start(self, timeout: float = 30) -> None:
        """Start it and wait at most `timeout` seconds until it answers. Do nothing if it is running."""
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
                start_new_session=True,  # Ctrl-C is for the tests, which then stop their servers
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
        """Stop it and keep its data for the next start. Do nothing if it is not running."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(self.stop_signal)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=10)

    def restart(self) -> None:
        """Restart it: connections break, the address stays."""
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
        """Return the user it runs as. `Popen` changes the user before `preexec_fn`; doing so later would clear the signal."""
        if self.user is None:
            return {"user": None, "group": None, "extra_groups": None}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def environment(self) -> dict[str, str]:
        """Return a fixed environment, without the developer's own variables (PGDATA, LANG, …)."""
        return {"PATH": os.defpath, "HOME": str(self.folder), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    def log_tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
