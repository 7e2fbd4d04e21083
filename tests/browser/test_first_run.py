"""A new instance in a real browser: the checklist ticks itself while the page stays open."""

import re

import pytest
from django.conf import settings
from playwright.sync_api import Page, expect

from tests.browser.accessibility import TWO_LOOKS, violations_in
from tests.browser.conftest import Browser, Site
from tests.support.world import World

pytestmark = pytest.mark.browser


def test_checklist_completes_and_disappears(world: World, site: Site, browser: Browser) -> None:
    def overview(page: Page) -> None:
        cookie = {"name": settings.SESSION_COOKIE_NAME, "value": site.session, "url": site.url}
        page.context.add_cookies([cookie])
        page.goto(f"{site.url}/admin/")
        checklist = page.get_by_role("region", name="Get started")
        expect(checklist).to_contain_text("1 of 4 done")
        expect(checklist.get_by_role("listitem").first).to_contain_text("Done")
        assert violations_in(TWO_LOOKS, page) == []
        page.evaluate("window.stays = true")

    browser.drive(overview)
    world.watch()

    def ping_elsewhere(page: Page) -> None:
        expect(page.get_by_role("region", name="Get started")).to_contain_text("2 of 4 done")  # at a poll
        other = page.context.new_page()
        other.goto(f"{site.url}/admin/")
        other.get_by_role("link", name="Send a test ping").click()
        other.get_by_role("button", name="Send test ping").click()
        expect(other.get_by_text("The app accepted the ping")).to_be_visible()
        other.close()
        expect(page.get_by_role("region", name="Get started")).to_contain_text("3 of 4 done")
        assert violations_in(TWO_LOOKS, page) == []

    browser.drive(ping_elsewhere)

    def resync_elsewhere(page: Page) -> None:
        other = page.context.new_page()
        other.goto(f"{site.url}/admin/")
        other.get_by_role("region", name="Get started").get_by_role("link", name="Re-sync").click()
        other.get_by_role("button", name="Re-sync", exact=True).click()
        expect(other.get_by_role("heading", name=re.compile("^Re-sync · "))).to_be_visible()
        other.close()
        expect(page.get_by_role("region", name="Get started")).to_have_count(0)
        expect(page.get_by_role("heading", name="Delivered in the last 24 hours")).to_be_visible()
        assert page.evaluate("window.stays")  # never reloaded

    browser.drive(resync_elsewhere)
    assert browser.complaints == []
