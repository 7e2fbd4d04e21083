"""Render a page in different ways and report accessibility violations: what axe-core finds, small text, small targets.

axe-playwright-python ships axe-core. The script is evaluated over the browser's debugging protocol, so a strict content
security policy does not block it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

# Rules that axe-core 4.12 disables by default. Version 4.14 enables the second one.
EXTRA_RULES = ("target-size", "label-content-name-mismatch")
# What these find depends on the colour scheme. What the others find depends at most on the width.
COLOUR_RULES = ("color-contrast", "link-in-text-block")
# axe-core parses the colours of every element anew, which takes a quarter of its time. A page has a few dozen of them.
_PARSE_COLOURS_ONCE = """(() => {
    const colour = axe.commons.color.Color.prototype;
    const parse = colour.parseString;
    const parsed = new Map();
    colour.parseString = function (text) {
        if (parsed.has(text)) return Object.assign(this, parsed.get(text));
        parse.call(this, text); // throws if it is not a colour
        const {r, g, b, alpha} = this;
        parsed.set(text, {r, g, b, alpha});
        return this;
    };
})()"""
# Rules that can only find what is minor or moderate are not run, as their results would be dropped.
_RUN = """async ([extra, only]) => {
    const counts = impact => impact === "serious" || impact === "critical";
    const rules = Object.fromEntries(
        axe._audit.rules.filter(({impact}) => impact && !counts(impact)).map(({id}) => [id, {enabled: false}])
    );
    for (const id of extra) rules[id] = {enabled: true};
    const options = only.length ? {runOnly: {type: "rule", values: only}} : {rules};
    const {violations} = await axe.run(document, {resultTypes: ["violations"], ...options});
    return violations.filter(({impact}) => counts(impact))
        .flatMap(({id, nodes}) => nodes.map(node => `${id}: ${node.target.join(" ")}: ${node.failureSummary}`));
}"""

# axe-core has no rule for the size of text, and accepts small targets that have enough space around them.
_SMALL = """() => {
    const shown = element => element.checkVisibility({visibilityProperty: true}) && !element.closest(".visually-hidden");
    const name = element => `${element.tagName.toLowerCase()}.${[...element.classList].join(".")}`;
    const found = new Set();
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        const size = parseFloat(getComputedStyle(element).fontSize);
        if (size < 12 && texts.currentNode.data.trim() && shown(element))
            found.add(`small-text: ${name(element)} has ${size} px: ${texts.currentNode.data.trim().slice(0, 40)}`);
    }
    const targets = "button, summary, select:not(.select2-hidden-accessible), input[type=submit], a.button, #result_list input[type=checkbox], #result_list thead a";
    for (const target of document.querySelectorAll(targets)) {
        const {width, height} = target.getBoundingClientRect();
        if (shown(target) && width && Math.round(Math.min(width, height)) < 24)
            found.add(`small-target: ${name(target)} has ${Math.round(width)} x ${Math.round(height)} px`);
    }
    return [...found];
}"""

_REMOVE_REPETITIONS = """() => {
    const kind = element => {
        const counts = {};
        for (const child of [...element.children]) {
            const name = kind(child);
            counts[name] = (counts[name] ?? 0) + 1;
            if (counts[name] > 2 && !child.matches("dt, dd")) child.remove(); // these come in pairs
        }
        const names = element.getAttributeNames().sort().join();
        return `${element.localName}.${element.className}[${names}](${Object.keys(counts).sort().join()})`;
    };
    kind(document.body);
}"""

_OVERFLOW_PIXELS = """() => {
    const closed = document.querySelectorAll('details:not([open])');
    closed.forEach(details => { details.open = true; });
    const beyond = document.documentElement.scrollWidth - innerWidth;
    closed.forEach(details => { details.open = false; });
    return beyond;
}"""


@dataclass(frozen=True)
class Look:
    """A way to render a page: a colour scheme and a width in pixels, for a phone or a desktop."""

    scheme: Literal["light", "dark"]
    width: int


TWO_LOOKS = (Look("light", 1280), Look("dark", 390))
OTHER_WIDTHS = (320, 768)  # a phone with magnified text, and a tablet: nothing may be wider than the window
FOUR_LOOKS = (*TWO_LOOKS, Look("dark", 1280), Look("light", 390))


def look_as(page: Page, look: Look) -> None:
    page.emulate_media(color_scheme=look.scheme)
    page.set_viewport_size({"width": look.width, "height": 900})
    page.evaluate("new Promise(requestAnimationFrame)")  # by then the page's own code has seen the new size


def violations(page: Page, *, only: tuple[str, ...] = ()) -> list[str]:
    """Return serious and critical violations, small text and targets, and horizontal overflow, one line per element.

    With `only`, run no other rules of axe-core. The page must ask for reduced motion, as a `Browser` does: otherwise colours are
    measured during transitions.
    """
    if not page.evaluate("'axe' in window"):  # the document is a new one
        page.evaluate(AXE_SCRIPT)
        page.evaluate(_PARSE_COLOURS_ONCE)
    found: list[str] = page.evaluate(_RUN, [EXTRA_RULES, only]) + page.evaluate(_SMALL)
    return found + overflow(page)


def overflow(page: Page) -> list[str]:
    """Return a line if the page, with everything on it unfolded, is wider than the window."""
    beyond = page.evaluate(_OVERFLOW_PIXELS)
    return [f"the page is {beyond} pixels wider than the window"] if beyond > 0 else []


def remove_repetitions(page: Page) -> None:
    """Keep two siblings of each kind: axe-core takes seconds for a long text, and finds the same in all others of a kind.

    A kind is an element's tag, classes and attributes, and the kinds of its children.
    """
    page.evaluate(_REMOVE_REPETITIONS)


def violations_in(looks: Iterable[Look], page: Page) -> list[str]:
    """Check the loaded page in these looks, without reloading. It stays in the last one.

    At a width that was checked in the other colour scheme, only the rules about colours are run again.
    """
    found, widths = [], set[int]()
    for look in looks:
        look_as(page, look)
        only = COLOUR_RULES if look.width in widths else ()
        found += [f"{page.url} ({look.scheme}, {look.width}): {problem}" for problem in violations(page, only=only)]
        widths.add(look.width)
    return found
