"""The lists of a large instance, as an operator sees them on a desktop and on a phone."""

import hashlib
from collections.abc import Iterable
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from deliveries_app.models import (
    App,
    AppRepository,
    BulkOperation,
    Delivery,
    DeliveryFailure,
    HourlyTraffic,
    Outcome,
    RootCause,
    Status,
    SyncRun,
)
from deliveries_app.webhooks import endpoint_stats
from repositories_app.models import Repository
from tests.browser.accessibility import Look, look_as, overflow, violations
from tests.browser.conftest import Browser, Site
from tests.browser.test_journey import sign_in
from tests.support.staff import fail, make_app, make_watch

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

ADMIN = "/admin/deliveries_app/"
APPS, WATCHES_EACH = 300, 2
ERROR = "3 files were not accepted. The app answered 500 to /create, with a page that says nothing about the reason."
COLUMNS = {  # what an operator comes to the list for
    "apprepository": ("status_badge", "problem", "row_buttons"),
    "failedsync": ("state_badge", "cause", "since", "row_buttons"),
    "syncrun": ("result", "problem", "requested"),
    "bulkoperation": ("state", "outcome_summary", "requested"),
    "delivery": ("shown_path", "state", "updated"),
    "app": ("name", "state", "failing", "repositories", "accepted", "p95", "last_success", "row_buttons"),
}


@pytest.fixture
def crowd(quiet_site: Site) -> list[AppRepository]:
    """300 apps with an operation each, and their 600 failing watches with a run and a delivery each. Nothing is due.

    The apps are slowed down and have slow responses, which makes the columns of their list wide.
    """
    now, later = timezone.now(), timezone.now() + timedelta(hours=1)
    apps = App.objects.bulk_create(
        App(name=f"Customer portal {number:03}", base_url=f"https://portal-{number}.example/hooks", email="a@b.example",
            client_auth_key="k" * 20, pace_gap=1)
        for number in range(APPS)
    )  # fmt: skip
    latest = endpoint_stats.Latest()
    for number in range(endpoint_stats.KEPT):
        latest.add(number > 0, 12.345)
    for app in apps:
        endpoint_stats.record_latest(app, latest, {})
    repositories = Repository.objects.bulk_create(
        Repository(
            canonical_url=f"https://github.com/acme/handbook-{number}",
            owner="acme-documentation",
            name=f"handbook-{number:03}",
        )
        for number in range(APPS * WATCHES_EACH)
    )
    watches = AppRepository.objects.bulk_create(
        AppRepository(
            app=apps[number % APPS], repository=repository, github_url=repository.canonical_url, status=Status.FAILED,
            watch_id=f"{number:016}", last_error=ERROR, last_error_cause="http", last_status_code=500, retry_count=4,
            root_cause=RootCause.SERVER_ERROR, failing_since=now, tree_files=12_345, last_synced_at=now,
            next_sync_at=later, next_check_at=later, last_response="<html><h1>Internal Server Error</h1></html>",
        )
        for number, repository in enumerate(repositories)
    )  # fmt: skip
    names = [{"app_name": watch.app.name, "repository_name": str(watch.repository)} for watch in watches]
    SyncRun.objects.bulk_create(
        SyncRun(watch=watch, reason="resync", requested_by="anna.longname", generation=1, outcome=Outcome.FAILED, error=ERROR,
                started_at=now, ended_at=now + timedelta(seconds=200), files_total=12_345, files_done=12_342, **name)
        for watch, name in zip(watches, names, strict=True)
    )  # fmt: skip
    BulkOperation.objects.bulk_create(
        BulkOperation(title=f"Re-sync · {app.name}", app=app, total=2, requested_by="anna.longname", ended_at=now)
        for app in apps
    )
    Delivery.objects.bulk_create(
        Delivery(watch=watch, path=f"documentation/chapter-{number}/section-with-a-long-name.html", mode="100644", kind="create",
                 source_key="x", sha="0" * 64, size=12_345, sequence=number, generation=1, acknowledged=True, updated_at=now)
        for number, watch in enumerate(watches)
    )  # fmt: skip
    return watches


def list_of(model: str) -> str:
    return f"{ADMIN}{model}/"


def beyond(page: Page, selectors: Iterable[str]) -> list[str]:
    """Return those of the elements in the first row that the window or their scrolling box cuts off."""
    return [
        selector
        for selector in selectors
        if page.locator(f"#result_list tbody tr:first-child {selector}").evaluate(
            """cell => {
                if (innerWidth < 640 && cell.matches("[data-empty], :has(> [data-empty])")) return false; // cards leave it out
                const {left, right} = cell.getBoundingClientRect(), box = cell.closest(".results").getBoundingClientRect();
                return left < box.left - 1 || right > Math.min(box.right, innerWidth) + 1;
            }"""
        )
    ]


def scrolls_sideways(page: Page) -> bool:
    return bool(page.locator("#changelist .results").evaluate("box => box.scrollWidth > box.clientWidth"))


def test_menu_makes_room_for_a_list_on_a_tablet(quiet_site: Site, browser: Browser, crowd: list[AppRepository]) -> None:
    """It stays closed or open as the user wants, and on a page that needs no more room, it is open.

    The overview's chart has a table that is folded.
    """
    this_hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    HourlyTraffic.objects.create(app=crowd[0].app, hour=this_hour, files=7, requests=7)

    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        look_as(page, Look("light", 1024))
        menu, toggle = page.locator("#nav-sidebar"), page.locator("#toggle-nav-sidebar")
        page.goto(quiet_site.url + list_of("failedsync"))
        expect(menu).to_be_hidden()
        assert beyond(page, (".field-cause", ".field-since", ".field-attempts")) == []
        page.goto(f"{quiet_site.url}/admin/")
        expect(page.get_by_text("As a table")).to_be_visible()
        expect(menu).to_be_visible()
        page.goto(quiet_site.url + list_of("failedsync"))
        toggle.click()
        expect(menu).to_be_visible()
        page.reload()
        expect(menu).to_be_visible()

    browser.drive(journey)


def test_name_stays_while_a_list_scrolls_sideways(
    quiet_site: Site, browser: Browser, crowd: list[AppRepository]
) -> None:
    """So does the heading above it, and a selected row keeps its colour."""
    places = """box => {
        box.scrollLeft = 80;
        const left = cell => Math.round(cell.getBoundingClientRect().left - box.getBoundingClientRect().left);
        const row = box.querySelector("tbody tr"), named = ":is(td, th):not(.action-checkbox, .action-checkbox-column)";
        row.querySelector("input[type=checkbox]")?.click();
        const name = row.querySelector(named);
        const colours = new Set([row, name].map(element => getComputedStyle(element).backgroundColor));
        return [box.scrollLeft, left(name), left(box.querySelector(`thead ${named}`)), colours.size];
    }"""

    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        look_as(page, Look("light", 768))
        for name in ("apprepository", "failedsync", "syncrun", "app"):
            page.goto(f"{quiet_site.url}{ADMIN}{name}/")
            assert page.locator(".results").evaluate(places) == [80, 0, 0, 1], name

    browser.drive(journey)


def test_important_columns_fit_a_desktop_near_the_top(
    quiet_site: Site, browser: Browser, crowd: list[AppRepository]
) -> None:
    def journey(page: Page) -> list[str]:
        sign_in(page, quiet_site)
        wrong = []
        for model, columns in COLUMNS.items():
            look_as(page, Look("light", 1280))
            page.goto(quiet_site.url + list_of(model))
            expect(page.locator("#nav-sidebar")).to_be_visible()  # which leaves the list less room
            top = page.locator("#result_list tbody tr").first.evaluate(
                "row => row.getBoundingClientRect().top + scrollY"
            )
            limit = 750 if model == "failedsync" else 500  # above it are the causes, each with its remedy
            if top > limit:
                wrong.append(f"{model}: the first row is at {top} px")
            if scrolls_sideways(page):
                wrong.append(f"{model} scrolls sideways")
            wrong += [f"{model}: {cell} is cut off" for cell in beyond(page, (f".field-{name}" for name in columns))]
            wrong += [f"{model}: {problem}" for problem in overflow(page)]
        return wrong

    assert browser.drive(journey) == []
    assert browser.complaints == []


def test_rows_are_cards_on_a_phone(quiet_site: Site, browser: Browser, crowd: list[AppRepository]) -> None:
    def journey(page: Page) -> list[str]:
        sign_in(page, quiet_site)
        wrong = []
        for model, columns in COLUMNS.items():
            look_as(page, Look("dark", 390))
            page.goto(quiet_site.url + list_of(model))
            if scrolls_sideways(page):
                wrong.append(f"{model} scrolls sideways")
            wrong += [f"{model}: {cell} is cut off" for cell in beyond(page, (f".field-{name}" for name in columns))]
            wrong += [f"{model}: {problem}" for problem in overflow(page)]
        page.goto(quiet_site.url + list_of("apprepository"))
        row = page.get_by_role("row").nth(1)
        expect(
            row.get_by_role("cell", name="App Customer portal 000", exact=True)
        ).to_be_visible()  # still a table to screen readers
        row.get_by_role("checkbox").check()
        expect(page.get_by_text("1 of 50 selected")).to_be_visible()
        page.get_by_role("button", name="Last complete sync").click()  # the headings sort
        expect(page.locator("#result_list tbody tr").first).to_be_visible()
        return wrong

    assert browser.drive(journey) == []
    assert browser.complaints == []


def test_app_filter_suggests_names_while_typing(quiet_site: Site, browser: Browser, crowd: list[AppRepository]) -> None:
    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(quiet_site.url + list_of("apprepository") + "?state=failed")
        field = page.get_by_label("App whose name begins with")
        field.press_sequentially("customer portal 12", delay=20)
        options = page.locator("#app-names option")
        expect(options).to_have_count(10)
        expect(options.first).to_have_attribute("value", "Customer portal 120")
        field.fill("Customer portal 123")
        field.press("Enter")
        expect(page.locator("#result_list tbody tr")).to_have_count(WATCHES_EACH)
        assert "state=failed" in page.url
        expect(page.get_by_label("App whose name begins with")).to_have_value("Customer portal 123")

    browser.drive(journey)
    assert browser.complaints == []


def test_app_of_a_new_watch_is_searched_with_the_keyboard(
    quiet_site: Site, browser: Browser, crowd: list[AppRepository]
) -> None:
    app = App.objects.get(name="Customer portal 299")

    def journey(page: Page) -> list[str]:
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}{list_of('apprepository')}add/")
        select = page.get_by_role("combobox", name="App:")
        found = violations(page)
        select.press("Enter")
        page.get_by_role("searchbox", name="Search: App:").press_sequentially("portal 299")
        option = page.get_by_role("option", name="Customer portal 299")
        expect(option).to_be_visible()
        found += violations(page)
        page.keyboard.press("Enter")
        expect(select).to_have_text("Customer portal 299 · https://portal-299.example/hooks")
        expect(page.locator("#id_app")).to_have_value(str(app.pk))
        return found

    assert browser.drive(journey) == []
    assert browser.complaints == []


def test_fifty_equal_failures_take_one_line(quiet_site: Site, browser: Browser, crowd: list[AppRepository]) -> None:
    now, watch = timezone.now(), crowd[0]  # equally old files are listed by their keys, the highest first
    DeliveryFailure.objects.bulk_create(
        DeliveryFailure(
            watch=watch, path=f"posts/{number}.html", path_digest=hashlib.sha256(b"%d" % number).hexdigest(), cause="http",
            status_code=500, message="The app answered 500.", body="oops", first_at=now, last_at=now,
        )
        for number in range(50)
    )  # fmt: skip
    run = watch.runs.get()

    def journey(page: Page) -> list[str]:
        sign_in(page, quiet_site)
        found = []
        for address in (f"apprepository/{watch.pk}", f"app/{watch.app_id}", f"syncrun/{run.pk}"):
            page.goto(f"{quiet_site.url}{ADMIN}{address}/change/")
            groups = page.locator(".failure-groups")
            expect(groups.locator("summary")).to_contain_text("HTTP 500 · 50 files")
            height = groups.bounding_box()["height"]  # type: ignore[index]
            if height > 100:
                found.append(f"{address}: the failures take {height} px")
            if address.startswith("app/"):
                found += violations(page)
            groups.locator("summary").press("Enter")
            expect(groups.get_by_role("link", name="posts/47.html", exact=True)).to_be_visible()
            found += violations(page)
        return found

    assert browser.drive(journey) == []
    assert browser.complaints == []


# Badges of more than one line, and headings on a phone whose arrow is not beside their name.
RAGGED = """() => [...document.querySelectorAll("#result_list .badge")].filter((badge) => badge.offsetHeight > 30)
    .map((badge) => badge.innerText)"""
APART = """() => [...document.querySelectorAll("#result_list thead th.sorted")].filter((heading) => {
    const [name, arrow] = [".text a", ".toggle"].map((part) => heading.querySelector(part).getBoundingClientRect());
    return Math.abs(name.y + name.height / 2 - arrow.y - arrow.height / 2) > 4 || arrow.x - name.right > 12 || arrow.x < name.right;
}).map((heading) => heading.innerText)"""


def test_badges_have_one_line_and_headings_their_arrow(quiet_site: Site, browser: Browser) -> None:
    portal, paused = make_app("Portal"), make_app("Paused")
    App.objects.filter(pk=paused.pk).update(paused=True)
    for name in ("docs", "site"):
        make_watch(portal, name, last_synced_at=timezone.now())
        waiting = make_watch(paused, name, status=Status.PENDING, next_sync_at=timezone.now())
    watch = make_watch(portal, "wiki")
    fail(watch, RootCause.SERVER_ERROR, status=500, state=Status.FAILED)
    for of in (watch, waiting):
        of.runs.create(
            app_name="Portal", repository_name="acme/wiki", reason="resync", requested_by="user:anna", generation=1,
            outcome=Outcome.FAILED, ended_at=timezone.now(), files_total=2, files_done=1, files_failed=1, error=ERROR,
        )  # fmt: skip

    def journey(page: Page) -> list[str]:
        sign_in(page, quiet_site)
        wrong = []
        for width in (1440, 1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            for model in ("apprepository", "syncrun", "failedsync"):
                page.goto(quiet_site.url + list_of(model))
                wrong += [f"{model} at {width}: {text}" for text in page.evaluate(RAGGED)]
                if width == 390:
                    wrong += [f"{model} at {width}: {text}" for text in page.evaluate(APART)]
                    expect(page.locator(".sortpriority:visible")).to_have_count(0)
        return wrong

    assert browser.drive(journey) == []
    assert browser.complaints == []


def test_recovered_row_is_a_card_without_empty_lines(quiet_site: Site, browser: Browser) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    fail(watch, RootCause.SERVER_ERROR, status=500, state=Status.FAILED)

    def open_list(page: Page) -> None:
        sign_in(page, quiet_site)
        look_as(page, Look("light", 390))
        page.goto(quiet_site.url + list_of("failedsync"))
        expect(page.locator("#result_list .field-cause")).to_be_visible()

    def recovers(page: Page) -> None:
        expect(page.locator("#result_list .badge")).to_have_text("Up to date", timeout=30_000)
        expect(page.locator("#result_list .field-cause")).to_be_hidden()
        expect(page.locator("#result-count")).to_have_text("0 failed syncs")
        expect(page.locator("#changelist-search .quiet")).to_have_count(0)  # nothing is searched or filtered
        assert violations(page) == []

    browser.drive(open_list)
    AppRepository.objects.update(
        failing_since=None, root_cause="", last_error="", status=Status.SYNCED, next_sync_at=None
    )
    browser.drive(recovers)
    assert browser.complaints == []
