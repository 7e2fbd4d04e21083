"""Render a page for different people and report what keeps some of them from using it, as axe-core finds it.

axe-playwright-python ships axe-core. The script is evaluated over the browser's debugging protocol, so a strict content
security policy does not block it.
"""

from dataclasses import dataclass
from typing import Literal

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

# Rules that axe-core 4.12 disables by default. Version 4.14 enables the second one.
EXTRA_RULES = ("target-size", "label-content-name-mismatch")
OPTIONS = {"resultTypes": ["violations"], "rules": {rule: {"enabled": True} for rule in EXTRA_RULES}}
_RUN = """async options => (await axe.run(document, options)).violations
    .filter(({impact}) => impact === "serious" || impact === "critical")
    .flatMap(({id, nodes}) => nodes.map(node => `${id}: ${node.target.join(" ")}: ${node.failureSummary}`))"""


@dataclass(frozen=True)
class Look:
    """One way to look at a page: a colour scheme and a width in pixels, of a phone or of a desk."""

    scheme: Literal["light", "dark"]
    width: int


TWO_LOOKS = (Look("light", 1280), Look("dark", 390))
FOUR_LOOKS = (*TWO_LOOKS, Look("dark", 1280), Look("light", 390))


def look_as(page: Page, look: Look) -> None:
    page.emulate_media(color_scheme=look.scheme)
    page.set_viewport_size({"width": look.width, "height": 900})


def violations(page: Page) -> list[str]:
    """What axe-core calls serious or critical, and what makes the whole page scroll sideways; in words, one a place."""
    page.emulate_media(reduced_motion="reduce")  # else colours are measured on their way from one to another
    page.evaluate(AXE_SCRIPT)
    found: list[str] = page.evaluate(_RUN, OPTIONS)
    beyond = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return [*found, *([f"the page is {beyond} pixels wider than the window"] if beyond > 0 else [])]


def violations_in_two_looks(page: Page) -> list[str]:
    """The page as it stands, without loading it anew; it is left in the second look."""
    found = []
    for look in TWO_LOOKS:
        look_as(page, look)
        found += [f"{page.url} ({look.scheme}, {look.width}): {words}" for words in violations(page)]
    return found
