"""Restarts of the web process lose no request. Each request uses its own connection and is sent once."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from docora.process import die_with_parent
from tests.support.deployment import PROJECT, UNITS
from tests.support.instance import free_port, port_is_taken
from tests.support.processes import Daemons, children, is_alive
from tests.support.receiver import wait_for
from tests.support.shared import copy

# What systemd does between fork and exec.
START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
SETTINGS = "DOCORA_BUILD_NUMBER=one\nDOCORA_BUILD_DATE=day\nDOCORA_BUILD_SHA=ignored\n"  # the environment has its own
CADDY = Path(sys.executable).with_name("caddy")  # from PyPI: Debian's is older than the one in compose.yaml


class WebService:
    """The web process on a socket that this process holds and passes to it, as systemd does."""

    def __init__(self, directory: Path) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = self.listener.getsockname()
        self.log = directory / "web.log"
        self.settings = directory / "settings"
        self.settings.write_text(SETTINGS)
        self.environment = {
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(directory),
            "DOCORA_BUILD_SHA": "given",
            "DOCORA_ENV_FILE": str(self.settings),
        }
        self.process = self.start()

    def prepare(self) -> None:
        """Start it if it has ended, with an empty log. What it read from its settings stays until the next SIGHUP."""
        self.settings.write_text(SETTINGS)
        self.log.write_text("")
        if self.process.poll() is not None:
            self.start()

    def start(self) -> subprocess.Popen[bytes]:
        fd = self.listener.fileno()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, str(fd), str(PROJECT / "manage.py"), "web"],
                env=self.environment,
                stdout=log,
                stderr=log,
                pass_fds=[fd],
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        return self.process

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def workers(self) -> set[int]:
        return set(children(self.process.pid))


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Path:
    """A data directory with a migrated database."""
    directory = tmp_path_factory.mktemp("service")
    copy(migrated_sqlite, directory / "docora.sqlite3")
    return directory


@pytest.fixture(scope="module")
def shared_service(migrated: Path) -> Iterator[WebService]:
    service = WebService(migrated)
    yield service
    service.end()
    service.listener.close()


@pytest.fixture
def service(shared_service: WebService) -> WebService:
    """The service, running. A test may leave it in any state."""
    shared_service.prepare()
    assert ask(shared_service.address) == 200
    return shared_service


def answer(address: tuple[str, int], path: str = "/health") -> bytes:
    """Send a request and return the whole response, or nothing if there is none."""
    question = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    with socket.create_connection(address, timeout=60) as connection:
        try:
            connection.sendall(question.encode())
            return connection.makefile("rb").read()
        except ConnectionError:
            return b""


def ask(address: tuple[str, int]) -> int:
    """Send a request and return the status of the response, or 0 if there is none."""
    return int((answer(address) or b"HTTP/1.1 0").split()[1])


def build(service: WebService) -> tuple[str, str, str]:
    """Return build number, commit and date from `/version`, which reads the settings of the process that answers."""
    version = json.loads(answer(service.address, "/version").partition(b"\r\n\r\n")[2])
    return version["buildNumber"], version["gitSha"], version["buildDate"]


class Clients:
    """Four clients that send one request after the other until the end of the `with` block."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.statuses: list[int] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._request, args=(address,)) for _ in range(4)]

    def _request(self, address: tuple[str, int]) -> None:
        while not self._stop.wait(0.01):
            try:
                self.statuses.append(ask(address))
            except OSError:
                self.statuses.append(0)

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def wait_for_more(self, count: int = 100) -> bool:
        wanted = len(self.statuses) + count
        return wait_for(lambda: len(self.statuses) >= wanted, 40)


def test_restart_by_socket_activation_loses_no_request(service: WebService) -> None:
    with Clients(service.address) as clients:
        clients.wait_for_more()
        assert service.end() == 0
        service.start()
        clients.wait_for_more()
    assert set(clients.statuses) == {200}
    assert "Traceback" not in service.log.read_text()


def test_sighup_reads_the_env_file_again_and_loses_no_request(service: WebService) -> None:
    """With settings that are invalid, it replaces nothing."""
    before = service.workers()
    assert build(service) == ("one", "given", "day")
    with Clients(service.address) as clients:
        clients.wait_for_more()
        for pid in before:  # as `systemctl kill` does; only the manager acts on it
            os.kill(pid, signal.SIGHUP)
        service.settings.write_text("DOCORA_BUILD_NUMBER=invalid\nMETRICS_TOKEN=short\n")
        assert build(service) == ("one", "given", "day")
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "the old one keeps running" in service.log.read_text(), 60)
        assert "Docora cannot start: METRICS_TOKEN must be at least 16" in service.log.read_text()
        assert (service.workers(), build(service)) == (before, ("one", "given", "day"))
        service.settings.write_text("DOCORA_BUILD_NUMBER=two\nDOCORA_BUILD_SHA=ignored\n")
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: service.workers() and not service.workers() & before, 60)
        clients.wait_for_more()
    assert set(clients.statuses) == {200}
    assert build(service) == ("two", "given", "")


def test_sighup_with_a_broken_application_keeps_the_process(migrated: Path, tmp_path: Path) -> None:
    """Even if `check` finds no problem."""
    module, log = tmp_path / "other_site.py", tmp_path / "web.log"
    module.write_text("from tests.support.web import application")
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as output:
        manager = subprocess.Popen(
            [sys.executable, "-m", "docora.server.web_manager", str(listener.fileno()), "2", "other_site:application"],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": f"{tmp_path}:{PROJECT}",
                "PYTHONDONTWRITEBYTECODE": "1",  # compiled code would hide a change within the same second
                "DATA_DIR": str(migrated),
                "DOCORA_ENV_FILE": os.devnull,
            },
            stderr=output,
            pass_fds=[listener.fileno()],
            preexec_fn=die_with_parent,
        )
        try:
            assert ask(listener.getsockname()) == 200
            before = set(children(manager.pid))
            module.write_text("raise RuntimeError('broken')")
            manager.send_signal(signal.SIGHUP)
            wait_for(lambda: "the old one keeps running" in log.read_text(), 60)
            assert "RuntimeError: broken" in log.read_text()
            assert (set(children(manager.pid)), ask(listener.getsockname())) == (before, 200)
        finally:
            manager.terminate()
            assert manager.wait(20) == 0


def test_open_connections_are_answered_before_shutdown(service: WebService) -> None:
    body = b"{}"
    head = f"POST /api/hooks/push/repo_1 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    with (
        socket.create_connection(service.address, timeout=30) as in_progress,
        socket.create_connection(service.address, timeout=30) as silent,
    ):
        in_progress.sendall(f"{head}X-Hub-Signature-256: sha256={'0' * 64}\r\n\r\n".encode())
        time.sleep(1)  # a thread of the server waits for the body, and the other connection is accepted
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        silent.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert silent.makefile("rb").readline().split()[1] == b"200"
        time.sleep(0.5)
        assert service.process.poll() is None
        in_progress.sendall(body)
        assert in_progress.makefile("rb").readline().split()[1] in {b"401", b"403", b"404"}
    assert service.process.wait(15) == 0


def test_kill_9_leaves_no_process_behind(service: WebService) -> None:
    left = service.workers()
    assert left
    service.process.kill()
    service.process.wait()
    wait_for(lambda: not any(is_alive(pid) for pid in left), 10)


@pytest.mark.early(3)
def test_container_proxy_holds_requests_during_a_restart(migrated: Path, tmp_path: Path) -> None:
    here, behind = ("127.0.0.1", free_port()), free_port()
    settings = (UNITS / "Caddyfile").read_text().replace("web:8000", f"127.0.0.1:{behind}")
    (tmp_path / "Caddyfile").write_text(settings)
    paths = {"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    web = Daemons(tmp_path, {"DATA_DIR": str(migrated), "DOCORA_ENV_FILE": os.devnull, "PORT": str(behind)} | paths)
    web.environment["TRUSTED_PROXIES"] = "127.0.0.0/8"
    proxy = subprocess.Popen(
        [CADDY, "run", "--adapter", "caddyfile", "--config", str(tmp_path / "Caddyfile")],
        env=paths | {"PUBLIC_URL": f"http://{here[0]}:{here[1]}"},
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    try:
        first = web.start("web")
        wait_for(lambda: port_is_taken(*here), 20)
        with Clients(here) as clients:
            clients.wait_for_more()
            first.terminate()
            assert first.process.wait(20) == 0
            time.sleep(1)  # no server listens behind the proxy
            web.start("web")
            clients.wait_for_more()
        assert set(clients.statuses) == {200}
        headers = {"X-Request-Id": "chosen-by-the-client"}
        request = urllib.request.Request(f"http://{here[0]}:{here[1]}/docs/", headers=headers)
        with urllib.request.urlopen(request, timeout=20) as page:
            request_id = page.headers["X-Request-Id"]
        assert uuid.UUID(request_id)  # Caddy's
        assert f'"request_id": "{request_id}"' in web.logs()
    finally:
        web.close()
        proxy.terminate()
        proxy.wait(20)
