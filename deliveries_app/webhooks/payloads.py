"""Build webhook bodies and headers. Pure functions; their format is fixed by the wire contract.

Bodies equal `JSON.stringify(JSON.parse(body))`, because existing clients verify signatures that way:
compact, non-ASCII characters unescaped, keys in this order, no floats, no integer-like keys.
"""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from deliveries_app.webhooks import signing
from docora.security.redaction import MASK


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    """The `repository` object in bodies. orjson serializes it as it is. `github_url` is exactly as the app supplied it."""

    repository_id: str
    github_url: str
    owner: str
    name: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a large file: its index, and its part of the file's base64."""

    id: str
    index: int
    total: int
    content: str


def timestamp(moment: datetime) -> str:
    """Return ISO 8601 in UTC with milliseconds and `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode_content(content: bytes) -> dict[str, str]:
    """Return `content` as text if it is valid UTF-8 without NUL, otherwise as base64 with its marker.

    Python's decoder rejects surrogates and overlong forms, and preserves a BOM and CRLF.
    """
    if b"\0" not in content:
        try:
            return {"content": content.decode("utf-8")}
        except UnicodeDecodeError:
            pass
    return {"content": base64.b64encode(content).decode("ascii"), "content_encoding": "base64"}


def file_body(
    repository: RepositoryInfo,
    path: str,
    sha: str,
    size: int,
    content: bytes | Chunk,
    commit_sha: str,
    moment: datetime,
    previous_sha: str | None = None,
) -> bytes:
    """Return the body of `create`, or of `update` if `previous_sha` is given, for a whole file or one chunk."""
    file: dict[str, Any] = {"path": path, "sha": sha, "size": size}
    if isinstance(content, Chunk):
        file |= {
            "content": content.content,
            "content_encoding": "base64",
            "chunk": {"id": content.id, "index": content.index, "total": content.total},
        }
    else:
        file |= encode_content(content)
    body: dict[str, Any] = {"repository": repository, "file": file}
    if previous_sha is not None:
        body["previous_sha"] = previous_sha
    return orjson.dumps(body | {"commit_sha": commit_sha, "timestamp": timestamp(moment)})


def delete_body(repository: RepositoryInfo, path: str, sha: str, commit_sha: str, moment: datetime) -> bytes:
    """Return the body of `delete`. `sha` is what the app last acknowledged or, if there is none, was last sent."""
    return orjson.dumps(
        {
            "repository": repository,
            "file": {"path": path, "sha": sha},
            "commit_sha": commit_sha,
            "timestamp": timestamp(moment),
        }
    )


def notice_body(fields: Mapping[str, Any], moment: datetime) -> bytes:
    """Return the body of an event that is not about one file: its fields in order, then this attempt's timestamp."""
    return orjson.dumps({**fields, "timestamp": timestamp(moment)})


def sync_completed_fields(repository: RepositoryInfo, commit_sha: str, files: int, tree_sha256: str) -> dict[str, Any]:
    """Return the fields of `sync_completed`. `tree_sha256` hashes the lines `{sha}  {path}\\n` in byte order of the paths."""
    return {
        "event": "sync_completed",
        "repository": repository,
        "commit_sha": commit_sha,
        "files": files,
        "tree_sha256": tree_sha256,
    }


def sync_failed_fields(
    repository: RepositoryInfo,
    *,
    reason: str,
    message: str,
    consecutive_failures: int,
    threshold: int,
    cooldown_until: datetime,
    retry_count: int,
) -> dict[str, Any]:
    """Return the fields of `sync_failed`, sent when the circuit opens. `reason` is a git failure cause."""
    return {
        "event": "sync_failed",
        "repository": repository,
        "error": {"type": "git_failure", "message": message, "reason": reason},
        "circuit_breaker": {
            "status": "open",
            "consecutive_failures": consecutive_failures,
            "threshold": threshold,
            "cooldown_until": timestamp(cooldown_until),
        },
        "retry_count": retry_count,
    }


def verify_fields(
    repository: RepositoryInfo, commit_sha: str, tree_sha256: str, after: str, limit: int
) -> dict[str, Any]:
    """Return the fields of `verify`, which asks for the app's files after the path `after`, at most `limit` of them."""
    return {
        "event": "verify",
        "repository": repository,
        "commit_sha": commit_sha,
        "tree_sha256": tree_sha256,
        "after": after,
        "limit": limit,
    }


VERIFY_REASON = "verify"
"""The `X-Docora-Reason` of a check for differences. It belongs to no run."""
PING: dict[str, Any] = {"event": "ping"}
PING_REASON = "ping"
"""The `X-Docora-Reason` of a ping. It belongs to no run."""


def chunk_count(size: int, chunk_size: int) -> int:
    """Return the number of chunks of `chunk_size` base64 characters for `size` bytes."""
    encoded = 4 * -(-size // 3)
    return max(1, -(-encoded // chunk_size))


def cut_base64(blocks: Iterator[bytes], chunk_size: int) -> Iterator[str]:
    """Yield the base64 of the concatenated blocks in pieces of `chunk_size` characters, one in memory at a time."""
    raw, encoded = b"", ""
    for block in blocks:
        raw += block
        whole = len(raw) - len(raw) % 3
        encoded += base64.b64encode(raw[:whole]).decode("ascii")
        raw = raw[whole:]
        while len(encoded) >= chunk_size:
            yield encoded[:chunk_size]
            encoded = encoded[chunk_size:]
    encoded += base64.b64encode(raw).decode("ascii")
    for start in range(0, len(encoded), chunk_size):
        yield encoded[start : start + chunk_size]


def webhook_id(watch_id: str, sequence: int, chunk: Chunk | None = None) -> str:
    """Return the message id: stable across retries, unique per notification, without a dot."""
    base = f"msg_{watch_id}_{sequence}"
    return f"{base}_{chunk.id}_{chunk.index}" if chunk else base


@dataclass(frozen=True, slots=True)
class Envelope:
    """Header values shared by all notifications of one run."""

    app_id: str
    run_id: str
    reason: str

    def headers(
        self, body: bytes, message_id: str, sequence: int, unix_seconds: int, keys: Sequence[str]
    ) -> tuple[str, ...]:
        """Return the header lines for `body`, signed with this attempt's time.

        The first of the live `keys` signs `X-Docora-Signature`; every key adds a part to `webhook-signature`.
        """
        standard = " ".join(signing.standard_signature(key, message_id, unix_seconds, body) for key in keys)
        return (
            "Content-Type: application/json",
            f"X-Docora-App-Id: {self.app_id}",
            f"X-Docora-Timestamp: {unix_seconds}",
            f"X-Docora-Signature: {signing.docora_signature(keys[0], unix_seconds, body)}",
            f"X-Docora-Run-Id: {self.run_id}",
            f"X-Docora-Reason: {self.reason}",
            f"X-Docora-Sequence: {sequence}",
            f"webhook-id: {message_id}",
            f"webhook-timestamp: {unix_seconds}",
            f"webhook-signature: {standard}",
        )


_SECRET_PARTS = re.compile(r"(?<=sha256=)[0-9a-f]+|(?<=v1,)\S+")


def masked_headers(lines: Sequence[str]) -> dict[str, str]:
    """Return name → value of a notification's header lines, with masked signatures and without credentials."""
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name.lower().endswith("signature"):
            value = _SECRET_PARTS.sub(MASK, value)
        if name.lower() not in {"authorization", "cookie"}:
            headers[name] = value
    return headers


def endpoint(base_url: str, event: str) -> str:
    """Return `{base_url}/{event}` with exactly one slash between."""
    return f"{base_url.rstrip('/')}/{event}"
