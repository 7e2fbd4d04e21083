"""Receives Docora's notifications and verifies their signatures. Python 3.9 or newer, no packages.

    DOCORA_KEY='the signing key of your app' PORT=9000 python verify.py

What is signed are the bytes of the body as they came: verify first, parse afterwards. (Flask: `request.get_data()`,
Django: `request.body`, FastAPI: `await request.body()`.)
"""

import base64
import hashlib
import hmac
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOLERANCE_SECONDS = 300  # a request that is older may be a recorded one that somebody plays again
MAX_BODY_BYTES = 8 * 1024 * 1024  # enough: larger files come in chunks


class Refused(Exception):
    """Answer with this status instead of a 2xx. Docora shows the text to an administrator, and sends it again."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def verify(headers: Mapping[str, str], body: bytes, key: str) -> bool:
    """Return whether the request was signed with the key less than five minutes ago. Docora signs every request twice.

    X-Docora-Signature covers the time and the body, webhook-signature covers webhook-id as well. While the key is being
    replaced, webhook-signature holds one signature for each key.
    """
    now = time.time()
    timestamps = headers.get("X-Docora-Timestamp", ""), headers.get("webhook-timestamp", "")
    if not all(re.fullmatch("[0-9]{1,12}", each) and abs(now - int(each)) <= TOLERANCE_SECONDS for each in timestamps):
        return False
    digest = hmac.new(key.encode(), timestamps[0].encode() + b"." + body, hashlib.sha256).hexdigest()
    if not same(headers.get("X-Docora-Signature", ""), f"sha256={digest}"):
        return False
    secret = base64.b64decode(key[6:] + "===") if key.startswith("whsec_") else key.encode()
    signed = f"{headers.get('webhook-id', '')}.{timestamps[1]}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    return any(same(given, expected) for given in headers.get("webhook-signature", "").split())


def same(given: str, expected: str) -> bool:
    """Compare in constant time. With `==`, the time would reveal where the two differ."""
    return hmac.compare_digest(given.encode(), expected.encode())


def watch_and_sequence(headers: Mapping[str, str]) -> "tuple[str, int]":
    """Return what the signed webhook-id says. X-Docora-Sequence is not signed: anybody may have changed it.

    A number far in the future would make your app ignore everything that comes later, so it is refused.
    """
    parts = re.fullmatch("msg_([A-Za-z0-9]{1,64})_([0-9]{1,16})(_[A-Za-z0-9-]+_[0-9]+)?", headers.get("webhook-id", ""))
    if not parts or int(parts[2]) > min(2**53 - 1, (time.time() + 86_400) * 1_000_000):
        raise Refused(422, "webhook-id holds no watch and sequence, or the sequence is more than a day ahead.")
    return parts[1], int(parts[2])


def check_event(event: str, notification: dict) -> None:
    """Refuse a body that belongs to another address. The address is not signed: anybody may have changed it."""
    file = notification.get("file")
    if event not in ("create", "update", "delete"):
        fits = notification.get("event") == event
    else:
        fits = isinstance(file, dict) and ("content" in file) == (event != "delete")
    if not fits:
        raise Refused(422, f"The body is not that of a {event}.")


def handle(event: str, notification: dict, headers: Mapping[str, str]) -> None:
    """What your app does with it: `event` is create, update, delete, sync_failed, sync_completed or ping."""
    check_event(event, notification)
    watch, sequence = ("", 0) if event == "ping" else watch_and_sequence(headers)  # receiver.py shows what they are for
    logging.info("%s %r, watch %s, sequence %d", event, notification.get("file", {}).get("path", ""), watch, sequence)


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # Docora keeps its connections open

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        if size > MAX_BODY_BYTES:
            self.close_connection = True  # the body stays unread
            return self.answer(413)
        body = self.rfile.read(size)
        if not verify(self.headers, body, os.environ["DOCORA_KEY"]):
            return self.answer(401)  # a 2xx would count as delivered
        try:
            handle(self.path.rpartition("/")[2], json.loads(body), self.headers)
        except Refused as refused:
            return self.answer(refused.status)
        return self.answer(200)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    with ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Receiver) as server:
        logging.info("http://127.0.0.1:%d", server.server_port)
        server.serve_forever()
