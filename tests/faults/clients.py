"""Client apps of several kinds, as in practice: they differ in their file systems, what they remember and how they respond."""

import base64
import hashlib
import random
import shutil
import socket
import threading
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from deliveries_app.models import AppRepository
from deliveries_app.receiver import Answer, Notification, Receiver, Refused, tree_sha256
from deliveries_app.receiver.server import PostHandler
from deliveries_app.receiver.storage import Page
from tests.support.receiver import KeepsPort


def _exact(path: str) -> str:
    return path


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _folded(path: str) -> str:
    return _composed(path).casefold()


@dataclass(frozen=True)
class ClientKind:
    """How one client app behaves.

    - `fold` maps all names that its file system can't tell apart to one key.
    - `sequences`: it ignores a notification that is older than the last one about its path.
    - `epochs`: it drops what it holds when the repository is watched anew (wire contract §4). Only such a client may keep its
      copy when the repository is unwatched.
    - `deduplicates`: it ignores a `webhook-id` that it has processed.
    - `refuses_with` is the status for a request that comes less than `gap` seconds after the last one.
    - `hangs_up`: it closes the connection after each answer, without `Connection: close`.
    - `verifies`: it answers `verify`.
    - `is_reference`: it is Docora's own reference client.
    """

    name: str
    fold: Callable[[str], str] = _exact
    sequences: bool = True
    epochs: bool = True
    deduplicates: bool = False
    refuses_with: int = 0
    gap: float = 0.01
    hangs_up: bool = False
    verifies: bool = True
    is_reference: bool = False


KINDS = [
    ClientKind("reference", is_reference=True),
    ClientKind("plain", sequences=False, epochs=False, verifies=False),
    ClientKind("with sequences", epochs=False),
    ClientKind("with epochs"),
    ClientKind("de-duplicating", sequences=False, epochs=False, deduplicates=True),
    ClientKind("folding case", fold=_folded),
    ClientKind("normalising", fold=_composed),
    ClientKind("rate limited, 429", refuses_with=429),
    ClientKind("rate limited, 503", refuses_with=503),
    ClientKind("hanging up", hangs_up=True),
]


@dataclass(frozen=True)
class Damage:
    """Paths of a copy that are lost, whose content is changed, or that are added. The latter may be other names of files."""

    lost: list[str]
    changed: list[str]
    extra: list[str]

    @classmethod
    def of(cls, paths: Sequence[str], rng: random.Random) -> "Damage":
        some = rng.sample(paths, min(len(paths), rng.randrange(4)))
        half = len(some) // 2
        twins = [path.swapcase() for path in paths if rng.random() < 0.2 and path.swapcase() not in paths]
        extra = [f"extra/{rng.randrange(3)}" for _ in range(rng.randrange(3))]
        return cls(some[:half], some[half:], sorted({*extra, *twins}))


@dataclass
class _Held:
    path: str
    sha: str


@dataclass
class MemoryCopy:
    """What a client of some kind holds of one repository, in memory.

    Like existing clients, it takes a large file for complete once `chunk.total` chunks of one id have arrived.
    """

    kind: ClientKind
    _held: dict[str, _Held] = field(default_factory=dict)  # by folded path
    _newest: dict[str, int] = field(default_factory=dict)  # path → sequence
    _chunks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _epoch: str = ""
    _old_epochs: set[str] = field(default_factory=set)
    _highest: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def files(self) -> dict[str, str]:
        with self._lock:
            return {held.path: held.sha for held in self._held.values()}

    @property
    def knows_epoch(self) -> bool:
        """Whether it will notice that the repository is watched anew: after an import, only once it was notified."""
        return self.kind.epochs and bool(self._epoch)

    def hold(self, files: Mapping[str, str]) -> None:
        """Hold these files (path → SHA-256), which did not come from Docora."""
        with self._lock:
            self._held = {self.kind.fold(path): _Held(path, sha) for path, sha in files.items()}

    def drop(self) -> None:
        """Delete the files. What the client remembers about notifications stays."""
        with self._lock:
            self._held.clear()
            self._chunks.clear()

    def keep(self, note: Notification) -> str:
        with self._lock:
            if self._is_old(note):
                return "stale"
            content = note.content
            if note.chunk:
                self._remember(note)
                pieces = self._chunks[note.chunk.id]
                pieces.append(content)
                if len(pieces) < note.chunk.total:
                    return "partial"
                content = "".join(self._chunks.pop(note.chunk.id))
            try:
                decoded = base64.b64decode(content, validate=True) if note.is_base64 else content.encode()
            except ValueError:
                raise Refused(422, "content cannot be decoded.") from None
            self._remember(note)
            self._place(note.path, hashlib.sha256(decoded).hexdigest())
            return "kept"

    def remove(self, note: Notification) -> str:
        with self._lock:
            if self._is_old(note):
                return "stale"
            self._remember(note)
            return "removed" if self._held.pop(self.kind.fold(note.path), None) else "absent"

    def compare(self, note: Notification) -> str:
        """Compare the copy with the `tree_sha256` of a `sync_completed`."""
        with self._lock:
            if self.kind.epochs and self._is_of_old_epoch(note):
                return "stale"
            files = {held.path: held.sha for held in self._held.values()}
            return "matches" if tree_sha256(files) == note.payload.get("tree_sha256") else "differs"

    def page(self, note: Notification) -> Page:
        """Return the answer to a `verify`."""
        with self._lock:
            if self.kind.epochs and self._is_of_old_epoch(note):
                raise Refused(409, "A later notification has arrived.")
            files = {held.path: held.sha for held in self._held.values()}
            if not note.payload["after"] and tree_sha256(files) == note.payload["tree_sha256"]:
                return {"tree_sha256": note.payload["tree_sha256"]}
            later = sorted(path for path in files if path > str(note.payload["after"]))
            page = later[: int(str(note.payload["limit"]))]
            following = page[-1] if len(page) < len(later) else None
            return {"files": [{"path": path, "sha": files[path]} for path in page], "next": following}

    def damage(self, damage: "Damage") -> None:
        """Change the copy as if its files had been edited."""
        with self._lock:
            for path in damage.lost:
                self._held.pop(self.kind.fold(path), None)
            for path in damage.changed:
                self._place(path, "f" * 64)
            for path in damage.extra:
                held = self._held.get(self.kind.fold(path))
                if held:  # its name differs now
                    held.path = path
                else:
                    self._place(path, "e" * 64)

    def _place(self, path: str, sha: str) -> None:
        """Store a file. It replaces a directory, and its directories replace files."""
        key = self.kind.fold(path)
        for other in list(self._held):
            if other.startswith(f"{key}/") or key.startswith(f"{other}/"):
                del self._held[other]
        if key in self._held:  # the name on the disk stays as it was first written
            self._held[key].sha = sha
        else:
            self._held[key] = _Held(path, sha)

    def _is_old(self, note: Notification) -> bool:
        if self.kind.epochs and self._is_of_old_epoch(note):
            return True
        return self.kind.sequences and 0 < note.sequence < self._newest.get(note.path, 0)

    def _is_of_old_epoch(self, note: Notification) -> bool:
        """Begin a new epoch if this notification does, and return whether it belongs to an old one."""
        epoch = note.watch_id
        if epoch != self._epoch:
            if epoch in self._old_epochs or (self._epoch and note.sequence <= self._highest):
                return True
            if self._epoch:
                self._old_epochs.add(self._epoch)
                self._held.clear()
                self._chunks.clear()
            self._epoch = epoch
        self._highest = max(self._highest, note.sequence)
        return False

    def _remember(self, note: Notification) -> None:
        self._newest[note.path] = max(note.sequence, self._newest.get(note.path, 0))


class _Handler(PostHandler):
    def do_POST(self) -> None:
        self.server.owner.current.connection = self.connection
        super().do_POST()
        if self.server.owner.kind_of(self.headers.get("X-Docora-App-Id", "")).hangs_up:
            self.close_connection = True


class Clients(KeepsPort, Receiver):
    """The servers of all client apps. `kinds` maps an app's id to its kind, and may be changed at any time."""

    handler = _Handler

    def __init__(self, *arguments: object, **options: object) -> None:
        self.kinds: dict[str, ClientKind] = {}
        self._memory: dict[tuple[str, str], MemoryCopy] = {}
        self._processed: dict[str, set[str]] = defaultdict(set)
        self._accepted_at: dict[str, float] = {}
        self.current = threading.local()  # its `connection` is the one whose request this thread handles
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer a POST. Below a path that begins with a status, another server answers everything with this status."""
        *above, kind = path.strip("/").split("/")
        if above and above[0].isdigit():
            return Answer(int(above[0]))
        return super().handle(f"/{kind}", headers, body)

    def kind_of(self, app_id: str) -> ClientKind:
        return self.kinds.get(app_id, KINDS[0])

    def holds(self, watch: AppRepository) -> dict[str, str]:
        """Return path → SHA-256 of what the watch's app holds."""
        if self.kind_of(watch.app.app_id).is_reference:
            return self.copy(watch.app.app_id, watch.repository.repository_id)
        return self.memory(watch.app.app_id, str(watch.repository)).files()

    def memory(self, app_id: str, repository: str) -> MemoryCopy:
        """Return the copy of `owner/name` at an app that is not the reference client."""
        with self._lock:
            return self._memory.setdefault((app_id, repository), MemoryCopy(self.kind_of(app_id)))

    def drop(self, watch: AppRepository) -> None:
        """Let the watch's app delete its copy."""
        app_id, repository_id = watch.app.app_id, watch.repository.repository_id
        if self.kind_of(app_id).is_reference:
            shutil.rmtree(self.directory / app_id / repository_id, ignore_errors=True)
            with self._lock:
                self._copies.pop((app_id, repository_id), None)
        else:
            self.memory(app_id, str(watch.repository)).drop()

    def damage(self, watch: AppRepository, rng: random.Random) -> None:
        """Edit the copy of the watch's app."""
        damage = Damage.of(sorted(self.holds(watch)), rng)
        if not self.kind_of(watch.app.app_id).is_reference:
            self.memory(watch.app.app_id, str(watch.repository)).damage(damage)
            return
        folder = self.directory / watch.app.app_id / watch.repository.repository_id
        for path in damage.lost:
            (folder / path).unlink(missing_ok=True)
        for path in [*damage.changed, *damage.extra]:
            with suppress(OSError):  # a file is in the way of its folder, or it is a folder now
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(b"edited")

    def lose_connection(self) -> None:
        """Close the connection of the request that this thread handles, as a proxy in front of the client may do."""
        with suppress(OSError):
            self.current.connection.shutdown(socket.SHUT_RDWR)

    def refusal(self, note: Notification) -> Answer | None:
        """Return the answer of a client that was asked too soon after the last time."""
        kind, now = self.kind_of(note.app_id), time.monotonic()
        if kind.refuses_with:
            with self._lock:
                if now - self._accepted_at.get(note.app_id, 0.0) < kind.gap:
                    return Answer(kind.refuses_with, headers={"Retry-After": "0"})
                self._accepted_at[note.app_id] = now
        return None

    def _page(self, notification: Notification) -> Page:
        kind = self.kind_of(notification.app_id)
        if not kind.verifies:
            raise Refused(404, "Not found.")
        if kind.is_reference:
            return super()._page(notification)
        return self.memory(notification.app_id, notification.repository).page(notification)

    def _process(self, notification: Notification) -> str:
        app_id = notification.app_id
        kind = self.kind_of(app_id)
        if kind.is_reference or notification.kind in {"ping", "sync_failed"}:
            return super()._process(notification)
        with self._lock:
            if kind.deduplicates and notification.webhook_id in self._processed[app_id]:
                return "repeated"
        copy = self.memory(app_id, notification.repository)
        act = {"delete": copy.remove, "sync_completed": copy.compare}.get(notification.kind, copy.keep)
        outcome = act(notification)
        with self._lock:
            self._processed[app_id].add(notification.webhook_id)
        return outcome
