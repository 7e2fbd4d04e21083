"""Render a page in different ways and report accessibility violations found by axe-core.

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
    """A way to render a page: a colour scheme and a width in pixels, for a phone or a desktop."""

    scheme: Literal["light", "dark"]
    width: int


TWO_LOOKS = (Look("light", 1280), Look("dark", 390))
FOUR_LOOKS = (*TWO_LOOKS, Look("dark", 1280), Look("light", 390))


def look_as(page: Page, look: Look) -> None:
    page.emulate_media(color_scheme=look.scheme)
    page.set_viewport_size({"width": look.width, "height": 900})


def violations(page: Page) -> list[str]:
    """Return serious and critical violations and horizontal overflow, one line per element."""
    page.emulate_media(reduced_motion="reduce")  # otherwise colours are measured during transitions
    page.evaluate(AXE_SCRIPT)
    found: list[str] = page.evaluate(_RUN, OPTIONS)
    beyond = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return [*found, *([f"the page is {beyond} pixels wider than the window"] if beyond > 0 else [])]


def violations_in_two_looks(page: Page) -> list[str]:
    """Check the loaded page in two looks, without reloading. It stays in the second one."""
    found = []
    for look in TWO_LOOKS:
        look_as(page, look)
        found += [f"{page.url} ({look.scheme}, {look.width}): {violation}" for violation in violations(page)]
    return found
