"""Example notifications for the documentation. `payloads` builds the bodies and headers, so they match what is sent."""

import base64
import hashlib
import json
from datetime import UTC, datetime
from typing import NamedTuple

from deliveries_app.api import webhook_schemas
from deliveries_app.docs import api_reference
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
    verify_fields,
    webhook_id,
)
from deliveries_app.webhooks.verify import MAX_ENTRIES
from docora.http import USER_AGENT

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
KEY = "whsec_" + base64.b64encode(b"a signing key for everyone to try").decode()
COMMIT = hashlib.sha1(b"a commit", usedforsecurity=False).hexdigest()
REPOSITORY = RepositoryInfo("repo_5f0c2a9e1b7d4c3f8a6e0d12", "https://github.com/acme/handbook", "acme", "handbook")
SEQUENCE = int(NOON.timestamp()) * 1_000_000
_TEXT, _EARLIER, _BINARY = b"# Handbook\n", b"# Hand", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_LARGE = b"a file of many megabytes, cut short here\n"
_PIECE = 28  # characters of base64

_OTHER_HEADERS = {"Content-Type": "The body is JSON in UTF-8.", "User-Agent": "The version of Docora."}


class Variant(NamedTuple):
    """One possible body of a notification."""

    title: str
    body: bytes

    @property
    def readable(self) -> str:
        """The body indented for reading. Docora sends it without spaces."""
        return json.dumps(json.loads(self.body), indent=2, ensure_ascii=False)


class Example(NamedTuple):
    """The variants of one notification, and its fields. `event` is the last part of its URL."""

    event: str
    variants: list[Variant]
    fields: list[Field]


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _file_body(path: str, content: bytes, previous_sha: str | None = None) -> bytes:
    return file_body(REPOSITORY, path, _sha(content), len(content), content, COMMIT, NOON, previous_sha)


def _chunk_body() -> bytes:
    pieces = list(cut_base64(iter([_LARGE]), _PIECE))
    chunk = Chunk("0b9cbbd4-3ba5-4d0c-b5c4-6a3f3c7f6f9e", 0, len(pieces), pieces[0])
    return file_body(REPOSITORY, "film.mp4", _sha(_LARGE), len(_LARGE), chunk, COMMIT, NOON)


_TREE_SHA = _sha(f"{_sha(_TEXT)}  readme.md\n".encode())
_NOTICES = {
    "sync_failed": sync_failed_fields(
        REPOSITORY,
        reason="network",
        message="git could not read the repository: Failed to connect to github.com. Docora retries automatically.",
        consecutive_failures=5,
        threshold=5,
        cooldown_until=NOON.replace(minute=30),
        retry_count=1,
    ),
    "sync_completed": sync_completed_fields(REPOSITORY, COMMIT, 1, _TREE_SHA),
    "verify": verify_fields(REPOSITORY, COMMIT, _TREE_SHA, "", MAX_ENTRIES),
    "ping": PING,
}


def verify_answers() -> list[tuple[str, str]]:
    """Return (title, JSON) of the answers to the example of `verify`."""
    same = {"tree_sha256": _TREE_SHA}
    files = [{"path": "draft.md", "sha": _sha(b"# Draft\n")}, {"path": "readme.md", "sha": _sha(_EARLIER)}]
    pages = {"If the copy has this hash": same, "If it differs": {"files": files, "next": None}}
    return [(title, json.dumps(page, indent=2)) for title, page in pages.items()]


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
        **{event: {"": notice_body(fields, NOON)} for event, fields in _NOTICES.items()},
    }
    fields = api_reference.webhook_fields()
    return {
        event: Example(event, [Variant(title, body) for title, body in bodies.items()], fields[event])
        for event, bodies in bodies_by_event.items()
    }


def headers() -> list[tuple[str, str, str]]:
    """Return (name, example, description) of each header of the ping, signed with `KEY` at `NOON`.

    Raises KeyError for a header without a description.
    """
    envelope = Envelope("app_7d0b3f6a2c9e4815b6f0a3d2", "run_9c41e7a05b2d4f6893ce1a70", "change")
    body, ping_id = notice_body(PING, NOON), webhook_id("c0ffee0123456789", SEQUENCE)
    lines = envelope.headers(body, ping_id, SEQUENCE, int(NOON.timestamp()), [KEY])
    descriptions = webhook_schemas.HEADERS | _OTHER_HEADERS
    split = (line.split(": ", 1) for line in [*lines, f"User-Agent: {USER_AGENT}"])
    return [(name, value, descriptions[name]) for name, value in split]
