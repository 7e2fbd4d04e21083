"""One example of everything that an app is sent, with the meaning of each field and header, for the documentation.

Bodies and headers are made by `payloads`, so they are what is sent; a field or a header that has no meaning here, or a
meaning without a field, is an error of the tests. Pure.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from deliveries_app.webhooks.payloads import (
    PING,
    Chunk,
    Envelope,
    RepositoryInfo,
    cut_base64,
    delete_body,
    file_body,
    notice_body,
    sync_completed_facts,
    sync_failed_facts,
    webhook_id,
)

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
KEY = "whsec_" + base64.b64encode(b"a signing key for everybody to try").decode()
COMMIT = hashlib.sha1(b"a commit", usedforsecurity=False).hexdigest()
REPOSITORY = RepositoryInfo("repo_5f0c2a9e1b7d4c3f8a6e0d12", "https://github.com/acme/handbook", "acme", "handbook")
SEQUENCE = int(NOON.timestamp()) * 1_000_000
_TEXT, _EARLIER, _BINARY = b"# Handbook\n", b"# Hand", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_LARGE = b"a file of many megabytes, cut short here\n"
_PIECE = 28  # characters of base64

MEANINGS = {
    "event": "The name of the notification, as at the end of the address.",
    "repository.repository_id": "The repository's id, the same for every app that watches it.",
    "repository.github_url": "Its address, spelled as your app gave it.",
    "repository.owner": "The part of the address before the name.",
    "repository.name": "The last part of the address, without `.git`.",
    "file.path": "From the top of the repository, with `/` between folders. At most 1,024 bytes.",
    "file.sha": "SHA-256 of the file's content in hexadecimal. It is not git's blob id.",
    "file.size": "Bytes of the whole content.",
    "file.content": "The content: text as it is, or base64, or one piece of the whole file's base64.",
    "file.content_encoding": "`base64`. Absent where `content` is text.",
    "file.chunk.id": "The same for all chunks of one attempt to send the file.",
    "file.chunk.index": "The place of this chunk, from 0.",
    "file.chunk.total": "How many chunks there are.",
    "previous_sha": "The `sha` that your app acknowledged last for this path.",
    "commit_sha": "The commit that the repository's default branch points to.",
    "timestamp": "When this attempt was made: ISO 8601, UTC, with milliseconds.",
    "files": "How many files your app should hold now.",
    "tree_sha256": "SHA-256 over the lines `{sha}  {path}` (two spaces, each ended by a line feed) of all these files, in "
    "the order of the paths' bytes.",
    "error.type": "Always `git_failure`.",
    "error.message": "What went wrong and what to do, for people. It never holds a token.",
    "error.reason": "`auth`, `not_found`, `timeout`, `network`, `too_large`, `corrupt` or `other`.",
    "circuit_breaker.status": "Always `open`: the repository is left alone for a while.",
    "circuit_breaker.consecutive_failures": "Failures in a row so far.",
    "circuit_breaker.threshold": "How many of them open the circuit.",
    "circuit_breaker.cooldown_until": "When the repository is tried again.",
    "retry_count": "Attempts that this sync has used up.",
}
"""Field → what it means; where `file.sha` is the last sent one, its notification says so."""

HEADERS = {
    "Content-Type": "The body is JSON in UTF-8.",
    "X-Docora-App-Id": "Your app's id.",
    "X-Docora-Timestamp": "Unix seconds of this attempt.",
    "X-Docora-Signature": "`sha256=` and the hexadecimal HMAC-SHA256 over the timestamp, a dot and the body.",
    "X-Docora-Run-Id": "The sync that this belongs to. Name it when you ask an administrator about a notification.",
    "X-Docora-Reason": "Why it is sent: `initial`, `change`, `resync` or `retry`.",
    "X-Docora-Sequence": "A number that grows with every new statement about a path.",
    "webhook-id": "The same whenever this notification is sent again, and never used for another one.",
    "webhook-timestamp": "Unix seconds of this attempt.",
    "webhook-signature": "The signature of Standard Webhooks; two of them, with a space between, while a key is being "
    "replaced.",
    "User-Agent": "The version of Docora.",
}


@dataclass(frozen=True)
class Variant:
    """One body of a notification."""

    title: str
    body: bytes

    @property
    def readable(self) -> str:
        """With line breaks, as nobody sends it."""
        return json.dumps(json.loads(self.body), indent=2, ensure_ascii=False)


@dataclass(frozen=True)
class Meaning:
    """One field. Not `required`: some of the bodies lack it."""

    name: str
    type: str
    required: bool
    description: str


@dataclass(frozen=True)
class Example:
    """Everything about one notification; `event` is the end of its address."""

    event: str
    variants: list[Variant]

    @property
    def fields(self) -> list[Meaning]:
        """In the order of the bodies; KeyError for one without a meaning."""
        bodies = [dict(_flat(json.loads(variant.body))) for variant in self.variants]
        fullest = max(bodies, key=len)
        return [
            Meaning(name, type_, all(name in body for body in bodies), MEANINGS[name])
            for name, type_ in fullest.items()
        ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name → type, of everything that is no object."""
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", {str: "string", int: "integer"}[type(inner)]


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _written(path: str, content: bytes, previous_sha: str | None = None) -> bytes:
    return file_body(REPOSITORY, path, _sha(content), len(content), content, COMMIT, NOON, previous_sha)


def _chunk_body() -> bytes:
    pieces = list(cut_base64(iter([_LARGE]), _PIECE))
    chunk = Chunk("0b9cbbd4-3ba5-4d0c-b5c4-6a3f3c7f6f9e", 0, len(pieces), pieces[0])
    return file_body(REPOSITORY, "film.mp4", _sha(_LARGE), len(_LARGE), chunk, COMMIT, NOON)


def _sync_failed() -> bytes:
    facts = sync_failed_facts(
        REPOSITORY,
        reason="network",
        message="git could not read the repository: Failed to connect to github.com. It is tried again by itself.",
        consecutive_failures=5,
        threshold=5,
        cooldown_until=NOON.replace(minute=30),
        retry_count=1,
    )
    return notice_body(facts, NOON)


def _sync_completed() -> bytes:
    held = f"{_sha(_TEXT)}  readme.md\n".encode()
    return notice_body(sync_completed_facts(REPOSITORY, COMMIT, 1, _sha(held)), NOON)


def examples() -> dict[str, Example]:
    """event → its example."""
    table = {
        "create": {
            "A text file": _written("readme.md", _TEXT),
            "Any other file": _written("logo.png", _BINARY),
            "The first chunk of a large file (shortened)": _chunk_body(),
        },
        "update": {"A text file": _written("readme.md", _TEXT, _sha(_EARLIER))},
        "delete": {"": delete_body(REPOSITORY, "readme.md", _sha(_TEXT), COMMIT, NOON)},
        "sync_failed": {"": _sync_failed()},
        "sync_completed": {"": _sync_completed()},
        "ping": {"": notice_body(PING, NOON)},
    }
    return {
        event: Example(event, [Variant(title, body) for title, body in bodies.items()])
        for event, bodies in table.items()
    }


def header_lines(body: bytes, user_agent: str) -> list[str]:
    """All headers of a notification with this body, signed with `KEY` at noon."""
    envelope = Envelope("app_7d0b3f6a2c9e4815b6f0a3d2", "run_9c41e7a05b2d4f6893ce1a70", "change")
    lines = envelope.headers(body, webhook_id("c0ffee0123456789", SEQUENCE), SEQUENCE, int(NOON.timestamp()), [KEY])
    return [*lines, f"User-Agent: {user_agent}"]


def headers(user_agent: str) -> list[tuple[str, str, str]]:
    """Name, example and meaning of each header; KeyError for one without a meaning."""
    body = examples()["ping"].variants[0].body
    split = (line.split(": ", 1) for line in header_lines(body, user_agent))
    return [(name, value, HEADERS[name]) for name, value in split]
