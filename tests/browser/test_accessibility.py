"""The accessibility checks detect violations."""

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

from tests.browser.accessibility import FOUR_LOOKS, violations, violations_in
from tests.browser.conftest import Browser

pytestmark = pytest.mark.browser

PAGE = """<!doctype html><html lang="en"><title>Page</title><main><h1>Heading</h1>{}</main></html>"""
FAULTS = {
    "color-contrast": '<p style="color: #bbb; background: #fff">grey on white</p>',
    "image-alt": '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">',
    "label": '<input type="text">',
    "label-content-name-mismatch": '<button aria-label="Close">Save</button>',
    "link-name": '<a href="#"></a>',
    "target-size": '<button style="all: unset; font-size: 8px">x</button><button style="all: unset">y</button>',
    "small-text": '<p style="font-size: 11px">small</p>',
    "small-target": '<button style="all: unset; font-size: 12px">x</button>',
    "the page is": '<div style="width: 2000px">wide</div>',
}


def test_engine_is_not_older_than_the_first_one_used(browser: Browser) -> None:
    def read(page: Page) -> str:
        page.evaluate(AXE_SCRIPT)
        return page.evaluate("axe.version")

    assert tuple(map(int, browser.drive(read).split("."))) >= (4, 12, 1)


def test_every_kind_of_violation_is_found(browser: Browser) -> None:
    def find(page: Page, html: str) -> list[str]:
        page.set_content(PAGE.format(html))
        return violations(page)

    assert browser.drive(lambda page: find(page, "<p>black on white</p>")) == []
    found = {fault: browser.drive(lambda page, html=html: find(page, html)) for fault, html in FAULTS.items()}
    missed = [fault for fault, messages in found.items() if not any(message.startswith(fault) for message in messages)]
    assert missed == []


def test_violations_of_any_look_are_found(browser: Browser) -> None:
    """Also those of the third and fourth, in which fewer rules are run."""
    only = "@media (prefers-color-scheme: {0.scheme}) and (width: {0.width}px) {{ #of-{0.scheme}-{0.width} {{ color: #888; background: #999 }} }}"
    texts = "".join(f'<p id="of-{look.scheme}-{look.width}">grey on grey</p>' for look in FOUR_LOOKS)
    html = PAGE.format(f"<style>{''.join(map(only.format, FOUR_LOOKS))}</style>{texts}")

    def find(page: Page) -> list[str]:
        page.set_content(html)
        return violations_in(FOUR_LOOKS, page)

    found = browser.drive(find)
    assert len(found) == len(FOUR_LOOKS)
    for look, problem in zip(FOUR_LOOKS, found, strict=True):
        assert f"({look.scheme}, {look.width}): color-contrast: #of-{look.scheme}-{look.width}:" in problem


def test_colour_that_was_parsed_before_is_the_same(browser: Browser) -> None:
    def read(page: Page) -> list[list[float]]:
        page.set_content(PAGE.format(""))
        violations(page)
        return page.evaluate("""texts => texts.map(text => {
            const {red, green, blue, alpha} = new axe.commons.color.Color().parseString(text);
            return [red, green, blue, alpha];
        })""", ["rgb(1, 2, 3)", "rgba(200, 100, 50, 0.5)"] * 2)  # fmt: skip

    assert browser.drive(read) == [[1, 2, 3, 1], [200, 100, 50, 0.5]] * 2
