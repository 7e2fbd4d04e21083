"""A network command of git's is several processes, and they end together: git starts a helper that speaks HTTP, and does
not take it along when it is killed. Left alone it would listen to a host that never ends, holding the mirror's lock."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repositories_app.git import process as git
from repositories_app.git.exceptions import Cause, GitError
from repositories_app.mirror.mirror import Mirror
from tests.docora.http_server import servers
from tests.support.processes import forked
from tests.support.receiver import wait_for


def dripping(connection: socket.socket, _head: bytes, _body: bytes) -> bool:
    """An answer without end, fast enough for git never to lose patience."""
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n\r\n"
        b"001e# service=git-upload-pack\n0000"
    )
    while True:
        connection.sendall(b"0fff" + b"x" * 4091)
        time.sleep(0.1)


@pytest.fixture
def endless() -> Iterator[str]:
    """The address of a repository whose list of refs never ends."""
    with servers() as start:
        yield f"http://127.0.0.1:{start(dripping).port}/acme/endless"


def processes(url: str) -> dict[int, bytes]:
    """pid → command line of everything that was started for this URL."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if url.encode() in command:
            found[int(entry.parent.name)] = command
    return found


def helper_of(url: str) -> int:
    """The process that talks to the host, once it is there."""
    return wait_for(lambda: next((pid for pid, line in processes(url).items() if b"git-remote-http" in line), 0))


def ask(url: str, timeout: float = 60, tick: Callable[[], None] | None = None) -> bytes:
    return git.run(["ls-remote", "--", url, "HEAD"], remote=git.Remote(url), timeout=timeout, tick=tick)


def test_they_end_with_the_worker_that_is_killed_and_the_lock_is_free(endless: str, mirror: Mirror) -> None:
    def fetch() -> None:
        with mirror.in_use(lambda: None):
            mirror.fetch(endless, "", "1" * 40, "watch", timeout=60, tick=lambda: None)

    worker = forked(fetch)
    helper_of(endless)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    wait_for(lambda: not processes(endless))
    mirror.remove(lambda: pytest.fail("somebody still holds a lock of the mirror"))


def test_they_end_with_git_when_it_is_killed_alone(endless: str) -> None:
    def kill_git() -> None:
        helper_of(endless)
        for pid, line in processes(endless).items():
            if line.startswith(b"git ls-remote"):
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_git)
    killer.start()
    with pytest.raises(GitError, match="git was ended by signal 9") as caught:
        ask(endless)
    killer.join()
    assert caught.value.cause is Cause.OTHER
    wait_for(lambda: not processes(endless))


def test_they_end_when_their_time_is_up(endless: str) -> None:
    with pytest.raises(GitError, match="not ready after 2 seconds") as caught:
        ask(endless, timeout=2)
    assert caught.value.cause is Cause.TIMEOUT
    wait_for(lambda: not processes(endless))


def test_they_end_when_the_work_is_stopped(endless: str) -> None:
    def stop() -> None:
        helper_of(endless)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        ask(endless, tick=stop)
    wait_for(lambda: not processes(endless))
