"""The documentation in a real browser, on a phone and a desktop, without console messages. `test_every_page.py` looks at its
colours."""

import re
from collections.abc import Callable

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from deliveries_app.docs.views import PAGES
from tests.browser.conftest import Browser

pytestmark = pytest.mark.browser

HEADINGS = {reverse(name): page.title for name, page in PAGES.items()} | {reverse("docs"): "Docora"}


@pytest.fixture(params=[(390, "dark"), (1280, "light")], ids=["phone", "desktop"])
def reader(request: pytest.FixtureRequest, open_browser: Callable[..., Browser]) -> Browser:
    width, scheme = request.param
    return open_browser(viewport={"width": width, "height": 900}, color_scheme=scheme)


def open_contents(page: Page) -> None:
    """Open the table of contents, which is collapsed on a phone."""
    summary = page.get_by_text("On this page")
    if summary.is_visible():
        assert page.locator(".contents details").get_attribute("open") is None
        summary.click()


def test_pages_fit_the_screen_and_contents_links_work(live_server, reader: Browser) -> None:
    def read(page: Page) -> None:
        for address, heading in HEADINGS.items():
            page.goto(f"{live_server.url}{address}")
            expect(page.get_by_role("heading", level=1, name=heading)).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            assert page.evaluate("getComputedStyle(document.querySelector('.foot')).display") == "flex"
            open_contents(page)
            last = page.get_by_role("navigation", name="On this page").get_by_role("link").last
            expect(last).to_be_visible()
            label = last.locator("span").last.inner_text() if last.locator("span").count() else last.inner_text()
            last.click()
            expect(page.get_by_role("heading", name=label, exact=True)).to_be_in_viewport()

    reader.drive(read)
    assert reader.complaints == []


def test_copy_button(live_server, reader: Browser) -> None:
    def read(page: Page) -> None:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.goto(f"{live_server.url}/docs/webhooks/")
        button = page.get_by_role("button", name="Copy verify.py")
        button.click()
        expect(button).to_have_text(re.compile("Copied|Selected"))
        expect(page.get_by_role("status")).to_have_text(re.compile("Copied|Selected"))
        if page.get_by_role("status").inner_text() == "Copied":
            shown = page.locator("#verify-py").text_content()
            assert page.evaluate("navigator.clipboard.readText()") == shown
        page.get_by_text("receiver.mjs", exact=True).click()
        expect(page.get_by_role("link", name="Download receiver.mjs")).to_be_visible()

    reader.drive(read)
    assert reader.complaints == []
