"""All processes of a git network command end together, and local ones have a memory limit.

git starts a helper for HTTP and does not end it when git itself is killed. The helper could read an endless response
forever and hold the mirror's lock.
"""

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
    """Send an endless response, fast enough for git's minimum speed."""
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n\r\n"
        b"001e# service=git-upload-pack\n0000"
    )
    while True:
        connection.sendall(b"0fff" + b"x" * 4091)
        time.sleep(0.1)


@pytest.fixture
def endless() -> Iterator[str]:
    """The URL of a repository whose list of refs never ends."""
    with servers() as start:
        yield f"http://127.0.0.1:{start(dripping).port}/acme/endless"


def processes(url: str) -> dict[int, bytes]:
    """Return pid → command line of every process started for this URL."""
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
    """Wait for the process that talks to the host, and return its pid."""
    return wait_for(lambda: next((pid for pid, line in processes(url).items() if b"git-remote-http" in line), 0))


def ask(url: str, timeout: float = 60, tick: Callable[[], None] | None = None) -> bytes:
    return git.run(["ls-remote", "--", url, "HEAD"], remote=git.Remote(url), timeout=timeout, tick=tick)


def test_killed_worker_takes_git_with_it_and_frees_the_lock(endless: str, mirror: Mirror) -> None:
    def fetch() -> None:
        with mirror.in_use(lambda: None):
            mirror.fetch(endless, "", "1" * 40, "watch", timeout=60, tick=lambda: None)

    worker = forked(fetch)
    helper_of(endless)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    wait_for(lambda: not processes(endless))
    wait_for(lambda: mirror.remove(wait=False))  # a killed git holds its files a moment longer than it lives


def test_children_end_when_git_is_killed(endless: str) -> None:
    def kill_git() -> None:
        helper_of(endless)
        for pid, line in processes(endless).items():
            if line.startswith(b"git ls-remote"):
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_git)
    killer.start()
    with pytest.raises(GitError, match="killed by signal 9") as caught:
        ask(endless)
    killer.join()
    assert caught.value.cause is Cause.OTHER
    wait_for(lambda: not processes(endless))


def test_git_ends_at_its_time_limit(endless: str) -> None:
    with pytest.raises(GitError, match="took longer than 2 seconds") as caught:
        ask(endless, timeout=2)
    assert caught.value.cause is Cause.TIMEOUT
    wait_for(lambda: not processes(endless))


def test_git_ends_when_the_sync_is_cancelled(endless: str) -> None:
    def stop() -> None:
        helper_of(endless)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        ask(endless, tick=stop)
    wait_for(lambda: not processes(endless))


def test_only_whole_lines_of_long_messages_are_kept() -> None:
    """A line that is cut may begin with half a token, which is not recognised."""
    process = git.start(["-c", "alias.say=!seq 10002 >&2", "say"])
    process.wait(10)
    numbers = [int(line) for line in git.stop(process).splitlines()]
    assert numbers == list(range(numbers[0], 10003))
    assert len(numbers) > 1000


def test_output_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(git, "MAX_OUTPUT", 1000)
    with pytest.raises(GitError, match="its listing exceeds the limit") as caught:
        git.run(["-c", "alias.say=!seq 10000", "say"])
    assert caught.value.cause is Cause.TOO_LARGE


def test_memory_and_processor_time_of_a_local_command_are_limited(mirror: Mirror) -> None:
    """A small pack or tree of a stranger may expand to any size, and take hours to read."""
    with mirror.in_use(lambda: None), mirror.blobs() as reader:
        text = Path(f"/proc/{reader._open().pid}/limits").read_text()
    limits = {line[:25].strip(): line[25:].split()[:2] for line in text.splitlines()}
    assert limits["Max data size"] == [str(git.MAX_MEMORY)] * 2
    assert limits["Max cpu time"][0] == str(git.MAX_CPU_SECONDS)
    assert limits["Max core file size"] == ["0", "0"]
