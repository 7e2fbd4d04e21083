"""Runs `git http-backend`, the CGI program that comes with git, and makes sure that nothing of it stays behind."""

import contextlib
import functools
import io
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from deliveries_app.demo.repositories import git_environment

# What GitHub allows as well; and the repositories may belong to another user than the one who serves them.
_CONFIG = {"safe.directory": "*", "uploadpack.allowFilter": "true", "uploadpack.allowAnySHA1InWant": "true"}


class HttpBackend:
    """Starts the program for each request. `kill_all` ends what is under way, from any thread.

    Each start is a process group of its own and killed as one, rather than bound to its parent by the kernel: that
    signal would fire when the connection's thread ends. A server that was killed leaves them a closed pipe, and they end.
    """

    def __init__(self) -> None:
        self._children: set[subprocess.Popen[bytes]] = set()

    @contextlib.contextmanager
    def run(self, repository: Path, request: Mapping[str, str], body: IO[bytes] | None) -> Iterator[io.BufferedReader]:
        """Give the program's output as it comes: header lines, an empty line, the answer. Leaving the context ends it.

        `request` holds CGI's variables (RFC 3875); `PATH_INFO` is what stands behind the repository, with its slash.
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
            _kill(child)
            child.wait()

    def kill_all(self) -> None:
        for child in list(self._children):
            _kill(child)


@functools.cache
def _program() -> str:
    """Return where the program is. Raises CalledProcessError or FileNotFoundError where there is no git."""
    folder = subprocess.run(["git", "--exec-path"], capture_output=True, check=True, text=True).stdout.strip()
    return f"{folder}/git-http-backend"


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill a process and all it started, unless it is gone (its number may be somebody else's by then)."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
