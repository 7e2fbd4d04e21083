"""The client app: verify every notification, store it in the right copy, and log it."""

import re
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .notification import KINDS, Chunk, Notification, Refused, parse, verify
from .server import Answer, BackgroundServer, PostHandler
from .storage import Copy, Page

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNVERIFIED = Notification(kind="ping", app_id="")


@dataclass(frozen=True, slots=True)
class Record:
    """The log entry for one request: everything except the content. Times are Unix seconds.

    - `kind` is the path that was called. Fields from the body are empty unless the request is `verified` and valid.
    - `outcome` is a `storage.Outcome`, `pong`, `noted`, `matches` or `differs` (for `sync_completed` and `verify`),
      `answered` (by `on_request`), or the reason for refusing the request.
    - `status` is 0 if the receiver hung up.
    - `in_flight` is the number of concurrent requests to the app when this one arrived, including this one.
    - `answered_at` is taken just before the answer is sent.
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


class Receiver(BackgroundServer):
    """Receive notifications at `url` and keep each app's copies in `directory/{app_id}/{repository_id}`.

    - `keys` is one `client_auth_key` for all apps, or app id → key. You can replace it at any time. With one key for all,
      a captured request can be replayed for another app, because `X-Docora-App-Id` is not signed.
    - `on_request` sees each verified notification before it is processed, in the thread of its connection. It may
      block. It returns an `Answer`, or None to continue as usual.
    - `on_record` is called after each request.
    - `log_size` limits the number of log entries.

    `stop` and `start` simulate an outage: the port and the copies stay the same.
    """

    handler = PostHandler

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
        super().__init__(host, port)
        self.directory = directory
        self.keys = keys
        self.on_request = on_request
        self.on_record = on_record
        self._incoming, self._epochs = directory / ".incoming", directory / ".epochs"  # not valid app ids
        self._copies: dict[tuple[str, str], Copy] = {}
        self._log: deque[Record] = deque(maxlen=log_size)
        self._in_flight: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def log(self) -> list[Record]:
        """All requests so far, in the order of the answers."""
        with self._lock:
            return list(self._log)

    def copy(self, app_id: str, repository_id: str) -> dict[str, str]:
        """Return path → SHA-256 for the app's copy of the repository."""
        return self._copy(app_id, repository_id).files()

    def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Process one POST and return the answer. `headers` has lower-case names."""
        received_at = time.time()
        app_id = headers.get("x-docora-app-id", "")
        notification = _UNVERIFIED
        in_flight = self._begin(app_id)
        try:
            notification = self._authenticate(path.removeprefix("/"), app_id, headers, body)
            answer, outcome = self._answer(notification)
        except Refused as refused:
            answer, outcome = Answer(refused.status, {"error": refused.message}), refused.message
        except OSError as error:
            answer, outcome = Answer(500, {"error": "The file cannot be stored."}), f"Disk error: {error.strerror}"
        finally:
            self._end(app_id)  # before answering: the sender may use the free slot immediately
        record = Record(
            app_id=app_id,
            kind=path.removeprefix("/"),
            repository=notification.repository,
            path=notification.path,
            size=notification.size,
            sha=notification.sha,
            chunk=notification.chunk,
            sequence=notification.sequence,
            webhook_id=headers.get("webhook-id", ""),
            run_id=headers.get("x-docora-run-id", ""),
            reason=headers.get("x-docora-reason", ""),
            verified=notification is not _UNVERIFIED,
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
            return self._in_flight[app_id]

    def _end(self, app_id: str) -> None:
        with self._lock:
            self._in_flight[app_id] -= 1

    def _authenticate(self, kind: str, app_id: str, headers: Mapping[str, str], body: bytes) -> Notification:
        if kind not in KINDS:
            raise Refused(404, "Not found.")
        key = self.keys if isinstance(self.keys, str) else self.keys.get(app_id)
        if key is None or not _ID.fullmatch(app_id):
            raise Refused(401, "X-Docora-App-Id is not a known app.")
        now = time.time()
        verify(headers, body, key, now)
        return parse(kind, headers, body, now)

    def _answer(self, notification: Notification) -> tuple[Answer, str]:
        replacement = self.on_request(notification) if self.on_request else None
        if replacement and not replacement.process:
            return replacement, "answered"
        if notification.kind == "verify":
            page = self._page(notification)
            return replacement or Answer(200, page), "differs" if "files" in page else "matches"
        outcome = self._process(notification)
        return replacement or Answer(200, {"status": outcome}), outcome

    def _process(self, notification: Notification) -> str:
        if notification.kind == "ping":
            return "pong"
        if notification.kind == "sync_failed":
            return "noted"
        copy = self._copy(notification.app_id, notification.repository_id)
        match notification.kind:
            case "create" | "update":
                return copy.keep(notification)
            case "delete":
                return copy.remove(notification)
            case _:
                return copy.compare(notification)

    def _page(self, notification: Notification) -> Page:
        """Return the answer to a `verify`. The clients in `tests/faults/clients.py` replace this method."""
        return self._copy(notification.app_id, notification.repository_id).page(notification)

    def _copy(self, app_id: str, repository_id: str) -> Copy:
        if not _ID.fullmatch(app_id) or not _ID.fullmatch(repository_id):
            raise Refused(422, "repository_id cannot be the name of a directory.")
        key = (app_id, repository_id)
        with self._lock:
            if not self._copies:
                shutil.rmtree(self._incoming, ignore_errors=True)  # incomplete files of an earlier process
            if key not in self._copies:
                epoch = self._epochs / app_id / repository_id
                self._copies[key] = Copy(self.directory / app_id / repository_id, self._incoming, epoch)
            return self._copies[key]
