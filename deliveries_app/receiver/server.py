"""The HTTP around the reference client: kept connections, one thread each, every answer in one packet."""

import contextlib
import json
import re
import socket
import socketserver
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

MAX_BODY_BYTES = 64 * 1024 * 1024
IDLE_SECONDS = 300  # how long a kept connection may say nothing


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer. `headers` could be `{"Retry-After": "3"}`; with `close` the server hangs up without a word.

    From an `on_request` it stands in for the usual answer, and nothing is stored; unless `process` is set: then the
    notification is handled all the same, and only the answer is another one, as if the usual one was lost on its way.
    """

    status: int = 200
    body: Mapping[str, object] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False
    process: bool = False


class Server(socketserver.ThreadingTCPServer):
    """Calls `handle(path, headers in lower case, body)` for each POST, in the thread of its connection.

    Connections are remembered, so that `hang_up` can end them: a client that is down does not answer on kept ones.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handle: Callable[[str, Mapping[str, str], bytes], Answer]) -> None:
        self.handle = handle
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent about senders that went away; anything else is a mistake of ours and shows its traceback."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def hang_up(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.1. The buffer lets head and body leave in one packet; without Nagle's algorithm it leaves at once."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    timeout = IDLE_SECONDS
    server: Server

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,12}", length) or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # an unread body cannot be told from the next request
            self._send(Answer(413 if length else 411, {"error": "A Content-Length within bounds is needed."}))
            return
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return
        answer = self.server.handle(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        if answer.close:
            self.close_connection = True
        else:
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        body = json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the client keeps its own log."""
