"""A check for differences from the button to the repaired copy, in Chromium: wide and narrow, light and dark."""

import re
from threading import Event

import pytest
from playwright.sync_api import Page, expect

from deliveries_app.models import App, AppRepository, DriftCheck, DriftState
from tests.browser.accessibility import FOUR_LOOKS, look_as, violations_in
from tests.browser.conftest import Browser, Site
from tests.browser.test_every_page import sign_in
from tests.deliveries.test_drift import FILES, damage
from tests.support.receiver import Answer, Notification, wait_for
from tests.support.world import World

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


def look_at(page: Page, wrong: list[str]) -> None:
    """Check the loaded page in all looks, and leave it in the first one."""
    wrong += violations_in(FOUR_LOOKS, page)
    look_as(page, FOUR_LOOKS[0])


def test_check_from_the_button_to_the_repaired_copy(world: World, site: Site, browser: Browser) -> None:
    App.objects.update(answers_verify=True)
    _, watch = world.watch(FILES | {f"guides/{number:03}/introduction.md": b"%d" % number for number in range(180)})
    wait_for(lambda: AppRepository.objects.filter(status="synced").exists(), timeout=40)
    damage(world, watch)
    may_answer = Event()

    def wait(note: Notification) -> None:
        if note.kind == "verify":
            may_answer.wait(25)

    world.answer(wait)  # type: ignore[arg-type]
    wrong: list[str] = []

    def request(page: Page) -> None:
        sign_in(page, site)
        page.goto(f"{site.url}/admin/deliveries_app/apprepository/{watch.pk}/change/")
        expect(page.get_by_text("The app's copy has not been checked yet.")).to_be_visible()
        page.get_by_role("button", name="Check for differences").click()
        expect(page.get_by_text("Comparing the app's files…")).to_be_visible()
        look_at(page, wrong)
        may_answer.set()
        expect(page.get_by_text("5 of 191 files differ", exact=True)).to_be_visible()  # without a reload
        expect(page.get_by_role("link", name="Fix 5 differences")).to_be_visible()
        look_at(page, wrong)

    def send(page: Page) -> None:
        page.get_by_role("link", name="2 extra").click()
        expect(page.get_by_role("rowheader", name="docs/new.md")).to_be_visible()
        expect(page.get_by_role("rowheader", name="1.txt")).to_be_hidden()
        page.get_by_role("link", name="Fix 5 differences").click()
        expect(page.get_by_role("heading", name="Fix 5 differences")).to_be_visible()
        look_at(page, wrong)
        page.get_by_role("button", name="Fix 5 differences").click()
        expect(
            page.locator("#toasts-polite").get_by_text("Sending 3 files and deleting 2 extra files.")
        ).to_be_visible()
        look_at(page, wrong)

    def check_app(page: Page) -> None:
        page.goto(f"{site.url}/admin/deliveries_app/app/{watch.app_id}/change/")
        page.get_by_role("button", name="Check for differences").click()
        expect(page.locator("#toasts-polite").get_by_text("Check of 1 repository requested.")).to_be_visible()
        newest = page.locator("#result_list tbody tr").first
        expect(newest).to_contain_text("No differences")  # without a reload
        expect(newest).to_contain_text("189 files compared")
        look_at(page, wrong)
        newest.get_by_role("link").first.click()
        expect(page.get_by_role("button", name="Check again")).to_be_visible()
        page.goto(f"{site.url}/admin/deliveries_app/apprepository/{watch.pk}/change/")
        expect(page.get_by_role("link", name=re.compile("189 files compared"))).to_be_visible()
        look_at(page, wrong)

    def not_supported(page: Page) -> None:
        page.get_by_role("button", name="Check for differences").click()
        expect(page.get_by_text("Not supported", exact=True)).to_be_visible()
        expect(page.get_by_text("The app returned HTTP 404.", exact=True)).to_be_visible()
        look_at(page, wrong)

    browser.drive(request)
    browser.drive(send)
    wait_for(lambda: AppRepository.objects.filter(status="synced").exists(), timeout=20)
    browser.drive(check_app)
    world.answer(lambda note: Answer(404) if note.kind == "verify" else None)
    browser.drive(not_supported)
    assert not wrong, "\n".join(wrong)
    assert browser.complaints == []
    states = [check.state for check in DriftCheck.objects.order_by("pk")]
    assert states == [DriftState.DIFFERS, DriftState.EQUAL, DriftState.UNSUPPORTED]
