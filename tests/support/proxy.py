"""An HTTP proxy that resolves names itself: CONNECT, and plain requests with an absolute URL, as git sends them."""

import contextlib
import select
import socket
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit


class Proxy:
    """Listens on 127.0.0.1. `names` maps host names to ports on this machine; all others are refused with 403.

    `heads` has the request line and headers of each request that it received.
    """

    def __init__(self, names: Mapping[str, int], *, status: str = "200 Connection established") -> None:
        self.heads: list[str] = []
        self._names = names
        self._status = status
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def targets(self) -> list[str]:
        """What its clients asked for: `host:port` of CONNECT, or a URL."""
        return [head.split()[1] for head in self.heads]

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self._listener.accept()[:1], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                if not (more := client.recv(65536)):
                    return
                data += more
            head, _, rest = data.partition(b"\r\n\r\n")
            self.heads.append(head.decode())
            method, target, _ = head.decode().split("\r\n")[0].split()
            name = target.rpartition(":")[0] if method == "CONNECT" else urlsplit(target).hostname or ""
            port = self._names.get(name)
            if port is None or not self._status.startswith("200"):
                status = "403 Forbidden" if self._status.startswith("200") else self._status
                client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                return
            with socket.create_connection(("127.0.0.1", port)) as server:
                if method == "CONNECT":
                    client.sendall(f"HTTP/1.1 {self._status}\r\nVia: 1.1 proxy\r\n\r\n".encode())
                    server.sendall(rest)
                else:  # one request per connection
                    path = urlsplit(target)._replace(scheme="", netloc="").geturl()
                    lines = [f"{method} {path} HTTP/1.1", "Connection: close"]
                    lines += [
                        line
                        for line in head.decode().split("\r\n")[1:]
                        if not line.lower().startswith(("connection", "proxy-"))
                    ]
                    server.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + rest)
                _copy_both_ways(client, server)


def _copy_both_ways(client: socket.socket, server: socket.socket) -> None:
    while True:
        for one in select.select([client, server], [], [], 30)[0]:
            data = one.recv(65536)
            if not data:
                return
            (server if one is client else client).sendall(data)
