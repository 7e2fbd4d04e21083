"""A real git server on loopback: smart HTTP by git's own `git http-backend`, for the demo and the tests.

It serves bare repositories, read-only, from `directory/{owner}/{name}.git` as `/owner/name` (with or without `.git`),
and like GitHub allows partial clones and fetching a commit by its id. Not meant for a network: no TLS, no limits.
"""

import base64
import contextlib
import io
import re
import socket
import socketserver
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import IO, Self

from deliveries_app.demo.http_backend import HttpBackend

Takeover = Callable[[socket.socket], None]
"""Sends an answer of its own, status line and all, on the connection, which is closed afterwards."""

_TARGET = re.compile(
    r"/(?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(?:\.git)?(?P<rest>/info/refs|/git-upload-pack)(?:\?(?P<query>.*))?",
    re.ASCII,
)
_BLOCK_BYTES = 64 * 1024
_LOG_SIZE = 10_000


@dataclass(slots=True)
class Request:
    """One request, as the server's log keeps it. `status` is 0 as long as nothing is answered, and after a takeover."""

    method: str
    target: str
    git_protocol: str
    token: str
    status: int = 0


class GitServer:
    """Serves the bare repositories below `directory` at `url`, from `start` to `stop` (or as a context manager).

    `tokens` names the private repositories: `owner/name` → the tokens that open it, each sent as the password of HTTP
    Basic with any user name. The mapping is read anew for each request. `on_request(method, target)` is asked first, in
    the connection's thread: it may take its time, and return None to go on, an error status, or a `Takeover`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tokens: Mapping[str, AbstractSet[str]] | None = None,
        on_request: Callable[[str, str], int | Takeover | None] | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self.host = host
        self.port = port
        self.tokens: Mapping[str, AbstractSet[str]] = {} if tokens is None else tokens
        self.on_request = on_request
        self._log: deque[Request] = deque(maxlen=_LOG_SIZE)
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """The address that repositories are below. With port 0 it is known once `start` has been called."""
        return f"http://{self.host}:{self.port}"

    @property
    def requests(self) -> list[Request]:
        """The last 10,000 requests, oldest first."""
        return list(self._log)

    def start(self) -> None:
        """Listen, in a thread of its own. Raises OSError if the port is taken."""
        if self._server is None:
            self._server = _Server((self.host, self.port), self)
            self.port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.05,), name="git-server", daemon=True).start()

    def stop(self) -> None:
        """Free the port, hang up on everybody, and end the git processes that are still at work."""
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

    def decide(self, request: Request) -> HTTPStatus | Takeover:
        """Note a request, and say what `on_request` or the rules make of it; OK is for git to answer."""
        self._log.append(request)
        reply = self.on_request(request.method, request.target) if self.on_request else None
        if callable(reply):
            return reply
        return self._admit(request) if reply is None else HTTPStatus(reply)

    def _admit(self, request: Request) -> HTTPStatus:
        target = _TARGET.fullmatch(request.target)
        if target is None or {".", ".."} & {target["owner"], target["name"]}:
            return HTTPStatus.NOT_FOUND
        repository = f"{target['owner']}/{target['name']}"
        if repository in self.tokens and request.token not in self.tokens[repository]:
            return HTTPStatus.UNAUTHORIZED
        return HTTPStatus.OK if (self.directory / f"{repository}.git").is_dir() else HTTPStatus.NOT_FOUND


class _Server(socketserver.ThreadingTCPServer):
    """One thread per connection. Connections are remembered, because `stop` must end them."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], git: GitServer) -> None:
        self.git = git
        self.backend = HttpBackend()
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent about clients that went away; anything else is a mistake of ours and shows its traceback."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def hang_up(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.backend.kill_all()


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 with kept connections, around CGI."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    timeout = 300
    server: _Server

    def do_GET(self) -> None:
        self._handle(None)

    def do_POST(self) -> None:
        # All of it first, in a file: git may answer before it has read everything, and then two pipes would be full.
        with tempfile.TemporaryFile() as body:
            for block in self._request_body():
                body.write(block)
            body.seek(0)
            self._handle(body)

    def _request_body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield from self._read(int(self.headers.get("Content-Length", "0")))
            return
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield from self._read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            block = self.rfile.read(min(size, _BLOCK_BYTES))
            if not block:
                raise ConnectionResetError
            size -= len(block)
            yield block

    def _handle(self, body: IO[bytes] | None) -> None:
        request = Request(self.command, self.path, self.headers.get("Git-Protocol", ""), self._token())
        decision = self.server.git.decide(request)
        if callable(decision):
            self.close_connection = True
            decision(self.connection)
        elif decision is HTTPStatus.OK and (target := _TARGET.fullmatch(self.path)):
            self._run_git(request, target, body)
        else:
            self._answer(request, decision)

    def _token(self) -> str:
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return ""
        try:
            return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
        except ValueError:
            return ""

    def _answer(self, request: Request, status: HTTPStatus) -> None:
        request.status = status
        self.send_response(status)
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _run_git(self, request: Request, target: re.Match[str], body: IO[bytes] | None) -> None:
        variables = {
            "REQUEST_METHOD": self.command,
            "PATH_INFO": target["rest"],
            "QUERY_STRING": target["query"] or "",
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": request.git_protocol,
            "REMOTE_ADDR": self.client_address[0],
        }
        repository = self.server.git.directory / target["owner"] / f"{target['name']}.git"
        with self.server.backend.run(repository, variables, body) as output:
            headers = {}
            while line := output.readline().strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            if not headers:
                self._answer(request, HTTPStatus.INTERNAL_SERVER_ERROR)
                return
            request.status = int(headers.pop("status", "200").partition(" ")[0])
            self.send_response(request.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self._stream(output, chunked="content-length" not in headers)

    def _stream(self, output: io.BufferedReader, *, chunked: bool) -> None:
        """Pass on the output as it comes, a block at a time."""
        if chunked and self.request_version == "HTTP/1.0":
            chunked, self.close_connection = False, True
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while block := output.read1(_BLOCK_BYTES):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
            self.wfile.flush()
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the server keeps its own log."""
