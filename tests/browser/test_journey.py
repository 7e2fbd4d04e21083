"""An administrator's journey in a real browser, with real workers, git, a client, PostgreSQL and Valkey."""

import re
import time

import pytest
from django.conf import settings
from playwright.sync_api import Page, expect

from deliveries_app.models import AppRepository, BulkOperation, SyncRun
from tests.browser.conftest import Browser, Site
from tests.support.receiver import Answer, Notification, wait_for
from tests.support.world import World

pytestmark = pytest.mark.browser

LIST = "/admin/deliveries_app/apprepository/"


def take_a_moment(notification: Notification) -> Answer | None:
    """Delay each response, so that a re-sync of 300 files lasts several polls."""
    time.sleep(0.3)
    return None


@pytest.fixture
def watched(world: World, site: Site) -> list[AppRepository]:
    """Three synced repositories with 150 files each. From now on, the client takes 0.3 s per file."""
    files = {f"posts/{number:03}.html": b"<p>%d</p>" % number for number in range(150)}
    watches = [world.watch(files, name=f"acme/{name}")[1] for name in ("docs", "site", "wiki")]
    wait_for(lambda: AppRepository.objects.filter(status="synced").count() == 3, timeout=40)
    world.answer(take_a_moment)
    return watches


def sign_in(page: Page, site: Site) -> None:
    """Continue the administrator's session with the next page. Signing in with a password takes the server half a second."""
    cookie = {"name": settings.SESSION_COOKIE_NAME, "value": site.session, "url": site.url}
    page.context.add_cookies([cookie])


def force_resync(page: Page, site: Site, *names: str) -> None:
    """Tick the rows, choose the action and open the confirmation page."""
    page.goto(site.url + LIST)
    for name in names:
        page.get_by_role("row").filter(has_text=name).get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option("force_resync")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("heading", name=re.compile("^Re-sync "))).to_be_visible()
    page.wait_for_load_state()  # the heading is visible before the page's scripts have run


def percent(page: Page) -> int:
    return int(page.locator(".progress-box progress").first.get_attribute("value") or 0)


def test_resync_of_two_rows_until_the_bar_is_full(
    world: World, site: Site, browser: Browser, watched: list[AppRepository]
) -> None:
    before = len(world.receiver.log)

    def start(page: Page) -> None:
        sign_in(page, site)
        force_resync(page, site, "acme/docs", "acme/site")
        expect(page.get_by_text("This will re-sync 2 repositories for 1 app.")).to_be_visible()
        expect(page.get_by_role("row").filter(has_text="Total")).to_contain_text("300")
        page.get_by_role("button", name="Re-sync 2 repositories").click()
        expect(page.get_by_role("status").filter(has_text="Re-sync of 2 repositories requested.")).to_be_visible()

    browser.drive(start)
    assert BulkOperation.objects.get().requested_by == "anna"

    def watch(page: Page) -> list[int]:
        seen: list[int] = []
        reloaded = False
        summary = page.locator(".progress-body")
        while True:
            shown = percent(page)  # read before the text, which may change in between, but only towards the end
            if re.search(r"2 repositories: 2 succeeded · 300 files", summary.inner_text()):
                break
            seen.append(shown)
            if not reloaded and seen[-1] >= 20:
                page.reload()  # reloaded midway: the bar continues where it was
                reloaded = True
            page.wait_for_timeout(200)
        assert reloaded
        return [*seen, percent(page)]

    seen = browser.drive(watch)
    assert seen == sorted(seen), "a bar never goes back"
    assert seen[-1] == 100
    assert all(value < 100 for value in seen[:-1])
    assert len(set(seen)) > 4, "it moved"
    assert len(world.receiver.log) - before == 300
    assert set(SyncRun.objects.filter(reason="resync").values_list("outcome", flat=True)) == {"succeeded"}

    def finished(page: Page) -> None:
        assert page.locator(".progress-box [hx-get]").count() == 0  # polling has stopped
        page.goto(f"{site.url}/admin/deliveries_app/app/{world.app.pk}/change/")
        expect(page.get_by_role("link", name="Re-sync all repositories")).to_be_visible()
        expect(page.locator(".progress-box")).to_have_count(0)

    browser.drive(finished)
    assert browser.complaints == []


def test_cancel_stops_the_operation_and_shows_what_was_sent(
    world: World, site: Site, browser: Browser, watched: list[AppRepository]
) -> None:
    def start_and_cancel(page: Page) -> str:
        sign_in(page, site)
        force_resync(page, site, "acme/docs", "acme/site", "acme/wiki")
        page.get_by_role("button", name="Re-sync 3 repositories").click()
        while percent(page) <= 10:
            page.wait_for_timeout(100)
        page.get_by_role("button", name="Cancel").click()
        summary = page.locator(".progress-body")
        expect(summary).to_contain_text("Cancelled by anna.")
        return summary.inner_text()

    summary = browser.drive(start_and_cancel)
    assert re.search(r"stopped after \d+ of 150 files", summary)
    wait_for(lambda: AppRepository.objects.filter(status="synced", next_sync_at=None).count() == 3, timeout=40)
    assert len([record for record in world.receiver.log if record.reason == "resync"]) < 450
    for watch in watched:
        assert len(world.copy(watch)) == 150
    assert browser.complaints == []


def test_list_shows_the_resync_of_one_row_live(
    world: World, site: Site, browser: Browser, watched: list[AppRepository]
) -> None:
    def journey(page: Page) -> None:
        sign_in(page, site)
        page.goto(site.url + LIST)
        page.get_by_role("link", name="Re-sync acme/wiki → Portal").click()
        expect(page.get_by_text("This will re-sync acme/wiki and re-send ALL files to Portal.")).to_be_visible()
        page.get_by_role("button", name="Re-sync").click()
        expect(page.get_by_role("status").filter(has_text="Re-sync of 1 repository requested.")).to_be_visible()
        page.goto(site.url + LIST)
        row = page.get_by_role("row").filter(has_text="acme/wiki")
        tick = page.get_by_role("row").filter(has_text="acme/docs").get_by_role("checkbox")
        tick.check()
        expect(row.locator("progress")).to_be_visible()
        expect(row.locator(".badge")).to_have_text("Up to date", timeout=60_000)
        expect(tick).to_be_checked()  # live cells keep the checkboxes

    browser.drive(journey)
    assert browser.complaints == []


def test_app_page_resyncs_all_and_enter_only_saves(
    world: World, site: Site, browser: Browser, watched: list[AppRepository]
) -> None:
    def journey(page: Page) -> None:
        sign_in(page, site)
        page.goto(f"{site.url}/admin/deliveries_app/app/{world.app.pk}/change/")
        button = page.get_by_role("link", name="Re-sync all repositories")
        button.click()
        expect(page.get_by_text("This will re-sync all 3 repositories for Portal.")).to_be_visible()
        page.get_by_role("button", name="Re-sync all repositories").click()
        page.goto(f"{site.url}/admin/deliveries_app/app/{world.app.pk}/change/")
        expect(page.locator(".progress-box progress").first).to_be_visible()
        expect(button).to_be_hidden()  # replaced by the running bar
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("Cancelled by anna.")).to_be_visible()  # among the recent operations
        expect(page.locator(".progress-box")).to_have_count(0)
        expect(button).to_be_visible()
        page.get_by_role("link", name="Settings").click()
        page.get_by_label("Name:").press("Enter")
        expect(page).to_have_url(f"{site.url}/admin/deliveries_app/app/{world.app.pk}/change/")

    browser.drive(journey)
    assert BulkOperation.objects.count() == 1
    assert browser.complaints == []
