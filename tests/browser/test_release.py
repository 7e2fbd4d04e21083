"""The confirmation of a re-sync as a pre-flight check, and an operation with a canary: held, continued, cancelled."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from deliveries_app.models import App, AppRepository, Status
from tests.browser.accessibility import FOUR_LOOKS, TWO_LOOKS, Look, look_as, violations_in
from tests.browser.conftest import Browser, Site
from tests.browser.test_journey import sign_in
from tests.support.receiver import Answer, Notification, wait_for
from tests.support.staff import make_app, make_watch
from tests.support.world import World

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

EVERYTHING = "/admin/deliveries_app/apprepository/force-resync/?all=1"


def is_accessible(page: Page, looks: tuple[Look, ...] = TWO_LOOKS) -> None:
    assert violations_in(looks, page) == []
    look_as(page, FOUR_LOOKS[0])


def tabs_to(page: Page, name: str | re.Pattern[str]) -> int:
    """Return how often Tab has to be pressed, after the page has loaded, until this button has the focus."""
    button = page.get_by_role("main").get_by_role("button", name=name)
    for pressed in range(1, 20):
        page.keyboard.press("Tab")
        if button.evaluate("button => button === document.activeElement"):
            return pressed
    raise AssertionError(f"the button {name} is never focused")


def hold(page: Page, canary: str, other: str) -> None:
    """Start a re-sync of both apps from the keyboard, and wait until Search's canary has failed."""
    expect(page.get_by_text("This will re-sync 5 repositories for 2 apps.")).to_be_visible()
    expect(page.get_by_role("checkbox", name="Canary: sync one repository per app first")).to_be_checked()
    expect(page.get_by_role("spinbutton", name="Pace")).to_have_value("")
    assert tabs_to(page, "Re-sync 5 repositories") <= 3
    page.keyboard.press("Enter")
    box = page.locator(".progress-box")
    expect(box.get_by_text("Held", exact=True)).to_be_visible(timeout=90_000)
    expect(box).to_contain_text(f"Search: acme/{canary} failed")
    expect(box).to_contain_text("1 not released yet")
    expect(page).to_have_title(re.compile("^Held · Re-sync · 5 repositories"))
    row = page.get_by_role("row").filter(has_text=f"acme/{other}").filter(has_text="Search")
    expect(row).to_contain_text(re.compile(f"Queued.*held, because acme/{canary} did not succeed"))


@pytest.mark.early(0)
def test_confirmation_held_operation_and_pace(world: World, site: Site, browser: Browser) -> None:
    search = world.add_app("Search")
    for number, name in enumerate(("one", "two", "three")):
        repo, _ = world.watch({f"{index}.txt": b"%d" % index for index in range(number + 1)}, name=f"acme/{name}")
        if name != "three":
            world.watch_url(repo, app=search)
    wait_for(lambda: AppRepository.objects.filter(status=Status.SYNCED).count() == 5, 60)
    refuse: Callable[[Notification], Answer | None] = lambda note: (  # noqa: E731
        Answer(500) if note.app_id == search.app_id else None
    )
    world.answer(refuse)

    def ping(page: Page) -> None:
        sign_in(page, site)
        page.goto(f"{site.url}/admin/deliveries_app/app/force-resync/?ids={search.pk}")
        expect(page.get_by_role("checkbox", name="Canary: sync one repository first")).not_to_be_checked()
        page.goto(site.url + EVERYTHING)
        portal, broken = (page.get_by_role("listitem").filter(has_text=name) for name in ("Portal", "Search"))
        expect(portal).to_contain_text("100% accepted")
        page.get_by_role("button", name="Ping Search").press("Enter")
        expect(broken).to_contain_text("The app returned HTTP 500.")
        expect(page.get_by_role("button", name="Ping Search")).to_be_focused()
        page.get_by_role("button", name="Ping Portal").click()
        expect(portal).to_contain_text("The app accepted the ping (HTTP 200).")
        is_accessible(page, FOUR_LOOKS)
        page.reload()
        expect(broken).to_contain_text("The last test ping failed.")  # which Docora has remembered
        page.context.clear_cookies(name=re.compile("session"))
        page.get_by_role("button", name="Ping Portal").click()
        expect(page).to_have_url(re.compile("/login/"))  # not the sign-in page inside of this one
        sign_in(page, site)
        page.goto(site.url + EVERYTHING)

    def hold_and_continue(page: Page) -> None:
        hold(page, canary="one", other="two")
        is_accessible(page, FOUR_LOOKS)
        page.goto(f"{site.url}/admin/")
        expect(page.locator(".bars").get_by_text("Held")).to_be_visible()
        page.goto(f"{site.url}/admin/deliveries_app/bulkoperation/?state=held")
        page.get_by_role("link", name="Re-sync · 5 repositories").click()
        world.answer(None)
        page.get_by_role("button", name="Continue").click()
        expect(page.get_by_role("status").filter(has_text="Continuing with 1 repository.")).to_be_visible()
        expect(page.locator(".progress-box")).to_contain_text("5 repositories: 4 succeeded, 1 failed", timeout=60_000)
        is_accessible(page)

    def type_the_number(page: Page) -> None:
        page.goto(site.url + EVERYTHING)
        expect(page.get_by_role("listitem").filter(has_text="and 8 more apps")).to_be_visible()
        number = page.get_by_role("textbox", name="Type 16 to confirm")
        assert tabs_to(page, "Re-sync 16 repositories") <= 3
        number.fill("61")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Type the number of repositories, 16.")).to_be_visible()
        expect(number).to_be_focused()
        is_accessible(page, FOUR_LOOKS)
        number.fill("16")
        page.get_by_role("spinbutton", name="Pace").fill("1")
        page.get_by_role("button", name="Re-sync 16 repositories").click()
        box = page.locator(".progress-box")
        expect(box).to_contain_text("15 not released yet")
        expect(page.get_by_text("One repository per app first, at most 1 per minute")).to_be_visible()
        page.get_by_role("link", name="15 not released yet").click()
        expect(page.locator(".operation-rows tbody tr")).to_have_count(15)
        is_accessible(page)
        page.get_by_role("button", name="Cancel").click()
        expect(box).to_contain_text("had not been released and stayed as they were")
        expect(page.get_by_text("15 not released", exact=True)).to_be_visible()

    browser.drive(ping)
    browser.drive(hold_and_continue)
    for number in range(11):
        make_watch(make_app(f"Paused {number}"), f"of-paused-{number}")
    App.objects.filter(name__startswith="Paused").update(paused=True)
    browser.drive(type_the_number)
    assert browser.complaints == []
