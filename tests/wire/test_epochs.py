"""The documentation's sample receivers: which requests make them drop a copy, and what a captured request can do."""

import signal
import time
import urllib.error
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import App, Status
from deliveries_app.receiver import Refused
from deliveries_app.receiver.storage import safe_path
from deliveries_app.services import unwatch_repository, watch_repository
from deliveries_app.sweep.cleanup import remove_ended
from deliveries_app.webhooks.payloads import PING, delete_body, notice_body
from tests.support.world import World
from tests.wire.bodies import BODIES, COMMIT, NOON, REPOSITORY, SHA, chunked, file_notification
from tests.wire.clients import Node, SampleServer, load
from tests.wire.test_receivers import ANEW, LARGE, Client, client

__all__ = ["client"]

COMPLETED, FAILED = BODIES["sync_completed"], BODIES["sync_failed plain"]
BY_EVENT = {
    "create": file_notification(b"x", "a"),
    "update": file_notification(b"x", "a", previous_sha=SHA),
    "delete": delete_body(REPOSITORY, "a", SHA, COMMIT, NOON),
    "sync_completed": COMPLETED,
    "sync_failed": FAILED,
    "ping": notice_body(PING, NOON),
}


# --- Epochs -----------------------------------------------------------------------------------------------------------


def test_copy_follows_a_repository_that_is_watched_again(world: World, client: Client) -> None:
    """A file deleted upstream while the app was not watching must not remain in the copy that the client kept."""
    App.objects.filter(pk=world.app.pk).update(base_url=client.url, send_sync_completed=True)
    world.app.refresh_from_db()
    repo, watch = world.watch({"stays": b"1", "goes": b"2", "large": LARGE * 3})
    world.watch_url(repo, app=world.add_app("Other"))  # keeps the repository's id
    assert world.sync(watch).status == Status.SYNCED
    repository_id = watch.repository.repository_id
    unwatch_repository(Actor.command(), watch)
    assert remove_ended() == 1
    repo.commit({"goes": None})
    again = watch_repository(Actor.command(), world.app, repo.url).watch
    assert client.held(repository_id).keys() == {"stays", "goes", "large"}
    assert world.sync(again).status == Status.SYNCED
    assert client.held(repository_id) == repo.files()
    assert client.output.rstrip().endswith("the copy matches")


def test_revived_watch_keeps_the_epoch(world: World, client: Client) -> None:
    App.objects.filter(pk=world.app.pk).update(base_url=client.url)
    world.app.refresh_from_db()
    repo, watch = world.watch({"stays": b"1", "goes": b"2"})
    world.sync(watch)
    unwatch_repository(Actor.command(), watch)
    repo.commit({"goes": None})
    watch_repository(Actor.command(), world.app, repo.url)
    files = client.folder / "copies" / watch.repository.repository_id / "files"
    (files / "kept").write_text("only a drop would remove it")
    world.sync(watch)
    assert client.held(watch.repository.repository_id).keys() == {"stays", "kept"}


def test_new_watch_is_accepted_only_with_a_higher_sequence(client: Client) -> None:
    client.create("a", b"a", 10)
    client.create("b", b"b", 30)
    for sequence in (1, 20, 30):
        assert client.create("a", b"evil", sequence, watch=ANEW) == (200, "stale")
        assert client.delete("a", sequence, watch=ANEW) == (200, "stale")
        client.restart()
    assert client.held() == {"a": b"a", "b": b"b"}
    assert client.create("a", b"new", 31, watch=ANEW) == (200, "kept")
    assert client.held() == {"a": b"new"}


def test_late_and_repeated_requests_of_an_earlier_watch_are_ignored(client: Client) -> None:
    client.create("a", b"a", 10)
    assert client.post("create", chunked(LARGE, 100_000)[0], 11) == (200, "waiting for more chunks")
    client.create("b", b"b", 20, watch=ANEW)
    for _ in range(2):
        for sequence in (10, 11, 15, 20):
            assert client.create("a", b"a", sequence) == (200, "stale")
            assert client.delete("b", sequence) == (200, "stale")
            assert client.post("create", chunked(LARGE, 100_000)[1], sequence) == (200, "stale")
            assert client.post("sync_completed", COMPLETED, sequence) == (200, "stale")
        assert client.held() == {"b": b"b"}
        client.restart()
    assert client.create("c", b"c", 19, watch=ANEW) == (200, "kept")  # from the new watch, but delivered out of order


def test_no_header_alone_drops_a_copy(client: Client) -> None:
    client.create("a", b"a", 10)
    body = file_notification(b"b", "b")
    for webhook_id in (f"msg_{ANEW}_11", f"msg_{ANEW}_99"):
        assert client.post("create", body, 11, webhook_id=webhook_id)[0] == 401
    assert client.post("create", body, 11, X_Docora_Sequence="99", X_Docora_Reason="initial") == (200, "kept")
    assert client.post("sync_failed", FAILED, 12, watch=ANEW)[0] == 200
    assert client.held() == {"a": b"a", "b": b"b"}


def test_copy_without_an_epoch_is_adopted(client: Client) -> None:
    client.create("a", b"a", 10)
    (client.folder / "copies" / REPOSITORY.repository_id / "epoch").unlink()
    assert client.create("b", b"b", 11, watch=ANEW) == (200, "kept")
    assert client.held() == {"a": b"a", "b": b"b"}


KILLERS = {
    "receiver.py": """
import os, shutil, signal
delete = shutil.rmtree
def killed(path, *arguments, **options):
    if str(path).endswith("files"):
        if os.environ["DIES"] == "midway":
            os.remove(os.path.join(path, "a"))
        os.kill(os.getpid(), signal.SIGKILL)
    return delete(path, *arguments, **options)
shutil.rmtree = killed
""",
    "receiver.mjs": """
import fs from 'node:fs';
const remove = fs.rmSync;
fs.rmSync = (path, options) => {
  if (!path.endsWith('files')) return remove(path, options);
  if (process.env.DIES === 'midway') remove(`${path}/a`);
  process.kill(process.pid, 'SIGKILL');
};
""",
}


@pytest.mark.parametrize("dies", ["at once", "midway"])
def test_receiver_killed_between_storing_the_epoch_and_dropping(client: Client, tmp_path: Path, dies: str) -> None:
    client.create("a", b"a", 1)
    client.create("b", b"b", 2)
    client.servers[-1].close()
    killer = tmp_path / ("sitecustomize.py" if client.name == "receiver.py" else "killer.mjs")
    killer.write_text(KILLERS[client.name])
    environment = {"PYTHONPATH": str(tmp_path), "NODE_OPTIONS": f"--import={killer}" if killer.suffix == ".mjs" else ""}
    copies = str(client.folder / "copies")
    doomed = SampleServer(client.name, client.key, tmp_path / "doomed.log", COPIES=copies, DIES=dies, **environment)
    client.servers.append(doomed)
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        client.create("c", b"c", 10, watch=ANEW)
    assert doomed._process.wait(10) == -signal.SIGKILL
    assert client.held().keys() == ({"a", "b"} if dies == "at once" else {"b"})

    client.start()
    assert client.create("a", b"a", 5) == (200, "stale")
    assert client.create("c", b"c", 9, watch=ANEW) == (200, "kept")
    assert client.held() == {"c": b"c"}
    client.restart()  # in the middle of the run; nothing is dropped again
    assert client.create("d", b"d", 11, watch=ANEW) == (200, "kept")
    assert client.held() == {"c": b"c", "d": b"d"}


# --- Captured requests ------------------------------------------------------------------------------------------------


def test_captured_request_to_another_url(client: Client) -> None:
    """`create` and `update` both state the content of the path, so sending one to the other's URL does no harm."""
    pairs = [(captured, to) for captured in BY_EVENT for to in BY_EVENT]
    for number, (captured, to) in enumerate(pairs):
        assert client.create("a", b"before %d" % number, 10 * number + 1) == (200, "kept")
        status, _ = client.post(to, BY_EVENT[captured], 10 * number + 7)
        accepted = captured == to or {captured, to} == {"create", "update"}
        assert status == (200 if accepted else 422), (captured, to)
        if not accepted:
            assert client.held() == {"a": b"before %d" % number}, (captured, to)


@pytest.mark.parametrize("name", ["verify.py", "verify.mjs"])
def test_samples_refuse_captured_requests(name: str, tmp_path: Path) -> None:
    client = Client(name, tmp_path)
    client.servers.append(SampleServer(name, client.key, tmp_path / "log"))
    try:
        for captured, body in BY_EVENT.items():
            for to in BY_EVENT:
                expected = 200 if captured == to or {captured, to} == {"create", "update"} else 422
                assert client.post(to, body, 7)[0] == expected, (captured, to)
        ahead = int((time.time() + 90_000) * 1_000_000)
        assert client.post("create", BY_EVENT["create"], ahead)[0] == 422
        assert client.post("verify", b"{}", 7) == (404, "This app does not answer verify.")
    finally:
        client.servers[-1].close()


def test_sample_survives_an_error_in_its_handler(tmp_path: Path) -> None:
    client = Client("verify.mjs", tmp_path)
    client.servers.append(SampleServer("verify.mjs", client.key, tmp_path / "log"))
    try:
        assert client.post("create", b"null", 7)[0] == 500
        assert "TypeError" in client.output
        assert client.post("create", BY_EVENT["create"], 8)[0] == 200
    finally:
        client.servers[-1].close()


def test_sequence_header_is_not_used(client: Client) -> None:
    client.post("create", BY_EVENT["create"], 7, X_Docora_Sequence=str(2**53 - 1))
    assert client.create("a", b"y", 8) == (200, "kept")
    assert client.post("create", file_notification(b"z", "a"), 9, X_Docora_Sequence="1") == (200, "kept")
    assert client.held() == {"a": b"z"}


def test_sequence_from_the_future_is_refused(client: Client) -> None:
    def ahead(hours: float) -> int:
        return int((time.time() + hours * 3600) * 1_000_000)

    for sequence in (ahead(25), 2**53 - 1, 2**53, 10**16 - 1):
        assert client.create("a", b"x", sequence)[0] == 422
    assert client.held() == {}
    assert client.create("a", b"x", ahead(23)) == (200, "kept")


def test_malformed_id_is_refused(client: Client) -> None:
    """The signature is right: the id belongs to a ping, or to something that does not exist yet."""
    body = BY_EVENT["create"]
    standard = load("verify_standard").webhook(client.key)
    for webhook_id in ("msg_1", "msg__1", "msg_a_-1", "msg_a_1_b", "msg_a_" + "1" * 17, "msg_a"):
        now = datetime.now(UTC)
        changes = {
            "webhook_id": webhook_id,
            "webhook_timestamp": str(int(now.timestamp())),
            "webhook_signature": standard.sign(webhook_id, now, body.decode()),
        }
        assert client.post("create", body, **changes)[0] == 422, webhook_id
        assert client.held() == {}


# --- Names on Windows -------------------------------------------------------------------------------------------------

UNSAFE = ["", "/a", "a//b", "../a", "a/..", "a/./b", "a\0b"]
UNSAFE_ON_WINDOWS = [
    *("C:evil.txt", "c:..\\x", "a/C:x", "x:y", "a.txt::$DATA", "a\\b", "..\\x", "\\x", "a/b ", "a./b", "a...", "a\nb"),
    *(
        "con",
        "CON",
        "aux.c",
        "a/Nul.txt",
        "prn",
        "COM1",
        "lpt9.tar.gz",
        "com¹",
        "con .txt",
        "aux/a",
        "CONIN$",
        "a*",
        "a?",
    ),
]
SAFE = [
    "a",
    "a b",
    "a.b/c",
    ".hidden",
    "console",
    "auxiliary.c",
    "com",
    "com10",
    "acon",
    "a.con",
    "nul1",
    "größe",
    "a/.b",
]


@pytest.mark.parametrize("windows", [True, False])
def test_is_safe(node: Node, windows: bool) -> None:
    names = [*UNSAFE, *UNSAFE_ON_WINDOWS, *SAFE]
    expected = [False] * len(UNSAFE) + [not windows] * len(UNSAFE_ON_WINDOWS) + [True] * len(SAFE)
    assert [load("receiver").is_safe(name, windows) for name in names] == expected
    assert node.are_safe(names, windows) == expected
    if not windows:
        assert [is_accepted(name) for name in names] == expected


def is_accepted(name: str) -> bool:
    """Return whether the reference client accepts the name."""
    try:
        return safe_path(name) == name
    except Refused:
        return False


def test_device_names_are_ordinary_files_elsewhere(client: Client) -> None:
    for name in ("aux.c", "con", "nul.txt", "x:y"):
        assert client.create(name, b"x") == (200, "kept")
    assert sorted(client.held()) == ["aux.c", "con", "nul.txt", "x:y"]
