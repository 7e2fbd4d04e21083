"""Headless Chromium, as every test and picture here uses it: the machine's own, and without a word to the outside."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, Playwright, sync_playwright

OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-sync",
]


def launch(playwright: Playwright) -> Browser:
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    assert executable, (
        "Chromium is not installed. `make test` installs it on Debian when run as root: apt install chromium"
    )
    return playwright.chromium.launch(executable_path=executable, args=OPTIONS)


@contextmanager
def page(**context: Any) -> Iterator[Page]:
    """One page, in the thread of the caller, who then touches no database."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser.new_context(**context).new_page()
        browser.close()
