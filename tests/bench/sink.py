"""A client app that uses almost no CPU: it counts what it receives and answers 200 to everything.

`python sink.py [DELAY_MS]` prints its port. It has one thread, one epoll and as few copies as possible, since every
microsecond it uses is one that Docora lacks on the measured machine. `GET /counts` returns and resets what was received and
the seconds from the first post to the last. The response to `ls-refs` says that HEAD is at `COMMIT`. The response to `verify` says
that its copy has the requested hash.
"""

import contextlib
import heapq
import json
import select
import socket
import sys
import time

COMMIT = "c" * 40
_BLOCK = 1 << 20
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def _answer(body: bytes, content_type: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _packet(line: str) -> bytes:
    return f"{len(line) + 4:04x}{line}".encode()


_REFS = _answer(
    _packet(f"{COMMIT} HEAD symref-target:refs/heads/main\n") + b"0000", "application/x-git-upload-pack-result"
)


class Sink:
    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._open: dict[int, socket.socket] = {}
        self._parts: dict[int, bytearray] = {}
        self._late: list[tuple[float, int]] = []  # when each delayed answer is due, and its descriptor
        self.posts = self.bytes = self.most = 0
        self.first = self.last = 0.0

    def serve(self) -> None:
        while True:
            wait = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
            select.select([self._epoll], [], [], wait)  # epoll's own timeout has a resolution of 1 ms
            for fd, _ in self._epoll.poll(0):
                if fd == self._listener.fileno():
                    self._accept()
                else:
                    self._read(fd)
            while self._late and self._late[0][0] <= time.monotonic():
                self._send(heapq.heappop(self._late)[1], _OK)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open[connection.fileno()] = connection
        self._epoll.register(connection, select.EPOLLIN)

    def _read(self, fd: int) -> None:
        data: bytes | bytearray = b""
        with contextlib.suppress(ConnectionResetError):  # its client was killed
            data = self._open[fd].recv(_BLOCK)
        if not data:
            self._parts.pop(fd, None)
            self._late = [late for late in self._late if late[1] != fd]  # the next connection may get this descriptor
            heapq.heapify(self._late)
            self._open.pop(fd).close()
            return
        if fd in self._parts:
            self._parts[fd] += data
            data = self._parts[fd]
        head = data.find(b"\r\n\r\n")
        length = data.find(b"Content-Length: ", 0, head)
        whole = head + 4 + (int(data[length + 16 : data.find(b"\r", length)]) if length > 0 else 0)
        if head < 0 or len(data) < whole:
            self._parts.setdefault(fd, bytearray(data))
            return
        self._parts.pop(fd, None)
        self._handle(fd, data, whole)

    def _handle(self, fd: int, request: bytes | bytearray, size: int) -> None:
        if request.startswith(b"GET /counts"):
            seconds = self.last - self.first
            counts = {"posts": self.posts, "bytes": self.bytes, "most": self.most, "seconds": seconds}
            self.posts = self.bytes = self.most = 0
            self._send(fd, _answer(json.dumps(counts).encode(), "application/json"))
        elif b"/git-upload-pack " in request[:200]:
            self._send(fd, _REFS)
        else:
            self.last = time.monotonic()
            self.first = self.last if not self.posts else self.first
            self.posts += 1
            self.bytes += size
            if request.startswith(b"POST /verify"):
                body = json.loads(request[request.find(b"\r\n\r\n") :])
                self._send(fd, _answer(json.dumps({"tree_sha256": body["tree_sha256"]}).encode(), "application/json"))
            elif self._delay:
                heapq.heappush(self._late, (time.monotonic() + self._delay, fd))
                self.most = max(self.most, len(self._late))
            else:
                self._send(fd, _OK)

    def _send(self, fd: int, answer: bytes) -> None:
        try:
            self._open[fd].send(answer)
        except (KeyError, OSError):
            return  # the client has gone


if __name__ == "__main__":
    sink = Sink(float(sys.argv[1]) / 1000 if len(sys.argv) > 1 else 0.0)
    print(sink.port, flush=True)
    sink.serve()
