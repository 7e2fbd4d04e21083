"""Responses of a git host that arrive a few bytes at a time, or stop in the middle."""

import contextlib
import socket
import threading

from tests.support.git import Repo, Takeover, git

_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-%b\r\n\r\n"
_BAND = 60_000  # bytes of a pack in one packet


def refs_advertised(repo: Repo) -> bytes:
    """Return the response to `info/refs`."""
    return (
        _OK % b"advertisement" + _packet(b"# service=git-upload-pack\n") + b"0000" + _packet(b"version 2\n") + b"0000"
    )


def head_answered(repo: Repo) -> bytes:
    """Return the response to `ls-refs`."""
    ref = f"{repo.head} HEAD symref-target:refs/heads/{repo.branch}\n"
    return _OK % b"result" + _packet(ref.encode()) + b"0000"


def pack_sent(repo: Repo, *, negotiated: bool = False) -> bytes:
    """Return the response to `fetch`: a pack with all objects of HEAD.

    `negotiated`: git already has commits. Then it names them first, and expects to hear that the host knows enough.
    """
    before = _packet(b"acknowledgments\n") + _packet(b"ready\n") + b"0001" if negotiated else b""
    pack = git(repo.path, "pack-objects", "--revs", "--stdout", "-q", stdin=[b"HEAD\n"])
    packets = [_packet(b"\1" + pack[start : start + _BAND]) for start in range(0, len(pack), _BAND)]
    return _OK % b"result" + before + _packet(b"packfile\n") + b"".join(packets) + b"0000"


def trickling(answer: bytes, *, at_once: int, until: threading.Event) -> Takeover:
    """Send `at_once` bytes of the answer immediately, then five bytes a second until the event is set."""

    def send(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(answer[:at_once])
            for start in range(at_once, len(answer)):
                if until.wait(0.2):
                    return
                connection.sendall(answer[start : start + 1])

    return send


def _packet(data: bytes) -> bytes:
    return b"%04x%b" % (len(data) + 4, data)
