"""The reference client: which requests make it drop a copy, and what a captured request can do."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deliveries_app.receiver import Refused
from deliveries_app.receiver.notification import parse
from tests.deliveries.sender import APP, KEY, REPOSITORY, WATCH, Sender, about, held, sha, signed

ANEW = "fedcba9876543210"
FILE = {"path": "a", "sha": sha(b"x"), "size": 1, "content": "x"}
CREATE, UPDATE = about(FILE), about(FILE, "update")
DELETE = about({"path": "a", "sha": sha(b"x")})
COMPLETED = {
    "event": "sync_completed",
    "repository": REPOSITORY,
    "commit_sha": "c" * 40,
    "files": 0,
    "tree_sha256": sha(b""),
    "timestamp": "now",
}
FAILED = {"event": "sync_failed", "repository": REPOSITORY, "error": {"type": "git_failure"}, "timestamp": "now"}
PING = {"event": "ping", "timestamp": "now"}


# --- Epochs -----------------------------------------------------------------------------------------------------------


def test_new_watch_with_a_higher_sequence_drops_the_copy(receiver, sender):
    sender.send("stale", "no longer upstream", sequence=1)
    sender.send("a/b", "old", sequence=2)
    assert sender.send("a/b", "new", watch=ANEW, sequence=3) == 200
    assert held(receiver) == {"a/b": b"new"}
    assert receiver.copy(APP, "repo_1") == {"a/b": sha(b"new")}


@pytest.mark.parametrize("sequence", [1, 5, 9, 10])
def test_new_watch_with_a_sequence_that_is_not_higher_is_ignored(receiver, sender, sequence):
    sender.send("a", "a", sequence=10)
    sender.send("b", "b", sequence=5)
    for post in (sender.send, lambda path, _content, **signing: sender.delete(path, **signing)):
        assert post("a", "evil", watch=ANEW, sequence=sequence) == 200
        assert sender.answer == {"status": "stale"}
    assert held(receiver) == {"a": b"a", "b": b"b"}


def test_late_and_repeated_requests_of_an_earlier_watch_are_ignored(receiver, sender):
    sender.send("a", "a", sequence=10)
    sender.send("b", "b", watch=ANEW, sequence=20)
    for restarted in (False, True):
        for sequence in (10, 15, 20):
            assert sender.send("a", "a", sequence=sequence) == 200
            assert sender.answer == {"status": "stale"}
            assert sender.delete("b", sequence=sequence) == 200
            assert sender.answer == {"status": "stale"}
        assert held(receiver) == {"b": b"b"}
        if not restarted:
            sender = restart(receiver)


def restart(receiver) -> Sender:
    """Restart the receiver with only what a new process reads from the disk, and return a new connection."""
    receiver.stop()
    receiver._copies.clear()
    receiver.start()
    return Sender(receiver)


def test_highest_sequence_survives_a_restart(receiver, sender):
    sender.send("a", "a", sequence=10)
    sender.send("b", "b", sequence=30)
    sender = restart(receiver)
    assert sender.send("a", "evil", watch=ANEW, sequence=20) == 200
    assert held(receiver) == {"a": b"a", "b": b"b"}
    assert sender.send("a", "new", watch=ANEW, sequence=31) == 200
    assert held(receiver) == {"a": b"new"}


def test_no_header_alone_drops_a_copy(receiver, sender):
    sender.send("a", "a", sequence=10)
    body = json.dumps(about({"path": "b", "sha": sha(b"x"), "size": 1, "content": "x"})).encode()
    headers = signed(body, sequence=11)
    for forged in ({"webhook-id": f"msg_{ANEW}_12"}, {"webhook-id": f"msg_{ANEW}_11"}):
        assert sender.post("create", body, headers | forged) == 401
    assert sender.post("create", body, headers | {"X-Docora-Sequence": "99", "X-Docora-Reason": "initial"}) == 200
    assert held(receiver) == {"a": b"a", "b": b"x"}


def test_delete_and_sync_completed_of_a_new_watch_drop_the_copy(receiver, sender):
    """`sync_failed` does not."""
    sender.send("a", "a", sequence=1)
    assert sender.post("sync_failed", FAILED, watch=ANEW, sequence=2) == 200
    assert held(receiver) == {"a": b"a"}
    assert sender.post("sync_completed", COMPLETED, watch=ANEW, sequence=3) == 200
    assert sender.answer == {"status": "matches"}
    assert held(receiver) == {}
    assert sender.post("sync_completed", COMPLETED, sequence=1) == 200
    assert sender.answer == {"status": "stale"}
    sender.send("a", "a", watch=ANEW, sequence=4)
    assert sender.delete("other", watch="0" * 16, sequence=5) == 200
    assert held(receiver) == {}


def test_copy_from_elsewhere_is_adopted(receiver, sender):
    file = receiver.directory / APP / "repo_1" / "moved"
    file.parent.mkdir(parents=True)
    file.write_text("moved")
    sender.send("a", "a", sequence=1)
    assert held(receiver) == {"moved": b"moved", "a": b"a"}
    sender.send("a", "a", watch=ANEW, sequence=2)
    assert held(receiver) == {"a": b"a"}


def test_incomplete_upload_of_an_earlier_watch_is_dropped(receiver, sender):
    sender.send_chunk("big", b"123456", "MTIz", 0, 2, sequence=1)
    sender.send("a", "a", watch=ANEW, sequence=2)
    assert list((receiver.directory / ".incoming").iterdir()) == []
    assert sender.send_chunk("big", b"123456", "NDU2", 1, 2, sequence=1) == 200
    assert held(receiver) == {"a": b"a"}


SERVE = """
import os, shutil, signal, sys
from pathlib import Path
from deliveries_app.receiver import Receiver
delete = shutil.rmtree
def killed(path, *arguments, **options):
    if Path(path).name == ".incoming":
        return delete(path, *arguments, **options)
    if sys.argv[3] == "midway":
        os.remove(min(file for file in Path(path).rglob("*") if file.is_file()))
    os.kill(os.getpid(), signal.SIGKILL)
receiver = Receiver(Path(sys.argv[1]), sys.argv[2])
receiver.start()
if sys.argv[3] != "never":
    shutil.rmtree = killed
print(receiver.port, flush=True)
signal.pause()
"""


class Killable:
    """The receiver in a process of its own, which dies when it begins to delete its copy: at once or midway."""

    def __init__(self, directory: Path, dies: str) -> None:
        self.directory = directory
        command = [sys.executable, "-c", SERVE, str(directory), KEY, dies]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())

    def __enter__(self) -> "Killable":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("dies", ["at once", "midway"])
def test_receiver_killed_between_storing_the_epoch_and_dropping(tmp_path, dies):
    with Killable(tmp_path, dies) as receiver:
        sender = Sender(receiver)
        sender.send("a", "a", sequence=1)
        sender.send("b", "b", sequence=2)
        with pytest.raises(ConnectionError):
            sender.send("c", "c", watch=ANEW, sequence=10)
        assert receiver.process.wait(10) == -signal.SIGKILL
    assert held(receiver).keys() == ({"a", "b"} if dies == "at once" else {"b"})
    with Killable(tmp_path, "never") as receiver:
        sender = Sender(receiver)
        assert sender.send("a", "a", sequence=5) == 200
        assert sender.answer == {"status": "stale"}
        assert sender.send("c", "c", watch=ANEW, sequence=9) == 200  # sent before the one that was lost
        assert held(receiver) == {"c": b"c"}
    with Killable(tmp_path, "at once") as receiver:  # in the middle of the run, nothing is dropped again
        assert Sender(receiver).send("d", "d", watch=ANEW, sequence=11) == 200
        assert held(receiver) == {"c": b"c", "d": b"d"}


def test_drop_that_fails_is_repeated(receiver, sender, monkeypatch):
    sender.send("a", "a", sequence=1)
    monkeypatch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    assert sender.send("b", "b", watch=ANEW, sequence=2) == 500
    monkeypatch.undo()
    assert sender.send("b", "b", watch=ANEW, sequence=2) == 200
    assert held(receiver) == {"b": b"b"}


# --- Captured requests ------------------------------------------------------------------------------------------------

BODIES = {
    "create": CREATE,
    "update": UPDATE,
    "delete": DELETE,
    "sync_completed": COMPLETED,
    "sync_failed": FAILED,
    "ping": PING,
}


@pytest.mark.parametrize("to", BODIES)
@pytest.mark.parametrize("captured", BODIES)
def test_captured_request_to_another_url(receiver, sender, captured, to):
    """An update is also a valid create: both state the content of the path."""
    status = sender.post(to, BODIES[captured], sequence=7)
    assert status == (200 if captured == to or (captured, to) == ("update", "create") else 422)


def test_sequence_header_is_not_used(receiver, sender):
    body = json.dumps(CREATE).encode()
    assert sender.post("create", body, signed(body, sequence=7) | {"X-Docora-Sequence": str(2**53 - 1)}) == 200
    assert receiver.log[-1].sequence == 7
    assert sender.send("a", "y", kind="update", sequence=8) == 200
    assert held(receiver) == {"a": b"y"}


@pytest.mark.parametrize("hours", [25, 24 * 365])
def test_sequence_from_the_future_is_refused(receiver, sender, hours):
    ahead = int((time.time() + hours * 3600) * 1_000_000)
    assert sender.send("a", "x", sequence=ahead) == 422
    assert sender.send("a", "x", sequence=2**53) == 422
    assert sender.send("a", "x", sequence=int((time.time() + 23 * 3600) * 1_000_000)) == 200


@pytest.mark.parametrize(
    "webhook_id",
    ["", "msg_1", "1", "msg__1", "msg_a_-1", "msg_a_1_b", "msg_a_" + "1" * 17, "msg_a_1\n", "MSG_a_1", "msg_a_²"],
)
def test_malformed_id_is_refused(webhook_id):
    with pytest.raises(Refused, match="webhook-id"):
        parse("create", {"webhook-id": webhook_id}, json.dumps(CREATE).encode(), 0)


def test_id_of_a_chunk():
    headers = {"webhook-id": f"msg_{WATCH}_7_0b9cbbd4-3ba5-4d0c-b5c4-6a3f3c7f6f9e_3"}
    notification = parse("create", headers, json.dumps(CREATE).encode(), 0)
    assert (notification.watch_id, notification.sequence) == (WATCH, 7)
