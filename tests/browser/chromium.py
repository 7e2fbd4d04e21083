"""Start the system's Chromium, headless, for tests and screenshots, with background network access disabled."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, Playwright, sync_playwright

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-sync",
]


def launch(playwright: Playwright) -> Browser:
    executable = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert executable, (
        "Chromium is not on PATH. `make test` installs it on Debian as root: apt-get install chromium-headless-shell"
    )
    return playwright.chromium.launch(executable_path=executable, args=OPTIONS)


@contextmanager
def page(**context: Any) -> Iterator[Page]:
    """Open one page in the caller's thread, which must not use the database meanwhile."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser.new_context(**context).new_page()
        browser.close()
