"""Receives Docora's notifications and verifies X-Docora-Signature. Python 3.9 or newer, no packages.

    DOCORA_KEY='the signing key of your app' PORT=9000 python verify.py

What is signed are the bytes of the body as they came: verify first, parse afterwards. (Flask: `request.get_data()`,
Django: `request.body`, FastAPI: `await request.body()`.)
"""

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


def verify(headers: Mapping[str, str], body: bytes, key: str) -> bool:
    """Was this request signed with the key, and just now?"""
    timestamp = headers.get("X-Docora-Timestamp", "")
    if not re.fullmatch("[0-9]{1,12}", timestamp) or abs(time.time() - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    digest = hmac.new(key.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    given = headers.get("X-Docora-Signature", "")
    return hmac.compare_digest(given.encode(), f"sha256={digest}".encode())  # never `==`: its time tells what differs


def handle(event: str, notification: dict) -> None:
    """What your app does with it: `event` is create, update, delete, sync_failed, sync_completed or ping."""
    logging.info("%s %r", event, notification.get("file", {}).get("path", ""))


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
        handle(self.path.rpartition("/")[2], json.loads(body))
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
