"""The quick start at /docs/, followed to the letter: every command runs in a shell, against a live server and a real sync."""

import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from deliveries_app.models import App, AppRepository, Status
from tests.api.caller import token_of
from tests.docora.test_docs import PROJECT, read
from tests.support.receiver import wait_for
from tests.support.world import KEY, World

FILES = {"README.md": b"# Handbook\n", "src/index.ts": b"export {}\r\n", "logo.png": b"\x89PNG\0", "größe.txt": b""}


class Reader:
    """A reader who copies the page's code into a terminal, and replaces its `placeholders`."""

    def __init__(self, folder: Path, placeholders: dict[str, str]) -> None:
        self.placeholders = placeholders
        self._folder = folder
        self._code = read("/docs/").code
        self._exports = ["export NO_PROXY='*'"]
        self._started: list[subprocess.Popen[bytes]] = []

    def script(self, step: str) -> list[str]:
        """Return the command that runs the step's code with the variables that earlier steps have exported."""
        code = self._code[step]
        for placeholder, value in self.placeholders.items():
            code = code.replace(placeholder, value)
        script = "\n".join([*self._exports, code])
        self._exports += [line for line in code.splitlines() if line.startswith("export ")]
        return ["sh", "-c", script]

    def run(self, step: str) -> str:
        """Return what the code printed. Raises CalledProcessError if it failed."""
        return subprocess.run(
            self.script(step), cwd=self._folder, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    def start(self, step: str, log: Path) -> None:
        """Start the code in another terminal."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.script(step), cwd=self._folder, stdout=output, stderr=output, start_new_session=True
            )
        self._started.append(process)

    def close(self) -> None:
        for process in self._started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def reader(world: World, live_server, tmp_path: Path, port: int) -> Iterator[Reader]:
    (tmp_path / "portal").mkdir()
    App.objects.filter(pk=world.app.pk).update(base_url=f"http://127.0.0.1:{port}/docora")
    reader = Reader(
        tmp_path / "portal",
        {
            settings.PUBLIC_URL: live_server.url,
            "your signing key": KEY,
            "your token": token_of(world.app),
            "9000": str(port),
            "https://github.com/owner/name": world.git.repo("acme/handbook", FILES).url,
        },
    )
    yield reader
    reader.close()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_quick_start(world: World, reader: Reader, port: int, tmp_path: Path) -> None:
    log = tmp_path / "receiver.log"
    reader.start("start-receiver", log)
    wait_for(lambda: listens(port))

    pinged = json.loads(reader.run("first-ping"))
    assert (pinged["delivered"], pinged["response"]) == (True, "pong"), pinged
    assert "200 pong" in log.read_text()

    repository_id = json.loads(reader.run("first-watch"))["repository_id"]
    watch = AppRepository.objects.get(repository__repository_id=repository_id)
    assert world.sync(watch).status == Status.SYNCED, watch.last_error
    assert "create 'README.md': 200 kept" in log.read_text()
    sent = log.read_text()
    assert json.loads(reader.run("first-watch"))["status"] == "synced"
    assert log.read_text() == sent, "the second PUT sends nothing"

    reader.placeholders["repo_…"] = repository_id
    assert json.loads(reader.run("first-look"))["status"] == "synced"
    checked = reader.run("first-check").splitlines()
    assert sorted(checked) == sorted(f"{path}: OK" for path in FILES)

    (tmp_path / "portal" / "copies" / repository_id / "files" / "README.md").write_text("changed")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        reader.run("first-check")
    assert "README.md: FAILED" in failed.value.stdout


def test_commands_for_one_machine(reader: Reader, tmp_path: Path) -> None:
    """The settings are valid, and they allow what the registration needs."""
    reader.run("allow-local")
    file = tmp_path / "portal" / ".env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lines = file.read_text().splitlines()
    assert lines == ["ALLOW_HTTP=yes", "ALLOWED_PRIVATE_NETWORKS=127.0.0.0/8"]
    registration = shlex.split(read("/docs/").code["register-locally"])
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path / "data"), "LOG_FORMAT": "console"}
    environment["DOCORA_ENV_FILE"] = str(file)
    for command in (["migrate", "--verbosity=0"], registration[registration.index("onboard_app") :]):
        done = subprocess.run(
            [sys.executable, "manage.py", *command], cwd=PROJECT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "client_auth_key" in done.stdout
