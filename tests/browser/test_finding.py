"""The list of apps as a health board, an app's tabs, the search box, many repositories at once, and a pause."""

from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from deliveries_app.models import App, AppRepository, HourlyTraffic, RootCause, Status
from deliveries_app.webhooks import endpoint_stats
from tests.browser.accessibility import FOUR_LOOKS, look_as, violations_in
from tests.browser.conftest import Browser, Site
from tests.browser.test_journey import sign_in
from tests.support.staff import make_app, make_watch
from tests.support.world import World

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

ADMIN = "/admin/deliveries_app/"
ERROR = "12 files couldn't be delivered. The app returned HTTP 503."


@pytest.fixture
def crowd(world: World) -> AppRepository:
    """Apps in every state, and one failing repository, of Shop. Nothing is due."""
    now, later = timezone.now(), timezone.now() + timedelta(hours=1)
    idle = {"next_check_at": later, "last_synced_at": now}
    shop, newsletter = make_app("Shop"), make_app("Newsletter")
    App.objects.filter(pk=newsletter.pk).update(paused=True)
    make_app("New")
    for name in ("docs", "site"):
        make_watch(newsletter, name, **idle)
    latest = endpoint_stats.Latest()
    for number in range(100):
        latest.add(number % 3 > 0, 0.2)
    endpoint_stats.record_latest(shop, latest, {})
    for hours in range(20):
        HourlyTraffic.objects.create(
            app=shop, hour=now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours), files=100 + 37 * hours % 90,
            failed=hours % 4, acknowledged_at=now - timedelta(hours=hours),
        )  # fmt: skip
    return make_watch(
        shop, "handbook", status=Status.FAILED, failing_since=now, root_cause=RootCause.SERVER_ERROR, last_error=ERROR,
        next_sync_at=later, retry_count=5, **idle,
    )  # fmt: skip


def problems(page: Page) -> list[str]:
    """Return what is wrong with the page in all four looks. It stays in the first one."""
    found = violations_in(FOUR_LOOKS, page)
    look_as(page, FOUR_LOOKS[0])
    return found


def test_board_tabs_and_search(quiet_site: Site, browser: Browser, crowd: AppRepository) -> None:
    def journey(page: Page) -> list[str]:
        sign_in(page, quiet_site)
        page.set_viewport_size({"width": 1440, "height": 900})  # on narrower desktops, the list has no charts
        page.goto(f"{quiet_site.url}{ADMIN}app/")
        row = page.get_by_role("row").filter(has_text="Shop")
        expect(row).to_contain_text("66% of 100")
        expect(row.get_by_role("img")).to_have_accessible_name(
            "2,910 files delivered, 30 failed attempts in the last 24 hours"
        )
        expect(page.get_by_role("row").filter(has=page.get_by_role("link", name="New", exact=True))).to_contain_text(
            "No recent requests"
        )
        wrong = problems(page)
        row.get_by_role("link", name="Re-sync all repositories of Shop").click()
        expect(page.get_by_text("This will re-sync")).to_be_visible()
        page.get_by_role("link", name="Cancel").click()
        row.get_by_role("link", name="1 failing repository of Shop").click()
        expect(page.get_by_text("1 failing repository for Shop")).to_be_visible()

        page.goto(f"{quiet_site.url}{ADMIN}app/{crowd.app_id}/change/")
        tabs = page.get_by_role("navigation", name="Shop")
        expect(tabs.get_by_role("link", name="Operate")).to_have_attribute("aria-current", "page")
        wrong += problems(page)
        tabs.get_by_role("link", name="Settings").click()
        expect(tabs.get_by_role("link", name="Settings")).to_have_attribute("aria-current", "page")
        wrong += problems(page)
        page.get_by_label("Description:").fill("Sells / rents")  # the slash is typed, not taken as a shortcut
        expect(page.get_by_label("Description:")).to_have_value("Sells / rents")
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.get_by_text("Sells / rents")).to_be_visible()
        expect(tabs.get_by_role("link", name="Operate")).to_have_attribute("aria-current", "page")

        box = page.get_by_role("searchbox", name="Search everything")
        page.keyboard.press("/")
        expect(box).to_be_focused()
        page.keyboard.type("handbook")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Search results for “handbook”")).to_be_visible()
        expect(page.get_by_text(ERROR)).to_be_visible()
        expect(box).to_have_value("handbook")
        wrong += problems(page)
        page.keyboard.press("/")
        page.keyboard.type("HTTP 503")  # the old text is selected, so this replaces it
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Failed syncs")).to_be_visible()
        expect(page.get_by_role("heading", name="Watched repositories")).to_have_count(0)
        box.fill(crowd.app.app_id)
        box.press("Enter")
        expect(page).to_have_url(f"{quiet_site.url}{ADMIN}app/{crowd.app_id}/change/")
        return wrong

    assert browser.drive(journey) == []
    assert browser.complaints == []


def test_watch_several_and_pause_one(world: World, site: Site, browser: Browser) -> None:
    docs, wiki = (world.git.repo(f"acme/{name}", {"a.md": b"1"}) for name in ("docs", "wiki"))

    def journey(page: Page) -> list[str]:
        sign_in(page, site)
        page.goto(f"{site.url}{ADMIN}app/{world.app.pk}/change/")
        page.get_by_role("link", name="watch several repositories").click()
        wrong = problems(page)
        lines = page.get_by_label("Repositories:")
        lines.fill(f"{docs.url}\ngit@gitlab.com:acme/site\n{wiki.url}\n{docs.url}.git")
        page.get_by_role("button", name="Watch several repositories").click()
        expect(page.get_by_text("Watching now")).to_have_count(2)
        expect(page.get_by_role("row").filter(has_text="gitlab.com")).to_contain_text("Not watched")
        expect(lines).to_have_value("git@gitlab.com:acme/site")
        page.get_by_text("Patterns", exact=True).click()
        expect(page.get_by_label("Ignore patterns:")).to_be_visible()
        wrong += problems(page)
        page.get_by_role("link", name=wiki.url).click()
        expect(page.locator(".progress-text .badge").first).to_have_text("Up to date", timeout=30_000)
        page.get_by_role("button", name="Pause", exact=True).click()
        expect(page.get_by_text("This repository is paused.")).to_be_visible()
        expect(page.locator(".progress-text .badge").first).to_have_text("Paused")
        wrong += problems(page)
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_text("This repository is paused.")).to_have_count(0)
        page.goto(f"{site.url}{ADMIN}apprepository/")
        page.get_by_role("row").filter(has_text="acme/docs").get_by_role("checkbox").check()
        page.get_by_label("Action:").select_option("Pause selected repositories")
        page.get_by_role("button", name="Run").click()
        expect(page.get_by_role("row").filter(has_text="acme/docs")).to_contain_text("the repository is paused")
        return wrong + problems(page)

    assert browser.drive(journey) == []
    assert browser.complaints == []
    assert AppRepository.objects.get(repository__name="docs").paused_by == "anna"
