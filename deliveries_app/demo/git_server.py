"""A real git server on loopback: smart HTTP through `git http-backend`, for the demo and, extended, for the tests.

It serves the bare repositories `directory/{owner}/{name}.git` read-only at `/owner/name` (with or without `.git`). An owner may
have several segments, as on GitLab and Azure DevOps. Like GitHub, it supports partial clones and fetching a commit by its id.
It has no TLS and no limits, so do not expose it.
"""

import contextlib
import functools
import io
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import IO, cast
from urllib.parse import unquote

from deliveries_app.demo.repositories import git_environment
from deliveries_app.receiver.server import BackgroundServer, HTTPHandler
from docora.process import kill_group

TARGET = re.compile(
    r"/(?P<owner>[\w.~%-]+(?:/[\w.~%-]+)*)/(?P<name>[\w.%-]+?)(?:\.git)?"
    r"(?P<path_info>/info/refs|/git-upload-pack)(?:\?(?P<query>.*))?",
    re.ASCII,
)
# Allow filters and any commit id, as GitHub does. The repositories may belong to a different user than the server process.
_CONFIG = {"safe.directory": "*", "uploadpack.allowFilter": "true", "uploadpack.allowAnySHA1InWant": "true"}
_BLOCK_BYTES = 64 * 1024


def name_of(target: re.Match[str]) -> str:
    """Return `owner/name` without escapes."""
    return unquote(f"{target['owner']}/{target['name']}")


class Handler(HTTPHandler):
    """Translate between HTTP and CGI for a `GitServer`."""

    def do_GET(self) -> None:
        self.handle_git(None)

    def do_POST(self) -> None:
        # Spool the whole body: git may answer before it has read everything, and both pipes would block.
        with tempfile.TemporaryFile() as body:
            left = int(self.headers.get("Content-Length", "0"))
            while left:
                block = self.rfile.read(min(left, _BLOCK_BYTES))
                if not block:
                    raise ConnectionResetError
                left -= body.write(block)
            body.seek(0)
            self.handle_git(body)

    def handle_git(self, body: IO[bytes] | None) -> None:
        target = TARGET.fullmatch(self.path)
        repository = self.server.owner.find(name_of(target)) if target else None
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
        with self.server.owner.run_backend(repository, variables, body) as output:
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
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while block := output.read1(_BLOCK_BYTES):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
            self.wfile.flush()
        if chunked:
            self.wfile.write(b"0\r\n\r\n")


class GitServer(BackgroundServer):
    """Serve the bare repositories in `directory`. Each request starts `git http-backend`, git's CGI program.

    Each program runs in its own process group, which is killed as a whole. A parent-death signal would not work here,
    because the kernel sends it when the thread of the connection ends. If the server itself is killed, the programs end
    when they write to the closed pipe.
    """

    handler = Handler

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host, port)
        self.directory = directory.absolute()
        self._programs: set[subprocess.Popen[bytes]] = set()

    def stop(self) -> None:
        super().stop()
        for program in list(self._programs):
            kill_group(program)

    def find(self, name: str) -> Path | None:
        """Return the path of the repository `owner/name`, or None if there is none."""
        path = self.directory / f"{name}.git"
        return path if not {"", ".", ".."} & set(name.split("/")) and path.is_dir() else None

    @contextlib.contextmanager
    def run_backend(
        self, repository: Path, request: Mapping[str, str], body: IO[bytes] | None
    ) -> Iterator[io.BufferedReader]:
        """Yield the program's output stream: header lines, an empty line, the body. Leaving the context kills it.

        `request` has the CGI variables (RFC 3875). `PATH_INFO` is the part of the path after the repository, starting
        with a slash.
        """
        environment = git_environment(_CONFIG) | dict(request)
        environment |= {"GIT_HTTP_EXPORT_ALL": "1", "PATH_TRANSLATED": f"{repository}{request['PATH_INFO']}"}
        if body is not None:
            environment["CONTENT_LENGTH"] = str(os.fstat(body.fileno()).st_size)
        program = subprocess.Popen(
            [_backend()],
            env=environment,
            stdin=subprocess.DEVNULL if body is None else body,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._programs.add(program)
        try:
            with cast(io.BufferedReader, program.stdout) as output:
                yield output
        finally:
            self._programs.discard(program)
            kill_group(program)
            program.wait()


@functools.cache
def _backend() -> str:
    """Return the program's path. Raises CalledProcessError or FileNotFoundError without git."""
    folder = subprocess.run(["git", "--exec-path"], capture_output=True, check=True, text=True).stdout.strip()
    return f"{folder}/git-http-backend"
