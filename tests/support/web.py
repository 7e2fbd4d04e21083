"""A web process with limits that tests can shorten, and an application with slow responses and responses of any size."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

from docora.process import die_with_parent
from docora.server import web
from docora.server.web import Channel, WebServer
from tests.support.receiver import wait_for

_PIECE = b"x" * 65536
THREADS = 16


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Serve /bytes?n=N (N bytes in pieces), /sleep?n=N (answer after N seconds). Other paths return the request's
    environ, after N seconds with ?sleep=N."""
    number = float(parse_qs(environ["QUERY_STRING"]).get("n", ["0"])[0])
    if environ["PATH_INFO"] == "/bytes":
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return _pieces(int(number))
    if environ["PATH_INFO"] == "/sleep":
        time.sleep(number)
    if environ["QUERY_STRING"].startswith("sleep="):
        time.sleep(float(environ["QUERY_STRING"].removeprefix("sleep=")))
    asked = {name: value for name, value in environ.items() if isinstance(value, str)}
    body = json.dumps(asked | {"length": len(environ["wsgi.input"].read())}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _pieces(size: int) -> Iterator[bytes]:
    for start in range(0, size, len(_PIECE)):
        yield _PIECE[: size - start]


class WebProcess:
    """`docora.server.web` on a socket that outlives it. `limits` set attributes of `Channel`, `WebServer` or the module."""

    def __init__(self, **limits: float) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = self.listener.getsockname()
        ready, theirs = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.web", str(self.listener.fileno()), str(theirs), json.dumps(limits)],
            pass_fds=[self.listener.fileno(), theirs],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,
        )
        os.close(theirs)
        with open(ready, "rb", buffering=0) as pipe:
            assert pipe.read(1)

    def connect(self, sent: bytes = b"", *, window: int = 0) -> socket.socket:
        """Open a connection and send this. With a small `window` it soon accepts no more data until it is read."""
        connection = socket.socket()
        if window:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        connection.settimeout(30)
        connection.connect(self.address)
        connection.sendall(sent)
        return connection

    def seconds_of(self, path: str) -> float:
        """Return how long one request took, on a new connection. Only probes have threads of their own."""
        began = time.monotonic()
        with self.connect(request(path, close=True)) as connection:
            assert everything(connection).startswith(b"HTTP/1.1 200 OK")
        return time.monotonic() - began

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def peak_memory(self) -> int:
        """Return the peak memory in bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            [line] = [line for line in status if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024

    def connections(self) -> int:
        """Return how many connections it has open."""
        folder, found = f"/proc/{self.process.pid}/fd", []
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(os.readlink(f"{folder}/{name}"))
        return sum(name.startswith("socket:") for name in found) - 1  # the listener

    def close(self) -> str:
        """Kill it and return its log."""
        self.process.kill()
        self.listener.close()
        return self.process.communicate()[1]


def request(path: str, method: str = "GET", body: bytes = b"", close: bool = False, headers: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    last = "Connection: close\r\n" if close else ""
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}{last}{headers}\r\n".encode() + body


def everything(connection: socket.socket) -> bytes:
    """Return all that arrives until the other side closes or resets the connection."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 20):
            received += piece
    return bytes(received)


def is_closed(connection: socket.socket) -> bool:
    """Return whether the other side has closed the connection without an answer. Does not wait."""
    connection.settimeout(0.01)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def wait_until_closed(connections: Iterable[socket.socket], seconds: float) -> None:
    for connection in connections:
        wait_for(lambda connection=connection: is_closed(connection), seconds)


def _main(listener: str, ready: str, limits: str) -> None:
    for name, value in json.loads(limits).items():
        owner = next(place for place in (Channel, WebServer, web) if hasattr(place, name))
        setattr(owner, name, value)
    web.main(listener, ready, str(THREADS), "tests.support.web:application")


if __name__ == "__main__":
    _main(*sys.argv[1:])
