"""The bodies and headers of the wire contract, byte for byte."""

import base64
import hashlib
import json
import random
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from deliveries_app.webhooks.payloads import (
    PING,
    Chunk,
    Envelope,
    RepositoryInfo,
    chunk_count,
    cut_base64,
    delete_body,
    encode_content,
    endpoint,
    file_body,
    notice_body,
    sync_completed_fields,
    sync_failed_fields,
    timestamp,
    webhook_id,
)
from tests.wire.clients import node_command

REPOSITORY = RepositoryInfo("repo_1", "https://github.com/acme/widgets.git", "acme", "widgets")
ABOUT = (
    '{"repository":{"repository_id":"repo_1","github_url":"https://github.com/acme/widgets.git",'
    '"owner":"acme","name":"widgets"},'
)
NOON = datetime(2026, 11, 24, 12, 0, 0, 999, tzinfo=UTC)
SHA, COMMIT = "e" * 64, "c" * 40
END = f'"commit_sha":"{COMMIT}","timestamp":"2026-11-24T12:00:00.000Z"}}'

STRINGS = {
    "plain": (b"hello", '"hello"'),
    "empty": (b"", '""'),
    "quotes and backslashes": (b"\"'\\/", '"\\"\'\\\\/"'),
    "short escapes": (b"\b\t\n\f\r", '"\\b\\t\\n\\f\\r"'),
    "other control characters": (b"\x01\x0b\x1f", '"\\u0001\\u000b\\u001f"'),
    "DEL is not escaped in JSON": (b"\x7f", '"\x7f"'),
    "lone CR": (b"a\rb", '"a\\rb"'),
    "CRLF": (b"a\r\nb\r\n", '"a\\r\\nb\\r\\n"'),
    "byte order mark": (b"\xef\xbb\xbfa", '"\ufeffa"'),
    "line separators in JavaScript": ("\u2028\u2029\x85".encode(), '"\u2028\u2029\x85"'),
    "C1 control characters": ("\x80\x9f".encode(), '"\x80\x9f"'),
    "emoji": ("😀 👩‍👩‍👧 🇩🇪".encode(), '"😀 👩‍👩‍👧 🇩🇪"'),
    "first and last character beyond the BMP": ("\U00010000\U0010ffff".encode(), '"\U00010000\U0010ffff"'),
    "noncharacters": ("\ufffe\uffff\ufffd".encode(), '"\ufffe\uffff\ufffd"'),
    "decomposed letters stay decomposed": ("e\u0301é".encode(), '"e\u0301é"'),
    "html": (b"</script><!-- & -->", '"</script><!-- & -->"'),
    "JSON in JSON": (b'{"__proto__":{"1":1.0e5}}', '"{\\"__proto__\\":{\\"1\\":1.0e5}}"'),
}
BINARY = {
    "NUL": b"a\0b",
    "Latin-1": "déjà vu".encode("latin-1"),
    "UTF-16 little-endian": "déjà vu".encode("utf-16-le"),
    "UTF-16 with byte order mark": "déjà vu".encode("utf-16"),
    "Windows-1252 quotes": b"\x93quoted\x94",
    "an encoded surrogate": b"\xed\xa0\x80",
    "an overlong slash": b"\xc0\xaf",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "a character cut in two": "é".encode()[:1],
    "every byte": bytes(range(256)),
}
EVERY_CONTENT = {**{name: content for name, (content, _) in STRINGS.items()}, **BINARY}


def body_of(content: bytes | Chunk, **changes) -> bytes:
    return file_body(REPOSITORY, "p", SHA, 5, content, COMMIT, NOON, **changes)


@pytest.mark.parametrize(("content", "literal"), STRINGS.values(), ids=STRINGS)
def test_text_is_escaped_as_in_javascript(content: bytes, literal: str) -> None:
    expected = f'{ABOUT}"file":{{"path":"p","sha":"{SHA}","size":5,"content":{literal}}},{END}'
    assert body_of(content) == expected.encode()


@pytest.mark.parametrize("content", BINARY.values(), ids=BINARY)
def test_binary_content_is_base64(content: bytes) -> None:
    written = base64.b64encode(content).decode()
    expected = (
        f'{ABOUT}"file":{{"path":"p","sha":"{SHA}","size":5,"content":"{written}","content_encoding":"base64"}},{END}'
    )
    assert body_of(content) == expected.encode()


@pytest.mark.parametrize("content", EVERY_CONTENT.values(), ids=EVERY_CONTENT)
def test_content_round_trips(content: bytes) -> None:
    file = json.loads(body_of(content))["file"]
    encoded = file.get("content_encoding") == "base64"
    decoded = base64.b64decode(file["content"], validate=True) if encoded else file["content"].encode()
    assert decoded == content


def test_update_body() -> None:
    expected = f'{ABOUT}"file":{{"path":"p","sha":"{SHA}","size":5,"content":"x"}},"previous_sha":"{"d" * 64}",{END}'
    assert body_of(b"x", previous_sha="d" * 64) == expected.encode()


def test_delete_body() -> None:
    body = delete_body(REPOSITORY, 'ü/"q"', SHA, COMMIT, NOON)
    assert body == f'{ABOUT}"file":{{"path":"ü/\\"q\\"","sha":"{SHA}"}},{END}'.encode()


def test_chunk_body() -> None:
    body = body_of(Chunk("11111111-2222-3333-4444-555555555555", 0, 10, "QUJD"))
    chunk = '"chunk":{"id":"11111111-2222-3333-4444-555555555555","index":0,"total":10}'
    expected = (
        f'{ABOUT}"file":{{"path":"p","sha":"{SHA}","size":5,'
        f'"content":"QUJD","content_encoding":"base64",{chunk}}},{END}'
    )
    assert body == expected.encode()


def test_sync_completed() -> None:
    expected = f'{{"event":"sync_completed",{ABOUT[1:]}"commit_sha":"{COMMIT}","files":3,"tree_sha256":"{SHA}",'
    expected += '"timestamp":"2026-11-24T12:00:00.000Z"}'
    fields = sync_completed_fields(REPOSITORY, COMMIT, 3, SHA)
    assert notice_body(fields, NOON) == expected.encode()


def failed_fields(message: str = "The host does not answer.") -> dict[str, Any]:
    return sync_failed_fields(
        REPOSITORY,
        reason="network",
        message=message,
        consecutive_failures=5,
        threshold=5,
        cooldown_until=NOON + timedelta(minutes=30),
        retry_count=2,
    )


def test_sync_failed() -> None:
    expected = (
        f'{{"event":"sync_failed",{ABOUT[1:-1]},'
        '"error":{"type":"git_failure","message":"The host does not answer.","reason":"network"},'
        '"circuit_breaker":{"status":"open","consecutive_failures":5,"threshold":5,'
        '"cooldown_until":"2026-11-24T12:30:00.000Z"},"retry_count":2,"timestamp":"2026-11-24T12:00:00.000Z"}'
    )
    assert notice_body(failed_fields(), NOON) == expected.encode()


def test_ping() -> None:
    assert notice_body(PING, NOON) == b'{"event":"ping","timestamp":"2026-11-24T12:00:00.000Z"}'


def stringified(bodies: list[bytes]) -> list[bytes]:
    """Return what `JSON.stringify(JSON.parse(body))` gives for each body in Node.js."""
    script = (
        "const lines = require('fs').readFileSync(0, 'utf8').split('\\n');"
        "process.stdout.write(lines.map(line => JSON.stringify(JSON.parse(line))).join('\\n'))"
    )
    done = subprocess.run(
        [node_command(), "-e", script], input=b"\n".join(bodies), capture_output=True, check=True, timeout=60
    )
    return done.stdout.split(b"\n")


def test_bodies_equal_their_stringified_json() -> None:
    """Existing clients verify `JSON.stringify(JSON.parse(body))`."""
    chance = random.Random(20260103)
    scalars = [*range(0x80), *range(0x80, 0xD800, 97), *range(0xE000, 0x110000, 1009), 0x2028, 0x2029, 0xFEFF, 0xFFFF]
    contents = [
        *EVERY_CONTENT.values(),
        "".join(map(chr, scalars)).encode(),
        *("".join(chr(chance.choice(scalars)) for _ in range(200)).encode() for _ in range(50)),
        *(chance.randbytes(60) for _ in range(50)),
    ]
    bodies = [body_of(content) for content in contents]
    for text in (content.decode() for content, _ in STRINGS.values()):
        bodies.append(delete_body(REPOSITORY, f"dir/{text}", SHA, COMMIT, NOON))
        bodies.append(file_body(REPOSITORY, f"{text}.txt", SHA, 2**40, b"x", COMMIT, NOON, SHA))
    events = [sync_completed_fields(REPOSITORY, COMMIT, 0, SHA), failed_fields('"é\u2028😀'), PING]
    bodies += [body_of(Chunk("id", 3, 10, "QUJD")), *(notice_body(event, NOON) for event in events)]
    assert stringified(bodies) == bodies


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05.000Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 678_999, tzinfo=UTC), "2026-01-02T03:04:05.678Z"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))), "2026-01-02T01:04:05.000Z"),
    ],
)
def test_timestamps_are_utc_with_milliseconds(moment: datetime, written: str) -> None:
    assert timestamp(moment) == written


def test_text_has_no_content_encoding() -> None:
    assert encode_content(b"text") == {"content": "text"}


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 11, 12, 13, 299, 300, 301, 1000])
@pytest.mark.parametrize("piece", [4, 10, 16, 400])
def test_joined_pieces_decode_to_the_file(size: int, piece: int) -> None:
    content = random.Random(size).randbytes(size)
    for block in (1, 7, 64, 2000):
        blocks = (content[start : start + block] for start in range(0, size, block))
        pieces = list(cut_base64(blocks, piece))
        assert base64.b64decode("".join(pieces), validate=True) == content
        assert all(len(part) == piece for part in pieces[:-1])
        assert not size or len(pieces) == chunk_count(size, piece)


def test_webhook_id() -> None:
    assert webhook_id("0123456789abcdef", 1_767_225_600_000_000) == "msg_0123456789abcdef_1767225600000000"
    assert webhook_id("w", 7, Chunk("1-2", 3, 10, "")) == "msg_w_7_1-2_3"


@pytest.mark.parametrize(
    "base", ["https://app.example/hooks", "https://app.example/hooks/", "https://app.example/hooks//"]
)
def test_endpoint_has_one_slash_after_the_base_url(base: str) -> None:
    assert endpoint(base, "create") == "https://app.example/hooks/create"


def test_notification_headers() -> None:
    body = b'{"a":1}'
    envelope = Envelope("app_1", "run_1", "resync")
    lines = envelope.headers(body, "msg_w_7", 7, 1_700_000_000, ["a-key-of-an-app"])
    headers = dict(line.split(": ", 1) for line in lines)
    assert len(headers) == len(lines)
    signature, standard = headers.pop("X-Docora-Signature"), headers.pop("webhook-signature")
    assert headers == {
        "Content-Type": "application/json",
        "X-Docora-App-Id": "app_1",
        "X-Docora-Timestamp": "1700000000",
        "X-Docora-Run-Id": "run_1",
        "X-Docora-Reason": "resync",
        "X-Docora-Sequence": "7",
        "webhook-id": "msg_w_7",
        "webhook-timestamp": "1700000000",
    }
    assert signature.startswith("sha256=")
    assert len(signature) == len("sha256=") + hashlib.sha256().digest_size * 2
    assert standard.startswith("v1,")
