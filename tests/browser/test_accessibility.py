"""The accessibility checks detect violations."""

import pytest
from axe_playwright_python.base import AXE_SCRIPT

from tests.browser import chromium
from tests.browser.accessibility import violations

pytestmark = pytest.mark.browser

PAGE = """<!doctype html><html lang="en"><title>Page</title><main><h1>Heading</h1>{}</main></html>"""
FAULTS = {
    "color-contrast": '<p style="color: #bbb; background: #fff">grey on white</p>',
    "image-alt": '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">',
    "label": '<input type="text">',
    "label-content-name-mismatch": '<button aria-label="Close">Save</button>',
    "link-name": '<a href="#"></a>',
    "target-size": '<button style="all: unset; font-size: 8px">x</button><button style="all: unset">y</button>',
    "the page is": '<div style="width: 2000px">wide</div>',
}


def test_engine_is_not_older_than_the_first_one_used() -> None:
    with chromium.page() as page:
        page.evaluate(AXE_SCRIPT)
        version = page.evaluate("axe.version")
    assert tuple(map(int, version.split("."))) >= (4, 12, 1)


def test_every_kind_of_violation_is_found() -> None:
    found = {}
    with chromium.page() as page:
        page.set_content(PAGE.format("<p>black on white</p>"))
        assert violations(page) == []
        for fault, html in FAULTS.items():
            page.set_content(PAGE.format(html))
            found[fault] = violations(page)
    missed = [fault for fault, messages in found.items() if not any(message.startswith(fault) for message in messages)]
    assert missed == []
