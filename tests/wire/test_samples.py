"""The documentation's samples as real client apps that receive a whole repository."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from django.utils import timezone

from deliveries_app.models import App, Status
from docora.security.crypto import new_webhook_key
from tests.docora.http_server import saying, servers
from tests.support.world import KEY, World
from tests.wire.bodies import CONTENTS
from tests.wire.clients import SAMPLES, Node, SampleServer, load, node_command

SERVERS = ["verify.mjs", "verify.py"]
RECEIVERS = ["receiver.mjs", "receiver.py"]
NEW_KEY = new_webhook_key()
FILES = {
    **{f"contents/{number:02}.txt": content for number, content in enumerate(CONTENTS.values())},
    "__proto__/constructor": b"{}",
    "0": b"zero",
    "1/2": b"two",
    "\"quoted\" 'name'": b"q",
    "😀/e\u0301 é/\u2028.md": b"# \xf0\x9f\x98\x80\r\n",
    "</script>.html": b"</script>",
    "large.txt": b"0123456789abcdef\r\n" * 100_000,
}

Starter = Callable[[str, str], SampleServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Return a function that starts a sample by its name, with a key."""
    started: list[SampleServer] = []

    def start(name: str, key: str) -> SampleServer:
        started.append(SampleServer(name, key, tmp_path / f"{name}.{len(started)}.log"))
        return started[-1]

    yield start
    for server in started:
        server.close()


def send_to(world: World, url: str, **changes: Any) -> None:
    App.objects.filter(pk=world.app.pk).update(base_url=url, **changes)
    world.app.refresh_from_db()


@pytest.mark.parametrize("name", SERVERS)
def test_sample_accepts_a_whole_sync(world: World, start: Starter, name: str) -> None:
    server = start(name, KEY)
    send_to(world, f"{server.url}/hooks", send_sync_completed=True)
    repo, watch = world.watch(FILES)
    assert world.sync(watch).status == Status.SYNCED, watch.last_error
    assert len(world.rows(watch)) == len(FILES)

    repo.commit({"0": b"0", "1/2": None})
    assert world.sync(watch).status == Status.SYNCED, watch.last_error
    for event in ("create", "update", "delete", "sync_completed"):
        assert event in server.output, server.output


@pytest.mark.parametrize("name", SERVERS)
def test_sample_with_another_key_accepts_nothing(world: World, start: Starter, name: str) -> None:
    send_to(world, start(name, "another-key-altogether").url)
    _, watch = world.watch({"a": b"a", "b": b"b"})
    world.sync(watch)
    assert {failure.status_code for failure in watch.failures.all()} == {401}
    assert not any(row.acknowledged for row in world.rows(watch).values())


@pytest.mark.parametrize("name", SERVERS)
def test_sample_responds_with_500_when_the_code_that_an_app_adds_fails(
    world: World, start: Starter, tmp_path: Path, name: str
) -> None:
    """Without a response, Docora would take it for a lost connection: it waits, and after ten files checks the endpoint."""
    own = tmp_path / name
    failing = {"verify.py": 'raise RuntimeError("no database")', "verify.mjs": "throw new Error('no database');"}
    text = re.sub(
        r"(?m)^( +)check(_e|E)vent\(event, notification\);?$", rf"\1{failing[name]}", (SAMPLES / name).read_text()
    )
    own.write_text(text)
    server = start(str(own), KEY)
    send_to(world, server.url)
    _, watch = world.watch({"a": b"a", "b": b"b"})
    world.sync(watch)
    assert {failure.status_code for failure in watch.failures.all()} == {500}
    assert "no database" in server.output


@pytest.mark.parametrize("name", [*SERVERS, *RECEIVERS])
def test_sample_does_not_start_without_a_key(name: str) -> None:
    program = node_command() if name.endswith(".mjs") else sys.executable
    environment = os.environ | {"DOCORA_KEY": "", "PORT": "0"}
    done = subprocess.run(
        [program, str(SAMPLES / name)], env=environment, capture_output=True, text=True, timeout=10, check=False
    )
    assert (done.returncode, done.stderr) == (1, "Set DOCORA_KEY to the signing key of your app.\n")


@pytest.mark.parametrize("name", [*SERVERS, *RECEIVERS])
def test_sample_survives_a_request_that_is_cut_off(start: Starter, name: str) -> None:
    server = start(name, KEY)
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    with pytest.raises(HTTPError, match="401"):
        urlopen(Request(f"{server.url}/create", b"{}"), timeout=10)
    assert server.running


@pytest.mark.parametrize("name", [*SERVERS, *RECEIVERS])
@pytest.mark.parametrize("length", ["-1", "1e3"])
def test_sample_refuses_an_invalid_length_without_reading(start: Starter, name: str, length: str) -> None:
    """With -1, it would read for as long as a stranger sends."""
    server = start(name, KEY)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(f"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{{".encode())
        assert connection.recv(12) in {b"HTTP/1.1 400", b"HTTP/1.1 413"}


@pytest.mark.parametrize("name", RECEIVERS)
def test_receiver_copes_with_files_that_a_power_failure_has_emptied(world: World, tmp_path: Path, name: str) -> None:
    server = SampleServer(name, KEY, tmp_path / "log", COPIES=str(tmp_path / "copies"))
    try:
        send_to(world, server.url)
        repo, watch = world.watch({"a": b"1", "b": b"2"})
        assert world.sync(watch).status == Status.SYNCED
        [folder] = (tmp_path / "copies").iterdir()
        for file in (folder / "epoch", *(folder / "sequences").iterdir()):
            file.write_bytes(b"")
        repo.commit({"a": b"changed"})
        assert world.sync(watch).status == Status.SYNCED, watch.last_error
        assert (folder / "files" / "a").read_bytes() == b"changed"
    finally:
        server.close()


@pytest.mark.parametrize("name", RECEIVERS)
def test_receiver_prints_what_it_answers(world: World, tmp_path: Path, name: str) -> None:
    server = SampleServer(name, KEY, tmp_path / "log", COPIES=str(tmp_path / "copies"))
    try:
        send_to(world, server.url)
        _, watch = world.watch({"docs/a b.md": b"a"})
        world.sync(watch)
        with pytest.raises(HTTPError, match="401"):
            urlopen(Request(f"{server.url}/create", b"{}"), timeout=10)
        kept, refused = server.output.splitlines()[1:]
        assert kept == "create 'docs/a b.md': 200 kept"
        assert refused.endswith("401 The signature is wrong, or the request is too old.")
    finally:
        server.close()


@pytest.mark.parametrize("knows", ["the old key", "the new key"])
@pytest.mark.parametrize("name", SERVERS)
def test_sample_works_during_a_key_rotation(world: World, start: Starter, name: str, knows: str) -> None:
    server = start(name, KEY if knows == "the old key" else NEW_KEY)
    send_to(world, server.url, new_auth_key=NEW_KEY, key_rotation_started_at=timezone.now())
    _, watch = world.watch({f"file-{number}": b"%d" % number for number in range(30)})
    assert world.sync(watch).status == Status.SYNCED, watch.last_error


def test_all_clients_verify_the_received_bytes(world: World, node: Node) -> None:
    """The bytes after they went through libcurl and a socket, during a key rotation."""
    with servers() as serve:
        server = serve(saying())
        keys = {"new_auth_key": NEW_KEY, "key_rotation_started_at": timezone.now(), "send_sync_completed": True}
        send_to(world, server.url, **keys)
        repo, watch = world.watch(FILES)
        assert world.sync(watch).status == Status.SYNCED, watch.last_error
        repo.commit({"0": b"0", "1/2": None})
        assert world.sync(watch).status == Status.SYNCED, watch.last_error
        requests = list(server.requests)
    assert len(requests) > len(FILES) + 3

    plain, standard = load("verify"), load("verify_standard")
    for head, body in requests:
        lines = head.decode("ascii").split("\r\n")[1:]
        headers = dict(line.split(": ", 1) for line in lines)
        assert plain.verify(headers, body, KEY)
        verdict = node.check(headers, body, KEY)
        assert (verdict.stringified, verdict.by_parsed_body, verdict.by_raw_body) == (body, True, True)
        for key in (KEY, NEW_KEY):
            assert standard.notification(headers, body, key) == json.loads(body)
        assert standard.notification(headers, body, "another-key-altogether") is None
