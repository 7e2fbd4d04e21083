"""From a file that failed to its cure: its attempts, resending it and others, and the endpoint's health."""

import re

import pytest
from playwright.sync_api import Page, expect

from deliveries_app.models import AppRepository, Delivery, DeliveryAttempt
from deliveries_app.receiver import Answer, Notification
from tests.browser.accessibility import FOUR_LOOKS, look_as, violations_in
from tests.browser.conftest import Browser, Site
from tests.browser.test_journey import sign_in
from tests.support.receiver import wait_for
from tests.support.world import World

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

DELIVERIES = "/admin/deliveries_app/delivery/"


def assert_accessible(page: Page) -> None:
    assert violations_in(FOUR_LOOKS, page) == []
    look_as(page, FOUR_LOOKS[0])


def test_from_a_failed_file_to_its_delivery(world: World, site: Site, browser: Browser) -> None:
    refused = {"docs/guide.md"}

    def answer(note: Notification) -> Answer | None:
        return Answer(500, {"error": "out of disk"}) if note.path in refused else None

    world.answer(answer)
    files = {"docs/guide.md": b"# Guide\n", "docs/faq.md": b"# FAQ\n", "src/main.py": b"print()\n"}
    _, watch = world.watch(files, name="acme/handbook")
    wait_for(lambda: DeliveryAttempt.objects.exists() and Delivery.objects.filter(acknowledged=True).count() == 2)

    def look_at_the_attempts(page: Page) -> None:
        sign_in(page, site)
        page.goto(site.url + DELIVERIES)
        expect(page.get_by_role("row").filter(has_text="docs/guide.md")).to_contain_text("Not delivered")
        page.get_by_role("link", name="docs/guide.md").click()
        expect(page.get_by_role("heading", name="docs/guide.md")).to_be_visible()
        attempt = page.locator(".attempts details").first
        attempt.locator("summary").press("Enter")
        expect(attempt).to_contain_text("out of disk")
        expect(attempt).to_contain_text("sha256=[redacted]")
        expect(attempt).to_contain_text("# Guide")
        assert_accessible(page)
        attempt.locator("summary").press("Enter")

    browser.drive(look_at_the_attempts)
    refused.clear()

    def resend_it(page: Page) -> None:
        page.get_by_role("button", name="Resend this file").click()
        expect(page.locator(".messagelist")).to_have_text("Resend queued for docs/guide.md.")
        # The panel refreshes itself until the file has arrived.
        expect(page.locator(".delivery-state")).to_contain_text("Delivered", timeout=60_000)
        expect(page.locator(".attempts > li").first).to_contain_text("HTTP 200")
        expect(page.locator(".attempts > li").last).to_contain_text("HTTP 500")

    browser.drive(resend_it)
    sent = len(world.requests("create"))
    wait_for(lambda: AppRepository.objects.get().status == "synced")

    def resend_a_folder(page: Page) -> None:
        page.goto(f"{site.url}/admin/deliveries_app/apprepository/{watch.pk}/change/")
        page.get_by_role("link", name="Deliveries", exact=True).last.click()
        page.locator("#searchbar").fill("docs/")
        page.get_by_role("button", name="Search").click()
        expect(page.locator("#result_list tbody tr")).to_have_count(2)
        page.locator("#action-toggle").check()
        page.get_by_label("Action:").select_option(label="Resend selected files")
        page.get_by_role("button", name="Run").click()
        expect(page.get_by_role("heading", name="Resend 2 files")).to_be_visible()
        expect(page.locator(".confirmation-text")).to_contain_text("2 files from 1 repository to Portal")
        assert_accessible(page)
        page.get_by_label("Reason (optional)").fill("Lost its disk")
        page.get_by_role("button", name="Resend 2 files").click()
        expect(page.get_by_role("heading", name=re.compile("Resend · 2 files"))).to_be_visible()
        expect(page.locator(".progress-body")).to_contain_text("Succeeded", timeout=60_000)
        assert_accessible(page)

    browser.drive(resend_a_folder)
    again = [note.path for note in world.requests("create")[sent:]]
    assert sorted(again) == ["docs/faq.md", "docs/guide.md"]

    def see_the_endpoint(page: Page) -> None:
        page.goto(f"{site.url}/admin/deliveries_app/app/{watch.app_id}/change/")
        page.get_by_role("link", name="Endpoint health").click()
        expect(page.get_by_role("img", name="Share of accepted notifications in each hour")).to_be_visible()
        expect(page.locator(".day-sum")).to_contain_text("rejected")
        assert_accessible(page)
        page.get_by_role("link", name="Last 7 days").click()
        page.get_by_text("As a table").click()
        expect(page.locator(".chart-table tbody tr")).to_have_count(168)

    browser.drive(see_the_endpoint)
