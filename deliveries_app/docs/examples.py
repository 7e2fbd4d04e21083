"""Example notifications for the documentation, with a description of every field and header.

`payloads` builds the bodies and headers, so they match what is sent. The tests check that every field and header has a
description here, and that no description is left over.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from deliveries_app.docs.api_reference import Field
from deliveries_app.webhooks.payloads import (
    PING,
    Chunk,
    Envelope,
    RepositoryInfo,
    cut_base64,
    delete_body,
    file_body,
    notice_body,
    sync_completed_fields,
    sync_failed_fields,
    webhook_id,
)

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
KEY = "whsec_" + base64.b64encode(b"a signing key for everyone to try").decode()
COMMIT = hashlib.sha1(b"a commit", usedforsecurity=False).hexdigest()
REPOSITORY = RepositoryInfo("repo_5f0c2a9e1b7d4c3f8a6e0d12", "https://github.com/acme/handbook", "acme", "handbook")
SEQUENCE = int(NOON.timestamp()) * 1_000_000
_TEXT, _EARLIER, _BINARY = b"# Handbook\n", b"# Hand", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_LARGE = b"a file of many megabytes, cut short here\n"
_PIECE = 28  # characters of base64

DESCRIPTIONS = {
    "event": "The kind of notification, the same as the last part of the URL.",
    "repository.repository_id": "The repository's id. It is the same for every app that watches the repository.",
    "repository.github_url": "The repository's URL, spelled as your app sent it.",
    "repository.owner": "The part of the URL before the name.",
    "repository.name": "The last part of the URL, without `.git`.",
    "file.path": "The path from the root of the repository, separated by `/`. At most 1,024 bytes.",
    "file.sha": "The hexadecimal SHA-256 of the file's content. This is not git's blob id.",
    "file.size": "The size of the whole content in bytes.",
    "file.content": "The content: plain text, base64, or one piece of the whole file's base64.",
    "file.content_encoding": "`base64`. Omitted if `content` is plain text.",
    "file.chunk.id": "Identifies one attempt to send the file. All of its chunks share it.",
    "file.chunk.index": "The position of this chunk, starting at 0.",
    "file.chunk.total": "The number of chunks.",
    "previous_sha": "The `sha` your app last acknowledged for this path.",
    "commit_sha": "The commit at the head of the repository's default branch: 40 hexadecimal digits, or 64 in a repository that "
    "uses SHA-256.",
    "timestamp": "The time of this attempt: ISO 8601, UTC, with milliseconds.",
    "files": "The number of files your app should have now.",
    "tree_sha256": "The SHA-256 of the lines `{sha}  {path}` (two spaces, each ending with a line feed) for all these "
    "files, sorted by the bytes of their paths.",
    "error.type": "Always `git_failure`.",
    "error.message": "A readable description of the error and what to do. It never contains a token.",
    "error.reason": "`auth`, `not_found`, `timeout`, `network`, `too_large`, `corrupt` or `other`.",
    "circuit_breaker.status": "Always `open`: Docora pauses syncing this repository for a while.",
    "circuit_breaker.consecutive_failures": "The number of failures in a row so far.",
    "circuit_breaker.threshold": "The number of failures in a row that opens the circuit.",
    "circuit_breaker.cooldown_until": "When Docora tries the repository again.",
    "retry_count": "The number of attempts this sync has used.",
}
"""Maps a field to its description. The text about deletes says that their `file.sha` is the last one sent."""

HEADERS = {
    "Content-Type": "The body is JSON in UTF-8.",
    "X-Docora-App-Id": "Your app's id.",
    "X-Docora-Timestamp": "The time of this attempt in Unix seconds.",
    "X-Docora-Signature": "`sha256=` followed by the hexadecimal HMAC-SHA256 of the timestamp, a dot and the body. It does not cover the "
    "`webhook-id`.",
    "X-Docora-Run-Id": "The sync this notification belongs to. Quote it when you ask an administrator about it.",
    "X-Docora-Reason": "Why it is sent: `initial`, `change`, `resync` or `retry`.",
    "X-Docora-Sequence": "A number that increases with every new notification about a path. Not signed: read it from the "
    "`webhook-id`.",
    "webhook-id": "Identifies the notification. It is the same for every retry and never reused. After `msg_` it holds the "
    "watch and the sequence, for a chunk also the chunk's id and index.",
    "webhook-timestamp": "The time of this attempt in Unix seconds.",
    "webhook-signature": "The Standard Webhooks signature, over the id, the timestamp and the body. Two, separated by a space, while a key is being replaced.",
    "User-Agent": "The version of Docora.",
}


@dataclass(frozen=True)
class Variant:
    """One possible body of a notification."""

    title: str
    body: bytes

    @property
    def readable(self) -> str:
        """The body indented for reading. Docora sends it without spaces."""
        return json.dumps(json.loads(self.body), indent=2, ensure_ascii=False)


@dataclass(frozen=True)
class Example:
    """The variants of one notification. `event` is the last part of its URL."""

    event: str
    variants: list[Variant]

    @property
    def fields(self) -> list[Field]:
        """The fields in the order of the bodies; those that every variant has are required. Raises KeyError for a field
        without a description."""
        bodies = [dict(_flat(json.loads(variant.body))) for variant in self.variants]
        fullest = max(bodies, key=len)
        return [
            Field(name, type_, all(name in body for body in bodies), DESCRIPTIONS[name])
            for name, type_ in fullest.items()
        ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, type) for every value that is not an object."""
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", {str: "string", int: "integer"}[type(inner)]


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _file_body(path: str, content: bytes, previous_sha: str | None = None) -> bytes:
    return file_body(REPOSITORY, path, _sha(content), len(content), content, COMMIT, NOON, previous_sha)


def _chunk_body() -> bytes:
    pieces = list(cut_base64(iter([_LARGE]), _PIECE))
    chunk = Chunk("0b9cbbd4-3ba5-4d0c-b5c4-6a3f3c7f6f9e", 0, len(pieces), pieces[0])
    return file_body(REPOSITORY, "film.mp4", _sha(_LARGE), len(_LARGE), chunk, COMMIT, NOON)


def _sync_failed() -> bytes:
    fields = sync_failed_fields(
        REPOSITORY,
        reason="network",
        message="git could not read the repository: Failed to connect to github.com. Docora retries automatically.",
        consecutive_failures=5,
        threshold=5,
        cooldown_until=NOON.replace(minute=30),
        retry_count=1,
    )
    return notice_body(fields, NOON)


def _sync_completed() -> bytes:
    tree = f"{_sha(_TEXT)}  readme.md\n".encode()
    return notice_body(sync_completed_fields(REPOSITORY, COMMIT, 1, _sha(tree)), NOON)


def examples() -> dict[str, Example]:
    """Return event → example."""
    bodies_by_event = {
        "create": {
            "A text file": _file_body("readme.md", _TEXT),
            "Any other file": _file_body("logo.png", _BINARY),
            "The first chunk of a large file (shortened)": _chunk_body(),
        },
        "update": {"A text file": _file_body("readme.md", _TEXT, _sha(_EARLIER))},
        "delete": {"": delete_body(REPOSITORY, "readme.md", _sha(_TEXT), COMMIT, NOON)},
        "sync_failed": {"": _sync_failed()},
        "sync_completed": {"": _sync_completed()},
        "ping": {"": notice_body(PING, NOON)},
    }
    return {
        event: Example(event, [Variant(title, body) for title, body in bodies.items()])
        for event, bodies in bodies_by_event.items()
    }


def header_lines(body: bytes, user_agent: str) -> list[str]:
    """Return the header lines of a notification with this body, signed with `KEY` at `NOON`."""
    envelope = Envelope("app_7d0b3f6a2c9e4815b6f0a3d2", "run_9c41e7a05b2d4f6893ce1a70", "change")
    lines = envelope.headers(body, webhook_id("c0ffee0123456789", SEQUENCE), SEQUENCE, int(NOON.timestamp()), [KEY])
    return [*lines, f"User-Agent: {user_agent}"]


def headers(user_agent: str) -> list[tuple[str, str, str]]:
    """Return (name, example, description) of each header. Raises KeyError for a header without a description."""
    body = examples()["ping"].variants[0].body
    split = (line.split(": ", 1) for line in header_lines(body, user_agent))
    return [(name, value, HEADERS[name]) for name, value in split]
