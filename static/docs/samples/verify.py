"""Receive Docora's notifications and verify their signatures. Needs only Python 3.9 or newer.

    DOCORA_KEY='your signing key' PORT=9000 python3 verify.py

Verify the raw bytes of the body before you parse them. (Flask: `request.get_data()`, Django: `request.body`,
FastAPI: `await request.body()`.)
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

TOLERANCE_SECONDS = 300  # reject older requests, which may be replays
MAX_BODY_BYTES = 8 * 1024 * 1024  # larger files arrive in chunks


class Refused(Exception):
    """Respond with this status instead of 2xx. Docora sends the notification again and shows `text` with the failure."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def verify(headers: Mapping[str, str], body: bytes, key: str) -> bool:
    """Return whether the request was signed with `key` within the last five minutes. Docora signs every request twice.

    X-Docora-Signature covers the timestamp and the body. webhook-signature also covers webhook-id. During a key rotation,
    webhook-signature holds one signature per key.
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
    """Compare in constant time. The duration of `==` would reveal where the values differ."""
    return hmac.compare_digest(given.encode(), expected.encode())


def watch_and_sequence(headers: Mapping[str, str]) -> "tuple[str, int]":
    """Return the watch and the sequence from the signed webhook-id. X-Docora-Sequence is not signed, so don't use it.

    Refuse a sequence far in the future: your app would ignore every later notification as out of date.
    """
    parts = re.fullmatch("msg_([A-Za-z0-9]{1,64})_([0-9]{1,16})(_[A-Za-z0-9-]+_[0-9]+)?", headers.get("webhook-id", ""))
    if not parts or int(parts[2]) > min(2**53 - 1, (time.time() + 86_400) * 1_000_000):
        raise Refused(422, "webhook-id has no watch and sequence, or the sequence is more than a day ahead.")
    return parts[1], int(parts[2])


def check_event(event: str, notification: dict) -> None:
    """Refuse a body that doesn't fit the event in the URL. The URL is not signed, so a replay may have changed it."""
    file = notification.get("file")
    if event not in ("create", "update", "delete"):
        fits = notification.get("event") == event
    else:
        fits = isinstance(file, dict) and ("content" in file) == (event != "delete")
    if not fits:
        raise Refused(422, f"This is not the body of a {event} event.")


def handle(event: str, notification: dict, headers: Mapping[str, str]) -> None:
    """Process a verified notification. `event` is create, update, delete, sync_failed, sync_completed or ping.

    Docora sends verify only if your app has turned it on: see receiver.py for an answer.
    """
    if event == "verify":
        raise Refused(404, "This app does not answer verify.")
    check_event(event, notification)
    watch, sequence = ("", 0) if event == "ping" else watch_and_sequence(headers)  # receiver.py uses them
    logging.info("%s %r, watch %s, sequence %d", event, notification.get("file", {}).get("path", ""), watch, sequence)


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # Docora reuses connections

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length", "0")
        if not re.fullmatch("[0-9]{1,12}", size) or int(size) > MAX_BODY_BYTES:  # read(-1) would never end
            self.close_connection = True  # the body has not been read
            return self.answer(413)
        body = self.rfile.read(int(size))
        if not verify(self.headers, body, os.environ["DOCORA_KEY"]):
            return self.answer(401)  # 2xx would count as delivered
        try:
            handle(self.path.rpartition("/")[2], json.loads(body), self.headers)
        except Refused as refused:
            return self.answer(refused.status, str(refused))
        except Exception:
            logging.exception("The notification can't be processed.")
            return self.answer(500)  # without a response, Docora would think that the connection was lost
        return self.answer(200)

    def answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


if __name__ == "__main__":
    if not os.environ.get("DOCORA_KEY"):
        raise SystemExit("Set DOCORA_KEY to the signing key of your app.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Receiver) as server:
        logging.info("http://127.0.0.1:%d", server.server_port)
        server.serve_forever()
