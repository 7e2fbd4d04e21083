"""A git host with a second replica that is one push behind, and with bad days."""

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support.git import GitFixture, GitServer, Handler, Repo, Takeover
from tests.support.receiver import KeepsPort


@dataclass(frozen=True)
class HostFault:
    """How the host answers a share of its requests.

    `lagging_refs` and `lagging_fetches` are the shares of the requests for refs and for objects that the replica answers.
    """

    name: str
    answer: Callable[[], int | Takeover | None] = lambda: None
    share: float = 0.0
    lagging_refs: float = 0.0
    lagging_fetches: float = 0.0
    is_down: bool = False

    @property
    def lags(self) -> bool:
        return self.lagging_refs > 0 or self.lagging_fetches > 0


def _think() -> None:
    time.sleep(0.2)


GOOD = HostFault("good")
FAULTS = [
    HostFault("lags", lagging_refs=1.0, lagging_fetches=1.0),
    HostFault("replicas differ", lagging_refs=0.5, lagging_fetches=0.5),
    HostFault("falls back", lagging_fetches=1.0),
    HostFault("falls back at times", lagging_fetches=0.5),
    HostFault("thinks", _think, 0.3),
    HostFault("answers 503", lambda: 503, 1.0),
    HostFault("answers 503 at times", lambda: 503, 0.3),
    HostFault("hangs up at times", lambda: lambda connection: None, 0.3),
    HostFault("is down", is_down=True),
]


class _Handler(Handler):
    def handle_git(self, body: IO[bytes] | None) -> None:
        head = os.pread(body.fileno(), 256, 0) if body else b""
        # A fetch by git itself asks for the refs again.
        is_by_git = self.headers.get("User-Agent", "").startswith("git/")
        self.server.owner.choose_replica(for_refs=b"command=ls-refs" in head and not is_by_git)
        super().handle_git(body)


class Host(KeepsPort, GitServer):
    """Serves `directory`, or for a share of the requests `replica`. Each connection is answered from one of them."""

    handler = _Handler

    def __init__(self, directory: Path, replica: Path, *, host: str, tokens: Mapping[str, AbstractSet[str]]) -> None:
        self._chosen = threading.local()
        self._origin = directory
        self.replica = replica
        self.fault = GOOD
        self._rng = random.Random()
        super().__init__(directory, host=host, tokens=tokens)
        self.on_request = lambda method, target: self._bad_answer()

    @property
    def directory(self) -> Path:
        return getattr(self._chosen, "directory", self._origin)

    @directory.setter
    def directory(self, value: Path) -> None:
        self._origin = value

    def behave(self, fault: HostFault, seed: int = 0) -> None:
        self.fault, self._rng = fault, random.Random(seed)
        if fault.is_down:
            self.stop()
        else:
            self.start()

    def choose_replica(self, *, for_refs: bool) -> None:
        """Choose what answers the current request of this thread."""
        share = self.fault.lagging_refs if for_refs else self.fault.lagging_fetches
        self._chosen.directory = self.replica if share and self._rng.random() < share else self._origin

    def _bad_answer(self) -> int | Takeover | None:
        fault = self.fault
        return fault.answer() if fault.share and self._rng.random() < fault.share else None


class FaultyGit(GitFixture):
    """Repositories on such a host."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tokens = {}
        self.server = self.host = Host(directory, directory.with_name("replica"), host="127.0.0.1", tokens=self.tokens)
        self.server.start()

    def update_replica(self, repo: Repo) -> None:
        """Bring the replica up to date with what the repository is now. Call it before a push."""
        target = self.host.replica / f"{repo.name}.git"
        for path in sorted(repo.path.rglob("*")):
            copy = target / path.relative_to(repo.path)
            if path.is_dir():
                copy.mkdir(parents=True, exist_ok=True)
            elif not copy.exists() and "objects" in path.parts:
                copy.hardlink_to(path)
        shutil.rmtree(target / "refs")
        shutil.copytree(repo.path / "refs", target / "refs")
        for name in ("HEAD", "config"):
            shutil.copyfile(repo.path / name, target / name)
        packed = repo.path / "packed-refs"
        if packed.exists():
            shutil.copyfile(packed, target / "packed-refs")
