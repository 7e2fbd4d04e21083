"""The HTTP server: persistent connections with one thread each, and every answer in one packet."""

import contextlib
import json
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Self

MAX_BODY_BYTES = 64 * 1024 * 1024
IDLE_SECONDS = 300  # how long a persistent connection may be silent


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer. `headers` might be `{"Retry-After": "3"}`. With `close`, the server hangs up without answering.

    An answer from `on_request` replaces the usual one, and nothing is stored. With `process`, the notification is
    stored as usual and only the answer is replaced, as if the usual answer had been lost on the way.
    """

    status: int = 200
    body: Mapping[str, object] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False
    process: bool = False


class ThreadedServer(socketserver.ThreadingTCPServer):
    """Serve each connection of `owner` in its own thread. `hang_up` closes all connections, including idle ones."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner: "BackgroundServer") -> None:
        self.owner: Any = owner
        self._connections: set[socket.socket] = set()
        super().__init__((owner.host, owner.port), owner.handler)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect. Any other exception is a bug, so print its traceback."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def hang_up(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class BackgroundServer:
    """Serve HTTP at `url` in a background thread, from `start` to `stop` or as a context manager.

    Port 0 picks a free port. The server keeps it when it is stopped and started again. Each connection has its own `handler`,
    which finds this object as `server.owner`.
    """

    handler: type["HTTPHandler"]

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._server: ThreadedServer | None = None

    @property
    def url(self) -> str:
        """The base URL. With port 0 it is known only after `start`."""
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Start listening. Raises OSError if the port is taken."""
        if self._server is None:
            self._server = ThreadedServer(self)
            self.port = self._server.server_address[1]
            name = type(self).__name__
            threading.Thread(target=self._server.serve_forever, args=(0.05,), name=name, daemon=True).start()

    def stop(self) -> None:
        """Free the port and close every connection. Does not wait for requests that are being handled."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.hang_up()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class HTTPHandler(BaseHTTPRequestHandler):
    """HTTP/1.1 with persistent connections.

    The write buffer puts headers and body into one packet. Nagle's algorithm is off, so the packet is sent immediately.
    """

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    timeout = IDLE_SECONDS
    server: ThreadedServer

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing. The server keeps its own log."""


class PostHandler(HTTPHandler):
    """Call the owner's `handle(path, headers with lower-case names, body)` for each POST, in the thread of its connection."""

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,12}", length) or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # an unread body would be taken for the next request
            error = f"Send a Content-Length of at most {MAX_BODY_BYTES}."
            self._send(Answer(413 if length else 411, {"error": error}))
            return
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return
        answer: Answer = self.server.owner.handle(
            self.path, {name.lower(): value for name, value in self.headers.items()}, body
        )
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
