"""Run `git http-backend`, git's CGI program, and leave no processes behind."""

import contextlib
import functools
import io
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from deliveries_app.demo.repositories import git_environment
from docora.process import kill_group

# GitHub allows these too. The repositories may belong to a different user than the server process.
_CONFIG = {"safe.directory": "*", "uploadpack.allowFilter": "true", "uploadpack.allowAnySHA1InWant": "true"}


class HttpBackend:
    """Start the program for each request. `kill_all` ends all running ones, from any thread.

    Each program runs in its own process group, which is killed as a whole. A parent-death signal would not work here,
    because the kernel sends it when the thread of the connection ends. If the server itself is killed, the programs end
    when they write to the closed pipe.
    """

    def __init__(self) -> None:
        self._children: set[subprocess.Popen[bytes]] = set()

    @contextlib.contextmanager
    def run(self, repository: Path, request: Mapping[str, str], body: IO[bytes] | None) -> Iterator[io.BufferedReader]:
        """Yield the program's output stream: header lines, an empty line, the body. Leaving the context kills it.

        `request` has the CGI variables (RFC 3875). `PATH_INFO` is the part of the path after the repository, starting
        with a slash.
        """
        environment = git_environment(_CONFIG) | dict(request)
        environment |= {"GIT_HTTP_EXPORT_ALL": "1", "PATH_TRANSLATED": f"{repository}{request['PATH_INFO']}"}
        if body is not None:
            environment["CONTENT_LENGTH"] = str(os.fstat(body.fileno()).st_size)
        child = subprocess.Popen(
            [_program()],
            env=environment,
            stdin=subprocess.DEVNULL if body is None else body,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._children.add(child)
        try:
            with cast(io.BufferedReader, child.stdout) as output:
                yield output
        finally:
            self._children.discard(child)
            kill_group(child)
            child.wait()

    def kill_all(self) -> None:
        for child in list(self._children):
            kill_group(child)


@functools.cache
def _program() -> str:
    """Return the program's path. Raises CalledProcessError or FileNotFoundError without git."""
    folder = subprocess.run(["git", "--exec-path"], capture_output=True, check=True, text=True).stdout.strip()
    return f"{folder}/git-http-backend"
