"""A real git server on loopback: smart HTTP through `git http-backend`, for the demo and, extended, for the tests.

It serves the bare repositories `directory/{owner}/{name}.git` read-only at `/owner/name` (with or without `.git`). An owner may
have several segments, as on GitLab and Azure DevOps. Like GitHub, it supports partial clones and fetching a commit by its id.
It has no TLS and no limits, so do not expose it.
"""

import io
import re
import tempfile
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from deliveries_app.demo.http_backend import HttpBackend
from deliveries_app.receiver.server import BackgroundServer, HTTPHandler, ThreadedServer

TARGET = re.compile(
    r"/(?P<owner>[\w.~%-]+(?:/[\w.~%-]+)*)/(?P<name>[\w.%-]+?)(?:\.git)?"
    r"(?P<path_info>/info/refs|/git-upload-pack)(?:\?(?P<query>.*))?",
    re.ASCII,
)
_BLOCK_BYTES = 64 * 1024


class GitServer(BackgroundServer):
    """Serve the bare repositories in `directory`."""

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host, port)
        self.directory = directory.absolute()

    def make_server(self, address: tuple[str, int]) -> ThreadedServer:
        return _Server(address, self)

    def find(self, name: str) -> Path | None:
        """Return the path of the repository `owner/name`, or None if there is none."""
        path = self.directory / f"{name}.git"
        return path if not {"", ".", ".."} & set(name.split("/")) and path.is_dir() else None


def name_of(target: re.Match[str]) -> str:
    """Return `owner/name` without escapes."""
    return unquote(f"{target['owner']}/{target['name']}")


class _Server(ThreadedServer):
    def __init__(self, address: tuple[str, int], git: GitServer) -> None:
        self.git = git
        self.backend = HttpBackend()
        super().__init__(address, Handler)

    def hang_up(self) -> None:
        super().hang_up()
        self.backend.kill_all()


class Handler(HTTPHandler):
    """Translate between HTTP and CGI."""

    server: _Server

    def do_GET(self) -> None:
        self.handle_git(None)

    def do_POST(self) -> None:
        # Spool the whole body: git may answer before it has read everything, and both pipes would block.
        with tempfile.TemporaryFile() as body:
            for block in self._request_body():
                body.write(block)
            body.seek(0)
            self.handle_git(body)

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

    def handle_git(self, body: IO[bytes] | None) -> None:
        target = TARGET.fullmatch(self.path)
        repository = self.server.git.find(name_of(target)) if target else None
        if target and repository:
            self._run_git(repository, target, body)
        else:
            self.answer(HTTPStatus.NOT_FOUND)

    def answer(self, status: int) -> None:
        """Send an answer without a body."""
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _run_git(self, repository: Path, target: re.Match[str], body: IO[bytes] | None) -> None:
        variables = {
            "REQUEST_METHOD": self.command,
            "PATH_INFO": target["path_info"],
            "QUERY_STRING": target["query"] or "",
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": self.client_address[0],
        }
        with self.server.backend.run(repository, variables, body) as output:
            headers = {}
            while line := output.readline().strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            if not headers:
                self.answer(HTTPStatus.INTERNAL_SERVER_ERROR)
                return
            self.send_response(int(headers.pop("status", "200").partition(" ")[0]))
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
