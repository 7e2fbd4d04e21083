"""Live panels refresh themselves without replacing anything in use."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.utils import timezone
from playwright.sync_api import Locator, Page, Request, Route, expect
from redis import Redis

from deliveries_app.models import Status
from tests.browser.accessibility import TWO_LOOKS, Look, look_as, violations, violations_in
from tests.browser.conftest import Browser, Site, running_clock, stop_clock
from tests.browser.test_journey import sign_in
from tests.deliveries.test_admin_queue import WORKER, lease, register
from tests.support.receiver import wait_for
from tests.support.staff import make_app, make_watch

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

EVERY = 5_000  # milliseconds
SETTLED = 100  # milliseconds; htmx needs 20

_NOTE_TAB_STOPS = """
    window.tabStops = [];
    document.addEventListener("htmx:afterSwap", () => {
        tabStops.push(document.getElementById("scheduled-table").getAttribute("tabindex"));
    });
"""


class Panel:
    """The live panel of the overview or of another page, on a page whose clock stands still until the test moves it. `asked` counts the
    panel's requests, and `under_way` holds those that are not answered yet."""

    def __init__(self, page: Page, site: Site, path: str = "/admin/") -> None:
        sign_in(page, site)
        stop_clock(page)
        page.goto(site.url + path)
        self.page = page
        self.body = page.locator("[data-live] [hx-get]")
        self.age = page.locator("[data-live-age]")
        self.refresh = page.get_by_role("button", name="Refresh")
        self.pause = page.get_by_role("button", name="Pause updates")
        self.address = self.body.get_attribute("hx-get") or ""
        self.asked = 0
        self.under_way: set[Request] = set()
        page.on("request", self._begin)
        page.on("requestfinished", self._end)
        page.on("requestfailed", self._end)
        expect(self.age).to_have_text("Updated just now")

    def _begin(self, request: Request) -> None:
        if self.address in request.url:
            self.asked += 1
            self.under_way.add(request)

    def _end(self, request: Request) -> None:
        self.under_way.discard(request)

    def is_refreshed(self) -> None:
        """Let one interval pass and expect one refresh."""
        before = self.asked
        self._mark()
        self.page.clock.run_for(EVERY)
        self._is_exchanged()
        assert self.asked == before + 1

    def is_refreshed_at_once(self, button: Locator) -> None:
        self._mark()
        button.click()
        self._is_exchanged()

    def stays(self) -> None:
        """Let six intervals pass and expect no request."""
        before = self.asked
        self.page.clock.run_for(6 * EVERY)
        self.page.wait_for_timeout(200)
        assert self.asked == before

    def violations(self) -> list[str]:
        with running_clock(self.page):
            found = violations(self.page)
        self._settle()
        return found

    def hide(self, hidden: bool) -> None:
        """Hide the tab, or show it again."""
        value = "true" if hidden else "false"
        self.page.evaluate(
            f"Object.defineProperty(document, 'hidden', {{value: {value}, configurable: true}});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )

    def add(self, html: str) -> None:
        self.body.evaluate("(body, html) => body.insertAdjacentHTML('beforeend', html)", html)

    def _mark(self) -> None:
        self.add('<i id="mark"></i>')

    def _is_exchanged(self) -> None:
        """Wait for the new content."""
        expect(self.page.locator("#mark")).to_have_count(0)
        self._settle()

    def _settle(self) -> None:
        wait_for(self._is_idle, 30)
        self.page.clock.run_for(SETTLED)

    def _is_idle(self) -> bool:
        self.page.wait_for_timeout(20)
        return not self.under_way


def test_panel_refreshes_unless_paused_or_hidden(quiet_site: Site, browser: Browser) -> None:
    def journey(page: Page) -> None:
        panel = Panel(page, quiet_site)
        assert panel.violations() == []
        panel.is_refreshed()
        panel.is_refreshed()
        panel.pause.click()
        expect(panel.pause).to_have_attribute("aria-pressed", "true")
        panel.stays()
        expect(panel.age).to_have_text(re.compile(r"^Updated \d+ s ago, paused$"))
        panel.is_refreshed_at_once(panel.refresh)  # a manual refresh works
        panel.stays()
        panel.pause.click()
        panel.is_refreshed()
        panel.hide(True)
        panel.stays()
        panel._mark()
        panel.hide(False)  # shown again, the panel refreshes at once
        panel._is_exchanged()

    browser.drive(journey)
    assert browser.complaints == []


def test_panel_never_replaces_what_is_in_use(quiet_site: Site, browser: Browser) -> None:
    def journey(page: Page) -> None:
        panel = Panel(page, quiet_site)
        link = panel.body.locator("a[id]").first
        link.focus()
        for _ in range(3):
            panel.is_refreshed()
        expect(link).to_be_focused()
        panel.add('<input id="typed">')
        page.locator("#typed").fill("half a wor")
        panel.stays()
        expect(page.locator("#typed")).to_have_value("half a wor")
        page.locator("#typed").blur()
        panel.is_refreshed()
        expect(page.locator("#typed")).to_have_count(0)
        panel.add('<details id="unfolded" open><summary>More</summary>…</details>')
        panel.stays()
        page.locator("#unfolded summary").click()
        panel.is_refreshed()
        panel.add('<p id="chosen">chosen to be copied</p>')
        page.locator("#chosen").select_text()
        panel.stays()
        page.evaluate("getSelection().removeAllRanges()")
        panel.is_refreshed()

    browser.drive(journey)
    assert browser.complaints == []


def test_panel_never_replaces_what_came_into_use_during_its_request(quiet_site: Site, browser: Browser) -> None:
    def journey(page: Page) -> None:
        panel = Panel(page, quiet_site)
        panel.add('<details id="unfolded"><summary>More</summary>…</details>')
        held: list[Route] = []
        page.route(f"**{panel.address}", lambda route: held.append(route))
        with page.expect_request(f"**{panel.address}"):
            page.clock.run_for(EVERY)
        page.locator("#unfolded summary").click()
        held[0].continue_()
        panel._settle()
        page.unroute(f"**{panel.address}")
        expect(page.locator("#unfolded")).to_have_attribute("open", "")
        page.clock.run_for(1_000)
        expect(panel.age).to_have_text(re.compile(r"^Updated \d+ s ago$"))
        page.locator("#unfolded summary").click()
        panel.is_refreshed()
        link = panel.body.locator("#card-watched")
        link.hover()
        page.mouse.down()
        panel.stays()
        page.mouse.up()
        page.wait_for_url("**/apprepository/")

    browser.drive(journey)
    assert browser.complaints == []


def test_table_keeps_its_place_and_focus_when_a_panel_refreshes(quiet_site: Site, browser: Browser) -> None:
    make_watch(make_app("a" * 80), "docs", status=Status.PENDING, next_sync_at=timezone.now() + timedelta(hours=1))

    def journey(page: Page) -> None:
        look_as(page, Look("light", 660))
        panel = Panel(page, quiet_site, "/admin/deliveries_app/queue/")
        # htmx settles 20 ms after a swap; until then, too, the keyboard reaches the table.
        page.evaluate(_NOTE_TAB_STOPS)
        table = page.locator("#scheduled-table")
        expect(table).to_have_attribute("tabindex", "0")
        table.focus()
        table.evaluate("table => { table.scrollLeft = 40; }")
        panel.is_refreshed()
        expect(table).to_be_focused()
        expect(table).to_have_attribute("tabindex", "0")
        assert table.evaluate("table => table.scrollLeft") == 40
        assert set(page.evaluate("tabStops")) == {"0"}  # once for each swapped element

    browser.drive(journey)
    assert browser.complaints == []


def test_panel_reports_a_lost_server_or_session(quiet_site: Site, browser: Browser) -> None:
    def lose_the_server(page: Page) -> Panel:
        panel = Panel(page, quiet_site)
        page.context.set_offline(True)
        page.clock.run_for(EVERY)
        expect(panel.age).to_have_text(re.compile(r"^The server isn't responding\. Last update "))
        page.context.set_offline(False)
        panel.is_refreshed()
        expect(panel.age).to_have_text(re.compile("^Updated "))
        page.route(f"**{panel.address}", lambda route: route.fulfill(status=404, body="404 page not found"))
        page.clock.run_for(EVERY)
        expect(panel.age).to_have_text(re.compile(r"^Couldn't refresh\. Last update "))
        expect(page.locator("#card-watched")).to_be_visible()
        page.unroute(f"**{panel.address}")
        panel.is_refreshed()
        return panel

    def lose_the_session(page: Page) -> None:
        page.clock.run_for(EVERY)
        expect(panel.body).to_contain_text("Your session has expired.")
        expect(panel.body.get_by_role("link", name="Sign in again")).to_have_attribute(
            "href", re.compile(r"next=/admin/$")
        )
        expect(panel.pause).to_have_attribute("aria-pressed", "true")
        expect(panel.age).to_have_text(re.compile(r"^Couldn't refresh\. Last update "))
        assert panel.violations() == []
        panel.stays()

    panel = browser.drive(lose_the_server)
    Session.objects.all().delete()
    browser.drive(lose_the_session)
    own = re.compile(
        r"Failed to load resource: .*(401|404|ERR_INTERNET_DISCONNECTED)|^htmx:(sendError|afterRequest)|^Response Status Error"
    )
    assert [complaint for complaint in browser.complaints if not own.search(complaint)] == []


def test_jobs_of_a_worker_are_large_enough_to_be_touched(
    quiet_site: Site, browser: Browser, redis_client: Redis, settings: Any
) -> None:
    """A worker syncs several repositories at once. Their links are below each other."""
    app = make_app("Portal")
    watches = [make_watch(app, name) for name in ("docs", "site", "wiki")]
    for watch in watches:
        lease(watch, settings)
    register(redis_client, WORKER, at=watches[0].job_id, state="busy")

    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}/admin/deliveries_app/queue/")
        expect(page.locator("#workers-table a")).to_have_count(3)
        assert violations_in(TWO_LOOKS, page) == []

    browser.drive(journey)
    assert browser.complaints == []
