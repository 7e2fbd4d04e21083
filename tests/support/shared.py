"""Files that several test processes of one run need and the first of them creates."""

import fcntl
import subprocess
from collections.abc import Callable
from pathlib import Path


class SharedFolder:
    """A folder shared by all processes of a run. Each name in it is created once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the path of `name`. The first process to ask calls `make` with a path to fill; the others wait.

        If `make` fails, the next process tries again.
        """
        path = self.path / name
        with (self.path / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                unfinished = self.path / f"{name}.unfinished"
                subprocess.run(["rm", "-rf", str(unfinished)], check=True)
                make(unfinished)
                unfinished.rename(path)
        return path


def copy(source: Path, target: Path) -> None:
    """Copy a file or a whole folder, owners and permissions included."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
