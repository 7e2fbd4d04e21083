"""What the test processes of one run share: files that the first of them creates, and locks."""

import contextlib
import fcntl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path


class SharedFolder:
    """A folder shared by all processes of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the path of `name`. The first process to ask calls `make` with a path to fill; the others wait.

        If `make` fails, the next process tries again.
        """
        path = self.path / name
        with self._locked(name, fcntl.LOCK_EX):
            if not path.exists():
                unfinished = self.path / f"{name}.unfinished"
                subprocess.run(["rm", "-rf", str(unfinished)], check=True)
                make(unfinished)
                unfinished.rename(path)
        return path

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold the lock `name` exclusively."""
        with self._locked(f"{name}.queue", fcntl.LOCK_EX), self._locked(name, fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def shared(self, name: str) -> Iterator[None]:
        """Hold the lock `name` together with others that share it. First let in a process that waits for it exclusively."""
        with contextlib.ExitStack() as held:
            with self._locked(f"{name}.queue", fcntl.LOCK_SH):
                held.enter_context(self._locked(name, fcntl.LOCK_SH))
            yield

    @contextlib.contextmanager
    def _locked(self, name: str, kind: int) -> Iterator[None]:
        with (self.path / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, kind)
            yield


def copy(source: Path, target: Path) -> None:
    """Copy a file or a whole folder, owners and permissions included."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
