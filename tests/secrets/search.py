"""Collect all places where a secret could have leaked, as bytes, and search them for every encoding of it."""

import base64
import html
import json
import re
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from html import unescape
from pathlib import Path
from urllib.parse import quote, quote_plus

from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from redis import Redis

from deliveries_app.models import App

_MAX_PAGES_PER_KIND = 3


def forms(secret: str) -> set[bytes]:
    """Return the secret plain, escaped for JSON, HTML and URLs (also nested), in hex and in base64 at any offset."""
    raw = secret.encode()
    texts = {secret, html.escape(secret), json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    texts |= {quote(secret), quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1], repr(raw)[2:-1]}
    texts |= {html.escape(text) for text in texts} | {text.replace("\\", "\\\\") for text in texts}
    encoded = {raw.hex().encode()}
    for before in range(3):
        # The first and last base64 digits also depend on the neighbouring bytes.
        core = base64.b64encode(bytes(before) + raw)[4 if before else 0 : -4]
        encoded |= {core, core.replace(b"+", b"-").replace(b"/", b"_")}
    return {text.encode() for text in texts} | encoded


def found(places: Mapping[str, bytes], secrets: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names of the secrets found in each place, without places that have none."""
    searched = {name: forms(secret) for name, secret in secrets.items()}
    hits = {
        place: [name for name, encodings in searched.items() if any(encoding in content for encoding in encodings)]
        for place, content in places.items()
    }
    return {place: names for place, names in hits.items() if names}


def unpacked(content: bytes) -> bytes:
    """Return the content, followed by its decompressed form if it is zlib data."""
    try:
        return content + b"\n" + zlib.decompress(content)
    except zlib.error:
        return content


def redis_dump(client: Redis) -> bytes:
    """Return all keys and values."""
    parts: list[bytes] = []
    for key in client.scan_iter():
        kind = client.type(key)
        parts.append(key)
        match kind:
            case b"string":
                parts.append(client.get(key) or b"")
            case b"hash":
                parts += [part for item in client.hgetall(key).items() for part in item]
            case b"list":
                parts += client.lrange(key, 0, -1)
            case b"set":
                parts += client.smembers(key)
            case b"zset":
                parts += [member for member, _ in client.zrange(key, 0, -1, withscores=True)]
            case b"stream":
                parts += [repr(entry).encode() for entry in client.xrange(key)]
            case b"none":
                pass  # it has expired meanwhile
            case _:
                raise AssertionError(f"cannot dump {kind!r}")
    return b"\n".join(map(unpacked, parts))


def database_dump() -> bytes:
    """Return all rows of all tables, and the decoded sessions."""
    parts = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f'SELECT * FROM "{table}"')
            parts += [f"{table}: {row!r}" for row in cursor.fetchall()]
    parts += [repr(session.get_decoded()) for session in Session.objects.all()]
    return "\n".join(parts).encode()


def files_dump(*directories: Path) -> bytes:
    """Return the names and contents of all files in these directories."""
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    return b"\n".join(str(path).encode() + b"\n" + unpacked(path.read_bytes()) for path in files)


class Commands:
    """A thread that repeatedly records the command lines of all processes."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)
        self._thread.start()

    def _record(self) -> None:
        while not self._stopped.is_set():
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(entry.read_bytes().replace(b"\0", b" "))
                except OSError:
                    continue
            time.sleep(0.02)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def admin_pages(client: Client, *start_urls: str) -> Iterator[tuple[str, bytes]]:
    """Yield (URL, content) of linked pages below /admin/, a few of each kind."""
    waiting, seen, kinds = list(start_urls), set(start_urls), dict[str, int]()
    while waiting:
        address = waiting.pop(0)
        path, _, query = address.partition("?")
        kind = re.sub(r"\d+|bulk_[0-9a-f]+", "N", path) + ("?" if query else "")
        kinds[kind] = kinds.get(kind, 0) + 1
        if kinds[kind] > _MAX_PAGES_PER_KIND or "logout" in path:
            continue
        answer = client.get(address, follow=True)
        content = b"".join(answer.streaming_content) if answer.streaming else answer.content
        yield address, content
        links = {
            _resolved(path, unescape(link))
            for link in re.findall(r'(?:href|hx-get)="([^"#]+)', content.decode(errors="replace"))
        }
        new = sorted(link for link in links if link.startswith("/admin/") and link not in seen)
        seen.update(new)
        waiting += new


def _resolved(path: str, link: str) -> str:
    if link.startswith("?"):
        return path + link
    if re.match(r"\w+:|/", link):
        return link
    base = path.rpartition("/")[0].split("/")
    for step in link.split("/")[:-1]:
        base = base[:-1] if step == ".." else [*base, step]
    return "/".join([*base, link.split("/")[-1]])


def secrets_of(apps: Iterable[App]) -> dict[str, str]:
    """Return the secrets as stored now, decrypted, including the ones that Docora generated."""
    secrets: dict[str, str] = {}
    for app in apps:
        secrets |= {f"key of {app}": app.client_auth_key, f"new key of {app}": app.new_auth_key}
        for watch in app.watches.all():
            secrets |= {f"token of {watch}": watch.github_token, f"push secret of {watch}": watch.push_secret}
    return {name: secret for name, secret in secrets.items() if secret}
