"""The documentation's receivers as real client apps that keep a copy of a repository."""

import base64
import hashlib
import inspect
import itertools
import json
import os
import random
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, DriftCheck, DriftState, Status
from deliveries_app.planning.paths import is_unsafe
from deliveries_app.services import check_watch, resync_single, send_differences
from deliveries_app.sync import drift
from deliveries_app.webhooks.payloads import (
    PING,
    Chunk,
    Envelope,
    delete_body,
    file_body,
    notice_body,
    verify_fields,
    webhook_id,
)
from tests.support.git import Repo
from tests.support.world import KEY, World
from tests.wire.bodies import BODIES, COMMIT, CONTENTS, NOON, PATHS, REPOSITORY, SHA, chunked, file_notification
from tests.wire.clients import SAMPLES, SampleServer, load

WATCH, ANEW = "0123456789abcdef", "fedcba9876543210"
LARGE = b"0123456789abcdef\r\n" * 40_000
FILES = {f"contents/{number:02}": content for number, content in enumerate(CONTENTS.values())} | {
    path: b"at a path" for path in PATHS.values() if path != "__proto__" and not is_unsafe(path.encode())
}


@dataclass
class Client:
    """A running receiver and its copies. It keeps nothing in memory, so tests can share one."""

    name: str
    folder: Path
    key: str = KEY
    servers: list[SampleServer] = field(default_factory=list)
    _logs: Iterator[int] = field(default_factory=itertools.count)
    _written: int = 0  # characters of the output before this test

    def begin(self) -> None:
        """Begin a test without copies. Start the receiver if it is not running."""
        shutil.rmtree(self.folder / "copies", ignore_errors=True)
        self.servers = [server for server in self.servers if server.running]
        if not self.servers:
            self.start()
        self._written = sum(len(server.output) for server in self.servers)

    def close(self) -> None:
        for server in self.servers:
            server.close()

    def start(self) -> None:
        log, copies = self.folder / f"{next(self._logs)}.log", str(self.folder / "copies")
        port = self.servers[0].port if self.servers else 0
        self.servers.append(SampleServer(self.name, self.key, log, port=port, COPIES=copies))

    def restart(self) -> None:
        self.servers[-1].close()
        self.start()

    @property
    def url(self) -> str:
        return f"{self.servers[-1].url}/hooks"

    @property
    def output(self) -> str:
        return "".join(server.output for server in self.servers)[self._written :]

    def held(self, repository_id: str = REPOSITORY.repository_id) -> dict[str, bytes]:
        """Return path → content of the copy."""
        files = self.folder / "copies" / repository_id / "files"
        return {str(file.relative_to(files)): file.read_bytes() for file in files.rglob("*") if file.is_file()}

    def on_disk(self) -> set[Path]:
        """Return every file on disk except logs."""
        return {file for file in self.folder.parent.rglob("*") if file.is_file() and file.suffix != ".log"}

    def post(
        self, event: str, body: bytes, sequence: int = 1, key: str = KEY, watch: str = WATCH, **changes: str
    ) -> tuple[int, str]:
        """Send a notification as Docora does. Return the status and the text of the answer."""
        envelope = Envelope("app_0123456789abcdef01234567", "run_0123456789abcdef01234567", "change")
        lines = envelope.headers(body, webhook_id(watch, sequence), sequence, int(time.time()), [key])
        headers = dict(line.split(": ", 1) for line in lines)
        headers |= {name.replace("_", "-"): value for name, value in changes.items()}
        request = urllib.request.Request(f"{self.url}/{event}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def create(self, path: str, content: bytes, sequence: int = 1, watch: str = WATCH) -> tuple[int, str]:
        return self.post("create", file_notification(content, path), sequence, watch=watch)

    def delete(self, path: str, sequence: int, watch: str = WATCH) -> tuple[int, str]:
        return self.post("delete", delete_body(REPOSITORY, path, SHA, COMMIT, NOON), sequence, watch=watch)


@pytest.fixture(params=["receiver.py", "receiver.mjs"])
def client(
    request: pytest.FixtureRequest, receivers: dict[str, Client], tmp_path_factory: pytest.TempPathFactory
) -> Client:
    if request.param not in receivers:
        folder = tmp_path_factory.mktemp("receiver") / "client"
        folder.mkdir()
        receivers[request.param] = Client(request.param, folder)
    client = receivers[request.param]
    client.begin()
    return client


def sync_and_compare(world: World, client: Client, watch: AppRepository, repo: Repo) -> None:
    """Sync, and assert that the copy equals the repository and that the client reports it."""
    assert world.sync(watch).status == Status.SYNCED, (watch.last_error, client.output)
    assert client.held(watch.repository.repository_id) == repo.files()
    assert client.output.rstrip().endswith("the copy matches")


@pytest.fixture
def watched(world: World, client: Client, settings) -> tuple[Repo, AppRepository]:
    """A repository with every kind of content and path, and a small chunk size that is not a multiple of four."""
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 60_000, 50_001
    App.objects.filter(pk=world.app.pk).update(base_url=client.url, send_sync_completed=True)
    world.app.refresh_from_db()
    return world.watch({**FILES, "large.txt": LARGE})


def test_copy_follows_every_change(world: World, client: Client, watched) -> None:
    repo, watch = watched
    sync_and_compare(world, client, watch, repo)
    assert "waiting for more chunks" in client.output
    repo.commit({"large.txt": LARGE[::-1], "0": b"changed", "1/2/3": None, "contents/00": None, "new/a/b": b"\0"})
    sync_and_compare(world, client, watch, repo)
    repo.commit({"1": b"was a folder", "0": None, "0/was/a": b"file", "new/a/b": None})
    sync_and_compare(world, client, watch, repo)
    client.restart()
    repo.commit({"large.txt": LARGE[1:]})
    sync_and_compare(world, client, watch, repo)


def test_resync_repairs_a_damaged_copy(world: World, client: Client, watched) -> None:
    repo, watch = watched
    sync_and_compare(world, client, watch, repo)
    files = client.folder / "copies" / watch.repository.repository_id / "files"
    (files / "large.txt").unlink()
    (files / "large.txt").mkdir()
    (files / "large.txt" / "in the way").write_text("x")
    (files / "contents" / "01").write_text("x")
    resync_single(Actor.system(), watch)
    sync_and_compare(world, client, watch, repo)


def test_check_finds_and_repairs_every_difference(
    world: World, client: Client, watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random damage, pages of a few files, and paths whose order differs between bytes and UTF-16."""
    App.objects.update(answers_verify=True)
    repo, watch = watched
    repo.commit({"\U0001f600.md": b"smile", "\uffff.md": b"last", "\ue000/a": b"private use"})
    sync_and_compare(world, client, watch, repo)
    watch.refresh_from_db()
    files = client.folder / "copies" / watch.repository.repository_id / "files"
    chance = random.Random(client.name)
    assert checked(world, watch).state == DriftState.EQUAL
    for limit in (1, 7, 4000):
        monkeypatch.setattr(drift, "MAX_ENTRIES", limit)
        before = client.held(watch.repository.repository_id)
        lost, changed = (chance.sample(sorted(before), 3) for _ in range(2))
        for path in set(changed) - set(lost):
            (files / path).write_bytes(b"changed" + os.urandom(4))
        for path in lost:
            (files / path).unlink()
        extra = [f"extra-{chance.choice('a~\uffff\U0001f600')}-{number}" for number in range(2)]
        for path in extra:
            (files / path).write_bytes(b"extra")
        check = checked(world, watch)
        assert dict(check.files.values_list("path", "kind")) == (
            dict.fromkeys(changed, "different") | dict.fromkeys(lost, "missing") | dict.fromkeys(extra, "extra")
        ), client.output
        assert check.compared == len(before) + len(extra)
        send_differences(Actor.system(), check)
        assert world.sync(watch).status == Status.SYNCED, (watch.last_error, client.output)
        assert client.held(watch.repository.repository_id) == repo.files()
        assert checked(world, watch).state == DriftState.EQUAL


def checked(world: World, watch: AppRepository) -> DriftCheck:
    check = check_watch(Actor.system(), watch)
    world.settle()
    check.refresh_from_db()
    return check


def test_replayed_check_is_refused(client: Client) -> None:
    """It would tell anyone who captured it which files the app holds."""
    body = notice_body(verify_fields(REPOSITORY, COMMIT, SHA, "", 10), NOON)
    client.create("a", b"x", sequence=2)
    status, text = client.post("verify", body, sequence=3)
    assert (status, json.loads(text)) == (
        200, {"files": [{"path": "a", "sha": hashlib.sha256(b"x").hexdigest()}], "next": None},
    )  # fmt: skip
    client.create("b", b"x", sequence=4)
    assert client.post("verify", body, sequence=3)[0] == 409
    assert client.post("verify", body, sequence=3, watch=ANEW)[0] == 409
    assert client.post("ping", body, sequence=5)[0] == 422
    assert client.post("verify", notice_body(PING, NOON), sequence=5)[0] == 422


def test_every_body_is_accepted(client: Client) -> None:
    for sequence, (name, body) in enumerate(BODIES.items(), 1):
        if name == "a huge size":
            continue
        event = name.partition(":")[0].partition(" ")[0].replace("chunk", "create")
        status, text = client.post(event, body, sequence)
        assert (status, text != "stale") == (200, True), (name, text)


def test_repository_id_is_a_directory_name(client: Client) -> None:
    """Imported repositories keep their ids, which may have any format."""
    for repository_id in ("Portal-docs", "-", "r" * 50):
        body = file_notification(b"x", "a").replace(REPOSITORY.repository_id.encode(), repository_id.encode())
        assert client.post("create", body) == (200, "kept"), repository_id
        assert client.held(repository_id) == {"a": b"x"}


def test_file_appears_with_its_last_chunk(client: Client) -> None:
    bodies = chunked(LARGE, 100_001)
    for body in bodies[:-1]:
        assert client.post("create", body) == (200, "waiting for more chunks")
        assert client.held() == {}
    client.restart()
    assert client.post("create", bodies[-1]) == (200, "kept")
    assert client.held() == {"big.bin": LARGE}
    assert [file for file in client.on_disk() if "incoming" in file.parts] == []


def test_unfinished_files_are_cleared_at_start(client: Client) -> None:
    """A killed process leaves temporary files, and uploads that Docora will not continue. Recent uploads stay."""
    bodies = chunked(LARGE, 100_001)
    assert client.post("create", bodies[0]) == (200, "waiting for more chunks")
    incoming = client.folder / "copies" / REPOSITORY.repository_id / "incoming"
    (recent,) = incoming.iterdir()
    (incoming / "0123456789abcdef0123456789abcdef").write_bytes(b"half a file")
    shutil.copytree(recent, incoming / "abandoned")
    yesterday = time.time() - 86_401
    for each in ((incoming / "abandoned"), *(incoming / "abandoned").iterdir()):
        os.utime(each, (yesterday, yesterday))
    client.restart()
    assert list(incoming.iterdir()) == [recent]
    for body in bodies[1:-1]:
        assert client.post("create", body) == (200, "waiting for more chunks")
    assert client.post("create", bodies[-1]) == (200, "kept")
    assert client.held() == {"big.bin": LARGE}


def test_chunks_of_two_attempts_are_not_mixed(client: Client) -> None:
    def chunk(number: int, content: str, attempt: str) -> bytes:
        piece = Chunk(attempt, number, 2, base64.b64encode(content.encode()).decode())
        return file_body(REPOSITORY, "a", hashlib.sha256(b"onetwo").hexdigest(), 6, piece, COMMIT, NOON)

    assert client.post("create", chunk(0, "eno", "first"), 1) == (200, "waiting for more chunks")
    assert client.post("create", chunk(0, "one", "second"), 2) == (200, "waiting for more chunks")
    assert client.post("create", chunk(0, "one", "second"), 2) == (200, "waiting for more chunks")
    assert client.post("create", chunk(1, "two", "first"), 1)[0] == 409
    assert client.post("create", chunk(1, "two", "second"), 2) == (200, "kept")
    assert client.held() == {"a": b"onetwo"}


def test_late_notifications_are_ignored(client: Client) -> None:
    assert client.create("a", b"new", 7) == (200, "kept")
    assert client.create("a", b"old", 6) == (200, "stale")
    assert client.delete("a", 5) == (200, "stale")
    assert client.create("a", b"new", 7) == (200, "kept")
    assert client.delete("a", 8) == (200, "removed")
    client.restart()
    assert client.create("a", b"new", 7) == (200, "stale")
    assert client.post("create", chunked(LARGE, 100_000)[0].replace(b"big.bin", b"a"), 7) == (200, "stale")
    assert client.held() == {}
    assert client.delete("a", 9) == (200, "absent")
    assert client.create("b", b"another path", 1) == (200, "kept")


OUTSIDE = ["../a", "/a", "a/../../../a", "a/..", "..", ".", "", "a//b", "a/", "./a", "a\0b", "../../../../../../tmp/a"]


def test_path_outside_the_copy_is_refused(client: Client) -> None:
    before = client.on_disk()
    refused = (422, "The path leads outside the copy or isn't a valid file name on this system.")
    for path in OUTSIDE:
        assert client.create(path, b"x") == refused, path
        assert client.delete(path, 2) == refused, path
        chunk = chunked(b"x", 2)[0].replace(b'"big.bin"', json.dumps(path).encode())
        assert client.post("create", chunk)[0] == 422, path
        assert {file for file in client.on_disk() if file.name != "epoch"} == before, path


def test_unsafe_id_is_refused(client: Client) -> None:
    before = client.on_disk()
    for old, new in (
        (REPOSITORY.repository_id, "../../elsewhere"),
        ("0b9cbbd4-3ba5-4d0c-b5c4-6a3f3c7f6f9e", "../../elsewhere"),
        ("0b9cbbd4-3ba5-4d0c-b5c4-6a3f3c7f6f9e", ".."),
    ):
        body = chunked(LARGE, 100_000)[0].replace(old.encode(), new.encode())
        assert client.post("create", body)[0] == 422, (old, new)
        assert {file for file in client.on_disk() if file.name != "epoch"} == before, (old, new)


def test_content_must_match_sha_and_size(client: Client) -> None:
    for path, name, value in (("a", "sha", SHA), ("b", "size", 5), ("c", "content", "other")):
        before = client.held()
        assert client.create(path, b"text", 1) == (200, "kept")
        body = json.loads(file_notification(b"longer text", path))
        body["file"][name] = value
        refused = (422, "The content doesn't match sha and size.")
        assert client.post("update", json.dumps(body).encode(), 2) == refused, name
        assert client.held() == before | {path: b"text"}
        assert client.create(path, b"text again", 2) == (200, "kept")


def test_signed_body_that_is_not_a_notification_is_refused(client: Client) -> None:
    """A developer who tries out the receiver may send one. Without a response, they would look for the mistake elsewhere."""
    before = client.on_disk()
    invalid = b"", b"\xff", b"{", b"null", b"[]", b'"text"'
    for body in (*invalid, b'{"file": null}', b'{"file": []}', b'{"file": "text"}'):
        assert client.post("create", body)[0] == 422, body
    assert client.post("ping", b"")[0] == 422
    assert client.on_disk() == before
    assert client.post("ping", notice_body(PING, NOON)) == (200, "pong"), "it still runs"


def test_unauthenticated_requests_are_refused(client: Client) -> None:
    body = file_notification(b"x")
    before = client.on_disk()
    assert client.post("create", body, key="another-key-altogether")[0] == 401
    assert client.post("create", body, X_Docora_Timestamp=str(int(time.time()) - 60))[0] == 401
    assert client.post("create", body, X_Docora_Signature="sha256=")[0] == 401
    assert client.on_disk() == before


def test_other_notifications_and_an_unknown_path(client: Client) -> None:
    assert client.post("ping", notice_body(PING, NOON)) == (200, "pong")
    assert client.post("sync_failed", BODIES["sync_failed plain"])[0] == 200
    assert client.post("sync_completed", BODIES["sync_completed"]) == (200, "the copy differs: ask for a re-sync")
    assert client.post("elsewhere", notice_body(PING, NOON))[0] == 404


def test_receivers_share_verification_with_the_samples() -> None:
    ours, theirs = load("receiver"), load("verify")
    for name in ("verify", "same", "watch_and_sequence", "check_event"):
        assert inspect.getsource(getattr(ours, name)) == inspect.getsource(getattr(theirs, name))
    texts = {name: (SAMPLES / name).read_text() for name in ("receiver.mjs", "verify.mjs")}
    for name in ("Refused", "verify", "same", "watchAndSequence", "checkEvent"):
        code = re.compile(rf"^(?:export )?(?:function|class) {name}\b.*?^}}$", re.MULTILINE | re.DOTALL)
        found = [code.search(text) for file, text in texts.items() if (name, file) != ("verify", "verify.mjs")]
        assert len({match and match[0] for match in found}) == 1, name
        assert None not in found
