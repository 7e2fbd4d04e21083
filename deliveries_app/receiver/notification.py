"""The contract from the client's side: check that a request comes from Docora, and parse it. No I/O, no clock.

`webhook-signature` covers the `webhook-id`, the `webhook-timestamp` and the body. Nothing else is signed: a
captured request can be replayed to another URL or with another `X-Docora-Sequence`. So the sequence is read from the
`webhook-id`, and the body must fit the URL.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

TOLERANCE_SECONDS = 300
MAX_SEQUENCE = 2**53 - 1
MAX_SEQUENCE_LEAD = 86_400_000_000
"""How far a sequence may be ahead of the clock, in microseconds: a higher one would hide every later notification."""

Kind = Literal["create", "update", "delete", "sync_failed", "sync_completed", "verify", "ping"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_SECONDS = re.compile(r"[0-9]{1,12}")
_SEQUENCE = re.compile(r"[0-9]{1,16}")
_WEBHOOK_ID = re.compile(r"msg_([A-Za-z0-9-]{1,64})_([0-9]{1,16})(?:_[A-Za-z0-9-]{1,64}_[0-9]{1,9})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Refused(Exception):
    """The request is refused: answer with the HTTP `status`. `message` says why, for the sender's log."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Chunk:
    """The position of one piece of a large file: `index` of `total`, counted from 0.

    All pieces of one attempt to send the file share the same `id`.
    """

    id: str
    index: int
    total: int


@dataclass(frozen=True, slots=True)
class Notification:
    """One verified request. `repository` is `owner/name`. Fields that a kind does not have are empty, 0 or None.

    - `content` is what was transmitted: text, or base64 if `is_base64`. For a chunk it is one piece of the base64 string.
    - `watch_id` names one watch of the repository. Watching it again gives another one (see `storage.Epoch`).
    - `sequence` increases with every new notification about a path.
    """

    kind: Kind
    app_id: str
    webhook_id: str = ""
    watch_id: str = ""
    sequence: int = 0
    run_id: str = ""
    reason: str = ""
    repository_id: str = ""
    repository: str = ""
    path: str = ""
    sha: str = ""
    size: int = 0
    content: str = ""
    is_base64: bool = False
    chunk: Chunk | None = None
    payload: Mapping[str, object] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def verify(headers: Mapping[str, str], body: bytes, key: str, now: float) -> None:
    """Raise `Refused` (401) unless the request is signed with `key` within `TOLERANCE_SECONDS` of `now` (Unix seconds).

    Docora signs every request twice: as specified by Standard Webhooks, and in `X-Docora-Signature`, which covers only the
    timestamp and the body. This client checks both. Pass `body` exactly as received, and parse it only after it is
    verified.
    """
    sent = {name.lower(): value for name, value in headers.items()}
    try:
        timestamp, signature = sent["x-docora-timestamp"], sent["x-docora-signature"]
        webhook_id, webhook_timestamp = sent["webhook-id"], sent["webhook-timestamp"]
        webhook_signatures = sent["webhook-signature"].split()
    except KeyError as missing:
        raise Refused(401, f"The {missing.args[0]} header is missing.") from None

    for seconds in (timestamp, webhook_timestamp):
        if not _SECONDS.fullmatch(seconds) or abs(now - int(seconds)) > TOLERANCE_SECONDS:
            raise Refused(401, f"The timestamp differs from the current time by more than {TOLERANCE_SECONDS} seconds.")

    expected = "sha256=" + hmac.new(key.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    if not _same(signature, expected):
        raise Refused(401, "X-Docora-Signature does not match.")

    signed = f"{webhook_id}.{webhook_timestamp}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.digest(_standard_key(key), signed, "sha256")).decode()
    # During a key rotation there is one signature per key. Compare with all of them, so that the time reveals nothing.
    if not sum(_same(candidate, expected) for candidate in webhook_signatures):
        raise Refused(401, "webhook-signature does not match.")


def _standard_key(key: str) -> bytes:
    if key.startswith("whsec_"):
        encoded = key.removeprefix("whsec_")
        with contextlib.suppress(ValueError):  # not base64: use it like any other key
            return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    return key.encode()


def _same(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode(), right.encode())  # as bytes: non-ASCII text would raise


def parse(kind: Kind, headers: Mapping[str, str], body: bytes, now: float) -> Notification:
    """Parse a verified request. Raises `Refused` (422) if it is malformed, or not a `kind`. Unknown fields are ignored."""
    sent = {name.lower(): value for name, value in headers.items()}
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(422, "The body is not JSON.") from None
    if not isinstance(payload, dict):
        raise Refused(422, "The body is not a JSON object.")
    if kind == "ping":  # of no watch; the sequence is only logged
        watch_id, header = "", sent.get("x-docora-sequence", "")
        sequence = int(header) if _SEQUENCE.fullmatch(header) else 0
    else:
        watch_id, sequence = _watch_and_sequence(sent.get("webhook-id", ""), now)

    _take(payload, "timestamp", str)
    repository_id, repository = ("", "") if kind == "ping" else _repository(_take(payload, "repository", dict))
    about_file = kind in ("create", "update", "delete")
    if payload.get("event") != (None if about_file else kind):
        raise Refused(422, f"The body is not that of a {kind}.")
    with_content = kind in ("create", "update")
    file = _take(payload, "file", dict) if about_file else {}
    if about_file or kind in ("sync_completed", "verify"):
        _take(payload, "commit_sha", str)
    if kind == "verify":
        _take(payload, "tree_sha256", str)
        _take(payload, "after", str)
        if _take(payload, "limit", int) < 1:
            raise Refused(422, "limit is less than 1.")
    if kind == "update":
        _take(payload, "previous_sha", str)
    if kind == "delete" and "content" in file:
        raise Refused(422, "The body is not that of a delete: it has content.")
    return Notification(
        kind=kind,
        app_id=sent.get("x-docora-app-id", ""),
        webhook_id=sent.get("webhook-id", ""),
        watch_id=watch_id,
        sequence=sequence,
        run_id=sent.get("x-docora-run-id", ""),
        reason=sent.get("x-docora-reason", ""),
        repository_id=repository_id,
        repository=repository,
        path=_take(file, "path", str) if about_file else "",
        sha=_sha(file) if about_file else "",
        size=_take(file, "size", int) if with_content else 0,
        content=_take(file, "content", str) if with_content else "",
        is_base64=_is_base64(file),
        chunk=_chunk(file),
        payload=payload,
        headers=sent,
    )


def _take[T](source: Mapping[str, object], name: str, kind: type[T]) -> T:
    value = source.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):  # in Python, true is an int
        raise Refused(422, f"{name} is missing or not of type {kind.__name__}.")
    return value


def _watch_and_sequence(webhook_id: str, now: float) -> tuple[str, int]:
    parts = _WEBHOOK_ID.fullmatch(webhook_id)
    if not parts:
        raise Refused(422, "webhook-id does not consist of a watch and a sequence.")
    sequence = int(parts[2])
    if sequence > min(MAX_SEQUENCE, now * 1_000_000 + MAX_SEQUENCE_LEAD):
        raise Refused(422, "The sequence in webhook-id is more than a day ahead of this clock.")
    return parts[1], sequence


def _repository(source: Mapping[str, object]) -> tuple[str, str]:
    repository_id = _take(source, "repository_id", str)
    _take(source, "github_url", str)
    return repository_id, f"{_take(source, 'owner', str)}/{_take(source, 'name', str)}"


def _sha(file: Mapping[str, object]) -> str:
    sha = _take(file, "sha", str)
    if not _SHA256.fullmatch(sha):
        raise Refused(422, "sha is not a hexadecimal SHA-256.")
    return sha


def _is_base64(file: Mapping[str, object]) -> bool:
    encoding = file.get("content_encoding")
    if encoding not in (None, "base64"):
        raise Refused(422, f"content_encoding {encoding!r} is unknown.")
    return encoding == "base64"


def _chunk(file: Mapping[str, object]) -> Chunk | None:
    if "chunk" not in file:
        return None
    source = _take(file, "chunk", dict)
    chunk = Chunk(_take(source, "id", str), _take(source, "index", int), _take(source, "total", int))
    if not 0 <= chunk.index < chunk.total or not _is_base64(file):
        raise Refused(422, "chunk needs an index from 0 to total - 1 and base64 content.")
    return chunk
