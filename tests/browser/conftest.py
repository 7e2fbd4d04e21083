"""A complete Docora for browser tests: real web, worker and sweep on the test's database and Valkey, and Chromium.

Playwright's synchronous API runs an event loop in its thread, and Django refuses to touch the database in such a thread:
everything that drives the browser goes through one worker thread, see `Browser`.
"""

import contextlib
import signal
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
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, sync_playwright

from docora.process import die_with_parent
from tests.browser import chromium
from tests.support.instance import free_port
from tests.support.network import NETWORK_INTERFACES
from tests.support.processes import Daemon, Daemons
from tests.support.shared import SharedFolder
from tests.support.world import World

PROJECT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery"


class Web:
    """The web process at `url`, on the PORT of the environment or a free one. It has no state between tests, so they share
    one."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        port = environment.get("PORT") or str(free_port())
        self.url = f"http://127.0.0.1:{port}"
        self.environment = environment | {"PORT": port, "PYTHONPATH": str(PROJECT)}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "docora", "web"],
                env=self.environment,
                stdout=output,
                stderr=output,
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )
        deadline = time.monotonic() + 90
        while not self._answers():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=10).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(15)


class Site:
    """A complete Docora at `url`: the web process, with the test's own worker and sweep unless `syncs` is false.

    `session` is the session key of its administrator.
    """

    def __init__(self, web: Web, logs: Path, *, syncs: bool = True) -> None:
        self.url = web.url
        administrator, client = User.objects.create_superuser("anna", password=PASSWORD), Client()
        client.force_login(administrator)
        self.session = client.cookies[settings.SESSION_COOKIE_NAME].value
        environment = {name: value for name, value in web.environment.items() if name != "PYTHONPATH"}
        self._daemons = Daemons(logs, environment)
        self._running = [self._daemons.worker(), self._daemons.sweep()] if syncs else list[Daemon]()

    def kill_worker(self) -> None:
        """Kill its worker, and the work-horse with it."""
        self._running[0].process.kill()

    def start_worker(self) -> None:
        self._running.append(self._daemons.worker())

    def stop(self) -> None:
        """Stop it as a service manager does, and in any case: a worker that is left would change the next test's rows."""
        for daemon in self._running:
            daemon.terminate()
        try:
            for daemon in self._running:
                daemon.process.wait(30)  # it may have to kill its work-horse first, and then to free that one's leases
        finally:
            self._daemons.close()


class Chromium:
    """Headless Chromium, and the only thread that drives it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._playwright = self.do(lambda: sync_playwright().start())
        self._browser = self.do(lambda: chromium.launch(self._playwright))

    def do[T](self, what: Callable[[], T]) -> T:
        return self._thread.submit(what).result()

    def open(self, **options: Any) -> BrowserContext:
        return self.do(lambda: self._browser.new_context(**options))

    def close(self) -> None:
        self.do(self._browser.close)
        self.do(self._playwright.stop)
        self._thread.shutdown()


class Browser:
    """One page with its own cookies and storage. `drive(f)` runs `f(page)` in Chromium's thread and returns its result.

    It asks for reduced motion, because Chromium would draw an animation sixty times a second.
    """

    def __init__(self, chromium: Chromium, **options: Any) -> None:
        self.complaints: list[str] = []
        self._chromium = chromium
        self._context = chromium.open(**{"reduced_motion": "reduce"} | options)
        chromium.do(self._open)

    def _open(self) -> None:
        self._page = self._context.new_page()
        self._page.set_default_timeout(15_000)
        self._page.on("console", self._listen)
        self._page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def drive[T](self, what: Callable[[Page], T]) -> T:
        return self._chromium.do(lambda: what(self._page))

    def close(self) -> None:
        self._chromium.do(self._context.close)


def stop_clock(page: Page) -> None:
    """Stop the clock of the page, and of those it goes to next: timers run only when the test calls `page.clock.run_for`."""
    page.clock.install()
    page.clock.pause_at(time.time() + 60)


@contextlib.contextmanager
def running_clock(page: Page) -> Iterator[None]:
    """Let a stopped clock run meanwhile: axe-core, for one, needs timers."""
    page.clock.resume()
    yield
    page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 1)


@pytest.fixture
def world(transactional_db: None, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture(scope="package")
def web(committed_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("web")
    web = Web(committed_environment | {"REPOS_DIR": str(folder / "repos")}, folder / "web.log")
    yield web
    web.stop()


@pytest.fixture
def site(web: Web, world: World, tmp_path: Path) -> Iterator[Site]:
    site = Site(web, tmp_path)
    yield site
    site.stop()


@pytest.fixture
def quiet_site(web: Web, transactional_db: None, tmp_path: Path) -> Iterator[Site]:
    """A site without worker and sweep, for tests in which nothing is synced: starting and stopping them takes seconds."""
    site = Site(web, tmp_path, syncs=False)
    yield site
    site.stop()


@pytest.fixture(scope="session")
def chromium_browser() -> Iterator[Chromium]:
    browser = Chromium()
    yield browser
    browser.close()


@pytest.fixture
def open_browser(chromium_browser: Chromium, shared_folder: SharedFolder) -> Iterator[Callable[..., Browser]]:
    """Return a function that opens a page with Playwright's options for contexts. No test changes a network interface meanwhile."""
    with shared_folder.shared(NETWORK_INTERFACES), contextlib.ExitStack() as opened:
        yield lambda **options: opened.enter_context(contextlib.closing(Browser(chromium_browser, **options)))


@pytest.fixture
def browser(open_browser: Callable[..., Browser]) -> Browser:
    return open_browser(viewport={"width": 1280, "height": 900})
