"""`make screenshots`: take the screenshots of the admin that README.md shows, as small WebP files in static/docs/.

They show a real instance (tests/browser/showcase.py), which is started and stopped for them.
"""

import base64
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import django
from django.urls import NoReverseMatch, reverse
from playwright.sync_api import Page, expect

from docora.cli.main import DEMO_SETTINGS
from tests.browser import chromium
from tests.browser.accessibility import Look, look_as
from tests.support.instance import free_port

if TYPE_CHECKING:
    from tests.browser.showcase import Showcase

PROJECT = Path(__file__).resolve().parents[2]
TARGET = PROJECT / "static" / "docs"
LARGEST = 60_000  # bytes
QUALITIES = (85, 75, 65, 50)  # the first one that is small enough is used
LOOK = Look("light", 1280)
HALFWAY = 40  # percent


class Camera:
    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self._devtools = page.context.new_cdp_session(page)

    def shoot(self, name: str, path: str) -> None:
        """Save the page at `path` as `static/docs/NAME-WIDTH.webp`."""
        look_as(self.page, LOOK)
        self.open(path)
        self.page.wait_for_timeout(400)  # the first poll adds bars and badges
        file = TARGET / f"{name}-{LOOK.width}.webp"
        file.write_bytes(self._picture(file.name))
        print(f"{file.relative_to(PROJECT)}: {file.stat().st_size / 1000:.0f} kB")

    def open(self, path: str) -> None:
        response = self.page.goto(self.url + path)
        if response is None or response.status != 200:
            answer = response.status if response else "nothing"
            raise SystemExit(f"There is no picture of {path}: the page answers {answer}, not 200.")

    def _picture(self, name: str) -> bytes:
        for quality in QUALITIES:
            options = {"format": "webp", "quality": quality}
            picture = base64.b64decode(self._devtools.send("Page.captureScreenshot", options)["data"])
            if len(picture) <= LARGEST:
                return picture
        raise SystemExit(f"{name} is too large: {len(picture):,} bytes, and {LARGEST:,} are allowed.")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="docora-screenshots-") as folder:
        url = configure(Path(folder))
        django.setup()
        from tests.browser.showcase import Showcase  # models need configured settings

        confirmation = page_of("app_force_resync")  # before anything is started
        instance = subprocess.Popen([sys.executable, "manage.py", "up"], cwd=PROJECT, stdout=subprocess.DEVNULL)
        showcase = Showcase(Path(folder))
        try:
            wait_until_it_answers(f"{url}/health", instance)
            showcase.fill()
            with chromium.page(reduced_motion="reduce") as page:
                take_pictures(Camera(page, url), showcase, confirmation)
        finally:
            instance.send_signal(signal.SIGTERM)
            instance.wait(60)
            showcase.close()


def page_of(name: str) -> str:
    try:
        return reverse(f"admin:deliveries_app_{name}")
    except NoReverseMatch:
        raise SystemExit(f"There is no page {name} of deliveries_app to take a picture of.") from None


def take_pictures(camera: Camera, showcase: "Showcase", confirmation: str) -> None:
    page = camera.page
    camera.open("/admin/")
    page.get_by_label("Username:").fill("anna")
    page.get_by_label("Password:").fill(showcase.password)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    showcase.pace = 0.15
    camera.open(f"{confirmation}?ids={showcase.portal}")
    page.get_by_role("button", name=re.compile("^Re-sync")).click()
    bar = page.locator(".progress-box progress").first
    while int(bar.get_attribute("value") or 0) < HALFWAY:
        page.wait_for_timeout(200)
    operation = page.url.removeprefix(camera.url)
    camera.shoot("operation", operation)
    showcase.pace = 2.0  # still running in the next screenshot
    camera.shoot("overview", "/admin/")


def configure(folder: Path) -> str:
    """Configure the instance, and this process to use its database. Return the instance's URL."""
    port = free_port()
    for name in ("DATABASE_URL", "REDIS_URL", "PUBLIC_URL", "HOST", "REPOS_DIR"):
        os.environ.pop(name, None)
    os.environ |= DEMO_SETTINGS | {
        "DOCORA_ENV_FILE": os.devnull,
        "DATA_DIR": str(folder / "data"),
        "PORT": str(port),
        "LOG_LEVEL": "ERROR",
        "DJANGO_SETTINGS_MODULE": "docora.settings",
    }
    return f"http://127.0.0.1:{port}"


def wait_until_it_answers(address: str, instance: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(address, timeout=10).close()
            return
        except OSError:
            if instance.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("The instance does not start; its messages above say why.") from None
        time.sleep(0.2)


if __name__ == "__main__":
    main()
