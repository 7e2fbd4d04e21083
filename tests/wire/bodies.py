"""Every kind of body that Docora can send, and the headers for one."""

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime

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

REPOSITORY = RepositoryInfo("repo_0123456789abcdef01234567", "https://github.com/acme/next.js.git", "acme", "next.js")
COMMIT, SHA = "c" * 40, "e" * 64
NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SEQUENCE = 1_767_225_600_000_000

CONTROL = bytes(range(1, 0x20))

CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "a letter": b"a",
    "quotes": b"\"double\" 'single' `back`",
    "backslashes": b"\\ \\\\ \\n \\u0041 C:\\new\\table \\",
    "all control characters but NUL": CONTROL,
    **{f"U+{code:04X}": b"a%cb" % code for code in range(0x20)},
    "DEL": b"a\x7fb",
    "C1 control characters": "".join(map(chr, range(0x80, 0xA0))).encode(),
    "line and paragraph separators": "a\u2028b\u2029c\x85d".encode(),
    "emoji": "😀 👩‍👩‍👧‍👦 🇩🇪 ❤️".encode(),
    "other astral characters": "𝕬 𠮷 \U00010000 \U0010ffff".encode(),
    "noncharacters": "\ufffe \uffff \ufdd0 \U0001ffff \ufffd".encode(),
    "private use": "\ue000\uf8ff\U000f0000".encode(),
    "a lone byte order mark": b"\xef\xbb\xbf",
    "a byte order mark before and within text": "\ufefftext\ufefftext".encode(),
    "CRLF": b"a\r\nb\r\n",
    "CR": b"a\rb\r",
    "mixed line endings": b"a\nb\r\nc\rd\n\r",
    "no line ending": b"a\nb",
    "whitespace at both ends": b" \t\n a \t\n ",
    "combining characters, composed and not": "é e\u0301 \u0301 Z\u0351\u036b\u0343".encode(),
    "right-to-left marks and overrides": "\u200f\u202eשלום\u202c \u2066ابجد\u2069".encode(),
    "zero-width characters": "a\u200bb\u200cc\u200dd\u2060e\u00ad".encode(),
    "every script": "Ünïçødé Ελληνικά Кириллица हिन्दी ไทย 漢字 한글 ქართული".encode(),
    "the end of a script": b"</script><!-- ]]> --><script>alert(1)</script>",
    "JSON": b'{"__proto__":{"x":1},"1":0.10,"constructor":1e400,"a":"\\u2028"}',
    "a number": b"-0.0e+1",
    "a template of each kind": b"${x} {{ x }} %s {0} #{x} <%= x %>",
    "a very long line": b"x" * 300_000,
    "a very long line of escaped characters": b"\x01" * 100_000,
    "a very long line of astral characters": "😀".encode() * 50_000,
    "every plane": "".join(chr(plane << 16 | 0xA000) for plane in range(17)).encode(),
    "every character of the BMP": "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x10000)])).encode(),
    "NUL alone": b"\0",
    "NUL in text": b"text\0text",
    "Latin-1": "déjà vu, größer".encode("latin-1"),
    "Windows-1252": "“quoted” – €".encode("cp1252"),
    "UTF-16, little-endian": "text 😀".encode("utf-16-le"),
    "UTF-16 with a byte order mark": "text 😀".encode("utf-16"),
    "UTF-32": "text 😀".encode("utf-32"),
    "Shift JIS": "日本語テキスト".encode("shift_jis"),
    "an encoded surrogate": b"\xed\xa0\x80",
    "a pair of encoded surrogates": b"\xed\xa0\xbd\xed\xb8\x80",
    "an overlong slash": b"\xc0\xaf",
    "an overlong NUL": b"\xc0\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "half a character": "é".encode()[:1],
    "half a character at the end": "text é".encode()[:-1],
    "every byte": bytes(range(256)),
    "two padding characters in base64": b"\xff",
    "one padding character in base64": b"\xff\xfe",
    "an image": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
}

PATHS: dict[str, str] = {
    "plain": "src/index.ts",
    "__proto__": "__proto__",
    "__proto__ and constructor": "__proto__/constructor/prototype.js",
    "toString and hasOwnProperty": "toString/hasOwnProperty",
    "toJSON": "toJSON",
    "an index": "0",
    "indexes": "1/2/3",
    "the largest index": "4294967294",
    "a number beyond the safe integers": "9007199254740993",
    "a negative number": "-1",
    "a quote": '"quoted".txt',
    "a backslash": "dir\\file",
    "a backslash before a quote": '\\"',
    "a control character": "a\x01b\x1f",
    "a tab and a line feed": "a\tb\nc\rd",
    "DEL": "a\x7fb",
    "a line separator": "a\u2028b\u2029c",
    "an emoji": "😀/👩‍👩‍👧.md",
    "an astral character": "𠮷野家.txt",
    "the last characters": "\ufffe\uffff\U0010ffff",
    "a byte order mark": "\ufeffreadme",
    "a decomposed letter": "e\u0301.txt",
    "a composed letter": "é.txt",
    "a right-to-left override": "\u202egpj.exe",
    "the end of a script": "</script>.html",
    "spaces": " leading and trailing ",
    "shell syntax": "$(id);`id` && 'x' > y | z*?[a]{b}~!#",
    "URL syntax": "a%2fb?c=d&e#f",
    "an option": "--upload-pack=id",
    "a very long path": "/".join(["folder" * 10] * 16),
}

MESSAGES: dict[str, str] = {
    "plain": "The token was refused: give a token that may read the repository.",
    "with quotes and breaks": 'fatal: "x"\n\tremote: \\ </script>',
    "with separators and emoji": "\u2028 😀 \ufffd …",
}


def file_notification(content: bytes, path: str = "src/index.ts", previous_sha: str | None = None) -> bytes:
    """Return a `create` body, or with `previous_sha` an `update` body, with the right sha and size."""
    sha = hashlib.sha256(content).hexdigest()
    return file_body(REPOSITORY, path, sha, len(content), content, COMMIT, NOON, previous_sha)


def chunked(content: bytes, piece: int) -> list[bytes]:
    """Return the bodies of a chunked file, one for each piece of its base64."""
    sha, pieces = hashlib.sha256(content).hexdigest(), list(cut_base64(iter([content]), piece))
    chunks = [Chunk("0b9cbbd4-3ba5-4d0c-b5c4-6a3f3c7f6f9e", n, len(pieces), text) for n, text in enumerate(pieces)]
    return [file_body(REPOSITORY, "big.bin", sha, len(content), chunk, COMMIT, NOON) for chunk in chunks]


def _failed(message: str) -> bytes:
    fields = sync_failed_fields(
        REPOSITORY,
        reason="auth",
        message=message,
        consecutive_failures=5,
        threshold=5,
        cooldown_until=NOON,
        retry_count=0,
    )
    return notice_body(fields, NOON)


def _table() -> dict[str, bytes]:
    table = {f"create: {name}": file_notification(content) for name, content in CONTENTS.items()}
    table |= {f"update: {name}": file_notification(content, previous_sha=SHA) for name, content in CONTENTS.items()}
    makers: dict[str, Callable[[str], bytes]] = {
        "create at": lambda path: file_notification(b"x", path),
        "update at": lambda path: file_notification(b"\0", path, SHA),
        "delete at": lambda path: delete_body(REPOSITORY, path, SHA, COMMIT, NOON),
    }
    table |= {f"{kind} {name}": make(path) for kind, make in makers.items() for name, path in PATHS.items()}
    pieces = chunked(bytes(range(256)) * 50, 4096)
    table |= {f"chunk {number} of {len(pieces)}": body for number, body in enumerate(pieces, 1)}
    table |= {f"sync_failed {name}": _failed(message) for name, message in MESSAGES.items()}
    table["a huge size"] = file_body(REPOSITORY, "p", SHA, 2**53 - 1, b"x", COMMIT, NOON)
    table["sync_completed"] = notice_body(sync_completed_fields(REPOSITORY, COMMIT, 1_000_000, SHA), NOON)
    table |= {
        f"verify after {name}": notice_body(verify_fields(REPOSITORY, COMMIT, SHA, path, 4000), NOON)
        for name, path in {"": "", **PATHS}.items()
    }
    table["ping"] = notice_body(PING, NOON)
    return table


BODIES = _table()


def signed(body: bytes, *keys: str, age: float = 0) -> dict[str, str]:
    """Return the headers that Docora would have sent `age` seconds ago."""
    envelope = Envelope("app_0123456789abcdef01234567", "run_0123456789abcdef01234567", "change")
    message_id = webhook_id("0123456789abcdef", SEQUENCE)
    lines = envelope.headers(body, message_id, SEQUENCE, int(time.time() - age), keys)
    return dict(line.split(": ", 1) for line in lines)
