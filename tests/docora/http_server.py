"""An HTTP server with scripted responses that records connections and requests."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

from docora.http.client import Request

LOOPBACK = [ip_network("127.0.0.0/8")]

# Handles one request: sends any bytes and returns whether to keep the connection open.
Answer = Callable[[socket.socket, bytes, bytes], bool]


@contextmanager
def servers() -> Iterator[Callable[..., "ScriptedServer"]]:
    """Yield a function that starts a `ScriptedServer`; close all of them at the end."""
    started: list[ScriptedServer] = []

    def start(answer: Answer | None = None, tls: ssl.SSLContext | None = None, **options: Any) -> ScriptedServer:
        started.append(ScriptedServer(answer or saying(), tls, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


class ScriptedServer:
    """`answer` is called with the connection, the request head and the request body."""

    def __init__(
        self, answer: Answer, tls: ssl.SSLContext | None = None, *, address: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._answer = answer
        self._tls = tls
        self._open: list[socket.socket] = []
        self.connections = 0
        self.requests: list[tuple[bytes, bytes]] = []
        self._listener = socket.create_server((address, port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{address}:{self.port}/hook"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            while (request := read_request(connection)) is not None:
                self.requests.append(request)
                if not self._answer(connection, *request):
                    break
        except OSError:
            pass  # the client disconnected, as in some tests
        finally:
            connection.close()


def read_request(connection: socket.socket) -> tuple[bytes, bytes] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    while len(body) < length:
        if not (more := connection.recv(1 << 20)):
            return None
        body += more
    return head, body


def saying(status: str = "200 OK", body: bytes = b"ok", *headers: str) -> Answer:
    """Send the same complete response to every request and keep the connection open."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    answer = "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def answer_request(connection: socket.socket, head: bytes, _body: bytes) -> bool:
        connection.sendall(answer.removesuffix(body) if head.startswith(b"HEAD ") else answer)
        return True

    return answer_request


def post(url: str, body: bytes = b"{}", **more: Any) -> Request:
    return Request("POST", url, ("Content-Type: application/json",), body, **more)
