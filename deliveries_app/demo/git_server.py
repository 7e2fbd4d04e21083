"""A real git server on loopback: smart HTTP through `git http-backend`, for the demo and the tests.

It serves the bare repositories `directory/{owner}/{name}.git` read-only at `/owner/name` (with or without `.git`). An owner may
have several segments, as on GitLab and Azure DevOps. Like GitHub, it supports partial clones and fetching a commit by its id.
It has no TLS and no limits, so do not expose it.
"""

import base64
import io
import re
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from deliveries_app.demo.http_backend import HttpBackend
from deliveries_app.receiver.server import BackgroundServer, HTTPHandler, ThreadedServer

Takeover = Callable[[socket.socket], None]
"""Write a complete HTTP response to the connection, which is then closed."""

_TARGET = re.compile(
    r"/(?P<owner>[\w.~%-]+(?:/[\w.~%-]+)*)/(?P<name>[\w.%-]+?)(?:\.git)?"
    r"(?P<path_info>/info/refs|/git-upload-pack)(?:\?(?P<query>.*))?",
    re.ASCII,
)
_BLOCK_BYTES = 64 * 1024
_LOG_SIZE = 10_000


@dataclass(slots=True)
class Request:
    """The log entry for one request. `status` is 0 until it is answered, and after a takeover."""

    method: str
    target: str
    git_protocol: str
    token: str
    status: int = 0
    user: str = ""


class GitServer(BackgroundServer):
    """Serve the bare repositories in `directory`.

    - `tokens` makes repositories private: `owner/name` → the tokens that give access, sent as the password of HTTP
      Basic with any user name. The mapping is read for each request.
    - `on_request(method, target)` is called first, in the thread of the connection. It may block. It returns an error
      status, a `Takeover`, or None to continue as usual.
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
        super().__init__(host, port)
        self.directory = directory.absolute()
        self.tokens: Mapping[str, AbstractSet[str]] = {} if tokens is None else tokens
        self.on_request = on_request
        self._log: deque[Request] = deque(maxlen=_LOG_SIZE)

    @property
    def requests(self) -> list[Request]:
        """The last `_LOG_SIZE` requests, oldest first."""
        return list(self._log)

    def make_server(self, address: tuple[str, int]) -> ThreadedServer:
        return _Server(address, self)

    def decide(self, request: Request) -> HTTPStatus | Takeover:
        """Log a request and return how to answer it. `OK` means that git answers."""
        self._log.append(request)
        reply = self.on_request(request.method, request.target) if self.on_request else None
        if callable(reply):
            return reply
        return self._check_access(request) if reply is None else HTTPStatus(reply)

    def _check_access(self, request: Request) -> HTTPStatus:
        target = _TARGET.fullmatch(request.target)
        if target is None:
            return HTTPStatus.NOT_FOUND
        repository = _name_of(target)
        if {"", ".", ".."} & set(repository.split("/")):
            return HTTPStatus.NOT_FOUND
        if repository in self.tokens and request.token not in self.tokens[repository]:
            return HTTPStatus.UNAUTHORIZED
        return HTTPStatus.OK if (self.directory / f"{repository}.git").is_dir() else HTTPStatus.NOT_FOUND


def _name_of(target: re.Match[str]) -> str:
    """Return `owner/name` without escapes."""
    return unquote(f"{target['owner']}/{target['name']}")


class _Server(ThreadedServer):
    def __init__(self, address: tuple[str, int], git: GitServer) -> None:
        self.git = git
        self.backend = HttpBackend()
        super().__init__(address, _Handler)

    def hang_up(self) -> None:
        super().hang_up()
        self.backend.kill_all()


class _Handler(HTTPHandler):
    """Translate between HTTP and CGI."""

    server: _Server

    def do_GET(self) -> None:
        self._handle(None)

    def do_POST(self) -> None:
        # Spool the whole body: git may answer before it has read everything, and both pipes would block.
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
        user, token = self._credentials()
        request = Request(self.command, self.path, self.headers.get("Git-Protocol", ""), token, user=user)
        decision = self.server.git.decide(request)
        if callable(decision):
            self.close_connection = True
            decision(self.connection)
        elif decision is HTTPStatus.OK and (target := _TARGET.fullmatch(self.path)):
            self._run_git(request, target, body)
        else:
            self._answer(request, decision)

    def _credentials(self) -> tuple[str, str]:
        """Return the user name and the token of HTTP Basic, or two empty strings."""
        scheme, _, encoded = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return "", ""
        try:
            user, _, token = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return "", ""
        return user, token

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
            "PATH_INFO": target["path_info"],
            "QUERY_STRING": target["query"] or "",
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": request.git_protocol,
            "REMOTE_ADDR": self.client_address[0],
        }
        repository = self.server.git.directory / f"{_name_of(target)}.git"
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
        """Forward the output block by block as it arrives."""
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
