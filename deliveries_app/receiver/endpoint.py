"""The client app itself: verifies every notification, keeps the copies, and remembers what it was sent."""

import re
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .notification import KINDS, Chunk, Notification, Refused, parse, verify
from .server import Answer, Server
from .storage import Copy, tree_sha256

_APP_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(r"(?!\.{1,2}$)[^/\0]{1,255}")
_UNREAD = Notification(kind="ping", app_id="")


@dataclass(frozen=True, slots=True)
class Record:
    """One request, as the log keeps it: everything but the content. Times are Unix seconds.

    `kind` is the address that was called. What stands in the body is empty unless the request was `verified` and could
    be read. `outcome` is a `storage.Outcome`, `pong`, `noted`, `matches` or `differs` (found out by `sync_completed`),
    `answered` (by `on_request`), or the reason of a refusal; `status` is 0 where the receiver hung up. `in_flight`
    counts this app's requests under way when it came, itself included. `answered_at` is just before the answer leaves.
    """

    app_id: str
    kind: str
    repository: str
    path: str
    size: int
    sha: str
    chunk: Chunk | None
    sequence: int
    webhook_id: str
    run_id: str
    reason: str
    verified: bool
    status: int
    outcome: str
    in_flight: int
    received_at: float
    answered_at: float


class Receiver:
    """Listens at `url`, and keeps every repository of every app below `directory/{app_id}/{owner}/{name}`.

    `keys` is one `client_auth_key` for all, or app id → key; it may be exchanged at any time. `on_request` sees each
    verified notification before it is handled, in the connection's own thread: it may take its time, and return an
    `Answer` of its own, or None to go on. `on_record` is told of each finished request. `log_size` bounds the log.
    `stop` and `start` again is an outage: the port and all that was received stay the same.
    """

    def __init__(
        self,
        directory: Path,
        keys: str | Mapping[str, str],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        on_request: Callable[[Notification], Answer | None] | None = None,
        on_record: Callable[[Record], None] | None = None,
        log_size: int | None = None,
    ) -> None:
        self.directory = directory
        self.keys = keys
        self.host = host
        self.port = port
        self.on_request = on_request
        self.on_record = on_record
        self._incoming = directory / ".incoming"  # no app id can be called that
        self._copies: dict[tuple[str, str], Copy] = {}
        self._log: deque[Record] = deque(maxlen=log_size)
        self._in_flight: Counter[str] = Counter()
        self._max_in_flight: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """The base URL to register with Docora. With port 0 it is known once `start` has been called."""
        return f"http://{self.host}:{self.port}"

    @property
    def log(self) -> list[Record]:
        """Every request so far, in the order of the answers."""
        with self._lock:
            return list(self._log)

    def max_in_flight(self, app_id: str) -> int:
        """Return the most requests of an app that ever were under way at once."""
        return self._max_in_flight[app_id]

    def copy(self, app_id: str, repository: str) -> dict[str, str]:
        """Return path → SHA-256 of what is kept of `owner/name` for an app."""
        return self._copy(app_id, repository).files()

    def start(self) -> None:
        """Listen, in a thread of its own. Raises OSError if the port is taken."""
        if self._server is None:
            self._server = Server((self.host, self.port), self.handle)
            self.port = self._server.server_address[1]
            if not self._copies:
                shutil.rmtree(self._incoming, ignore_errors=True)  # what an earlier process left half done
            threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver", daemon=True).start()

    def stop(self) -> None:
        """Hang up on everybody and free the port. Does not wait for an `on_request` that is still busy."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.hang_up()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Do what one POST asks for and say what to answer; `headers` has its names in lower case."""
        received_at = time.time()
        app_id = headers.get("x-docora-app-id", "")
        said = _UNREAD
        in_flight = self._begin(app_id)
        try:
            said = self._authenticate(path.removeprefix("/"), app_id, headers, body)
            answer, outcome = self._answer(said)
        except Refused as refused:
            answer, outcome = Answer(refused.status, {"error": refused.message}), refused.message
        except OSError as error:
            answer, outcome = Answer(500, {"error": "The file cannot be stored."}), f"The disk says: {error.strerror}"
        finally:
            self._end(app_id)  # before the answer leaves: the sender may fill the free place at once
        record = Record(
            app_id=app_id,
            kind=path.removeprefix("/"),
            repository=said.repository,
            path=said.path,
            size=said.size,
            sha=said.sha,
            chunk=said.chunk,
            sequence=said.sequence,
            webhook_id=headers.get("webhook-id", ""),
            run_id=headers.get("x-docora-run-id", ""),
            reason=headers.get("x-docora-reason", ""),
            verified=said is not _UNREAD,
            status=0 if answer.close else answer.status,
            outcome=outcome,
            in_flight=in_flight,
            received_at=received_at,
            answered_at=time.time(),
        )
        with self._lock:
            self._log.append(record)
        if self.on_record:
            self.on_record(record)
        return answer

    def _begin(self, app_id: str) -> int:
        with self._lock:
            self._in_flight[app_id] += 1
            self._max_in_flight[app_id] = max(self._in_flight[app_id], self._max_in_flight[app_id])
            return self._in_flight[app_id]

    def _end(self, app_id: str) -> None:
        with self._lock:
            self._in_flight[app_id] -= 1

    def _authenticate(self, kind: str, app_id: str, headers: Mapping[str, str], body: bytes) -> Notification:
        if kind not in KINDS:
            raise Refused(404, "There is nothing at this address.")
        key = self.keys if isinstance(self.keys, str) else self.keys.get(app_id)
        if key is None or not _APP_ID.fullmatch(app_id):
            raise Refused(401, "X-Docora-App-Id names no app that is known here.")
        verify(headers, body, key, time.time())
        return parse(kind, headers, body)

    def _answer(self, notification: Notification) -> tuple[Answer, str]:
        other = self.on_request(notification) if self.on_request else None
        if other and not other.process:
            return other, "answered"
        outcome = self._process(notification)
        return other or Answer(200, {"status": outcome}), outcome

    def _process(self, notification: Notification) -> str:
        if notification.kind == "ping":
            return "pong"
        copy = self._copy(notification.app_id, notification.repository)
        match notification.kind:
            case "create" | "update":
                return copy.keep(notification)
            case "delete":
                return copy.remove(notification)
            case "sync_completed":
                same = tree_sha256(copy.files()) == notification.payload.get("tree_sha256")
                return "matches" if same else "differs"
            case "sync_failed":
                return "noted"

    def _copy(self, app_id: str, repository: str) -> Copy:
        owner, _, name = repository.partition("/")
        if not _APP_ID.fullmatch(app_id) or not _NAME.fullmatch(owner) or not _NAME.fullmatch(name):
            raise Refused(422, "owner and name are not plain names.")
        with self._lock:
            if (app_id, repository) not in self._copies:
                self._copies[app_id, repository] = Copy(self.directory / app_id / owner / name, self._incoming)
            return self._copies[app_id, repository]
