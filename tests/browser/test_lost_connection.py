"""What a page says when the server does not answer."""

import re
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from deliveries_app.models import Status
from tests.browser.conftest import Browser, Site, stop_clock
from tests.browser.test_journey import LIST, sign_in
from tests.support.staff import make_app, make_watch

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

OWN_COMPLAINTS = re.compile(
    r"Failed to load resource|^htmx:(sendError|responseError|afterRequest)|Response Status Error"
)


def unexpected(browser: Browser) -> list[str]:
    return [complaint for complaint in browser.complaints if not OWN_COMPLAINTS.search(complaint)]


def test_ping_without_an_answer(quiet_site: Site, browser: Browser) -> None:
    app = make_app("Portal")
    make_watch(app, "docs")

    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}/admin/deliveries_app/app/force-resync/?ids={app.pk}")
        line = page.get_by_role("listitem").filter(has_text="Portal")
        ping = page.get_by_role("button", name="Ping Portal")
        # htmx gives up after the 15 seconds of all other requests, unless the form says otherwise.
        assert page.evaluate(
            "form => htmx.config.timeout < JSON.parse(form.getAttribute('hx-request')).timeout",
            line.locator("form").element_handle(),
        )
        said = "The ping got no answer from Docora. Try again."
        page.context.set_offline(True)
        ping.press("Enter")
        expect(line.get_by_text(said)).to_be_visible()
        page.context.set_offline(False)
        page.route("**/ping/", lambda route: route.fulfill(status=502, body="Bad gateway"))
        ping.press("Enter")
        expect(line.get_by_text(said)).to_have_count(1)
        expect(page.locator("#spoken")).to_have_text(said)
        expect(ping).to_be_focused()

    browser.drive(journey)
    assert unexpected(browser) == []


def test_page_instead_of_a_fragment(quiet_site: Site, browser: Browser) -> None:
    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}/admin/")
        page.route(
            "**/live/overview/", lambda route: route.fulfill(body="<!doctype html>Back soon", content_type="text/html")
        )
        with page.expect_navigation():  # a reload
            pass
        expect(page).to_have_url(f"{quiet_site.url}/admin/")
        expect(page.locator("#overview")).to_be_visible()

    browser.drive(journey)
    assert unexpected(browser) == []


def test_list_reports_a_lost_connection(quiet_site: Site, browser: Browser) -> None:
    make_watch(make_app("Portal"), "docs", status=Status.PENDING, next_sync_at=timezone.now() + timedelta(hours=1))

    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(quiet_site.url + LIST)
        lost = page.get_by_text("Connection lost, retrying")
        page.context.set_offline(True)
        expect(lost).to_be_visible()
        assert lost.evaluate("lost => lost.getBoundingClientRect().bottom") <= page.locator("#result_list").evaluate(
            "table => table.getBoundingClientRect().top"
        )
        page.context.set_offline(False)
        expect(lost).to_have_count(0)

    browser.drive(journey)
    assert unexpected(browser) == []


@pytest.mark.parametrize(
    ("status", "body"), [(404, "404 page not found"), (404, "<!DOCTYPE html><h1>404 Not Found</h1>"), (200, "")]
)
def test_error_of_a_proxy_does_not_end_the_polls(quiet_site: Site, browser: Browser, status: int, body: str) -> None:
    watch = make_watch(
        make_app("Portal"), "docs", status=Status.PENDING, next_sync_at=timezone.now() + timedelta(hours=1)
    )

    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        stop_clock(page)
        page.goto(f"{quiet_site.url}{LIST}{watch.pk}/change/")
        lost = page.get_by_text("Connection lost, retrying")
        page.route("**/admin/live/**", lambda route: route.fulfill(status=status, body=body))
        page.clock.run_for(2_000)
        expect(lost).to_be_visible()
        expect(page.get_by_text(re.compile(r"\b404\b"))).to_have_count(0)  # the random ids on the page may contain 404
        page.unroute("**/admin/live/**")
        page.clock.run_for(2_000)
        expect(lost).to_have_count(0)

    browser.drive(journey)
    assert unexpected(browser) == []
