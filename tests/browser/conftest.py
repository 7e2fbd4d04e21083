"""A whole Docora for the browser: real web, workers and sweep on this test's database and Valkey, and Chromium.

Playwright's synchronous API runs an event loop in its thread, and Django refuses to touch the database in such a thread:
everything that drives the browser goes through one worker thread, see `Browser`.
"""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import ConsoleMessage, Page, sync_playwright

from docora.process import die_with_parent
from tests.browser import chromium
from tests.support.world import World

PROJECT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery"


class Site:
    """The running processes; `url` is the address of the web process."""

    def __init__(self, environment: dict[str, str], logs: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = environment | {"PORT": str(self.port), "PYTHONPATH": str(PROJECT)}
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        web = ["granian", "--interface", "wsgi", "--port", str(self.port), "--no-ws", "docora.wsgi:application"]
        self._start("web", "-m", *web)
        for number in (1, 2):
            self._start(f"worker-{number}", "-m", "docora", "rqworker", "high", "default", "low", "-v", "0")
        self._start("sweep", "-m", "docora", "sweep")
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=10).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self._logs / "web.log").read_text()
                time.sleep(0.1)

    def stop(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            process.wait(15)

    def _start(self, name: str, *arguments: str) -> None:
        with (self._logs / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, *arguments],
                    env=self._environment,
                    stdout=log,
                    stderr=log,
                    preexec_fn=partial(die_with_parent, signal.SIGTERM),
                )
            )


class Browser:
    """One page in headless Chromium. `drive(f)` runs `f(page)` in the browser's own thread and returns its result."""

    def __init__(self, **context: Any) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.complaints: list[str] = []
        self._thread.submit(self._open, context).result()

    def _open(self, context: dict[str, Any]) -> None:
        self._playwright = sync_playwright().start()
        self._browser = chromium.launch(self._playwright)
        self._page = self._browser.new_context(**context).new_page()
        self._page.set_default_timeout(15_000)
        self._page.on("console", self._listen)
        self._page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def drive[T](self, what: Callable[[Page], T]) -> T:
        return self._thread.submit(what, self._page).result()

    def close(self) -> None:
        self._thread.submit(self._browser.close).result()
        self._thread.submit(self._playwright.stop).result()
        self._thread.shutdown()


@pytest.fixture
def world(transactional_db: None, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def site(world: World, instance_environment: dict[str, str], tmp_path: Path) -> Iterator[Site]:
    User.objects.create_superuser("anna", password=PASSWORD)
    site = Site(instance_environment | {"REPOS_DIR": str(tmp_path / "repos")}, tmp_path)
    site.start()
    yield site
    site.stop()


@pytest.fixture
def browser() -> Iterator[Browser]:
    browser = Browser(viewport={"width": 1280, "height": 900})
    yield browser
    browser.close()
