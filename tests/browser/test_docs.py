"""The documentation in a real browser: on a phone and on a desk, light and dark, without a word from the console."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Browser

pytestmark = pytest.mark.browser


@pytest.fixture(params=[(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")], ids=str)
def reader(request: pytest.FixtureRequest) -> Iterator[Browser]:
    width, scheme = request.param
    browser = Browser(viewport={"width": width, "height": 900}, color_scheme=scheme)
    yield browser
    browser.close()


def test_the_reference_fits_the_screen_and_its_contents_lead_to_the_calls(live_server, reader: Browser) -> None:
    def read(page: Page) -> None:
        page.goto(f"{live_server.url}/docs/")
        expect(page.get_by_role("heading", name="API reference")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.get_by_role("navigation").get_by_role("link", name="Replace the repository's token").click()
        expect(page.get_by_role("heading", name="Replace the repository's token")).to_be_in_viewport()
        assert page.evaluate("getComputedStyle(document.querySelector('pre')).borderRadius") != "0px"

    reader.drive(read)
    assert reader.complaints == []
