"""Pages under conditions that few users have: long names, forced colours, paper, missing scripts."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.conf import settings
from django.utils import timezone
from playwright.sync_api import Page, expect

from deliveries_app.models import App, AppRepository, BulkOperation, Reason, SyncRun
from deliveries_app.models.root_causes import RootCause
from tests.browser.accessibility import Look, look_as, overflow
from tests.browser.conftest import Browser, Site
from tests.browser.test_client_life import APPS
from tests.browser.test_journey import LIST, sign_in
from tests.support.staff import fail, make_app, make_watch, staff

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture
def watch(quiet_site: Site) -> AppRepository:
    """A failing watch whose names have 100 characters and no spaces."""
    watch = make_watch(make_app("Portal_" * 14 + "ab"), "documents_" * 10)
    fail(watch, RootCause.SERVER_ERROR, status=500)
    return watch


def resync(watch: AppRepository, *, title: str = "Re-sync", by: str = "anna") -> BulkOperation:
    """Create a bulk operation that is waiting for this watch."""
    operation = BulkOperation.objects.create(title=title, app=watch.app, requested_by=by, total=1)
    SyncRun.objects.create(
        watch=watch, app_name=watch.app.name, repository_name=str(watch.repository), operation=operation,
        reason=Reason.RESYNC, requested_by=by, generation=watch.generation,
    )  # fmt: skip
    return operation


CUT = (
    "[...document.querySelectorAll('.results, .table-scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
)


def test_long_names_are_broken(quiet_site: Site, browser: Browser, watch: AppRepository) -> None:
    """Also on a phone, where no row is cut off: those of apps in a cooldown have the longest states."""
    operation = resync(watch, title="Re-sync" + "_" * 190, by="u" * 150)
    on_hold = make_watch(make_app("Search"), "docs")
    App.objects.filter(pk=on_hold.app_id).update(cooldown_until=timezone.now() + timedelta(minutes=5))
    fail(on_hold, RootCause.TIMEOUT)
    App.objects.filter(pk=watch.app_id).update(paused=True)

    def journey(page: Page) -> list[str]:
        sign_in(page, quiet_site)
        wide = []
        for path in (
            "/admin/",
            LIST,
            "/admin/deliveries_app/failedsync/",
            "/admin/deliveries_app/bulkoperation/",
            f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/",
            f"{APPS}{watch.app_id}/change/",
            f"{APPS}{watch.app_id}/rotate-token/",
            f"{APPS}{watch.app_id}/settings/",
            f"{APPS}{watch.app_id}/delete/",
            f"{LIST}{watch.pk}/change/",
            f"{LIST}force-resync/?ids={watch.pk}",
            "/admin/deliveries_app/queue/",
        ):
            page.goto(quiet_site.url + path)
            for width in (1280, 640, 320):
                look_as(page, Look("light", width))
                wide += [f"{path} ({width}): {problem}" for problem in overflow(page)]
            wide += [f"{path}: rows are cut off"] * page.evaluate(CUT)
        return wide

    assert browser.drive(journey) == []


def test_long_settings_that_cannot_be_changed_are_broken(
    quiet_site: Site, browser: Browser, watch: AppRepository
) -> None:
    App.objects.filter(pk=watch.app_id).update(description="d" * 500)
    session = staff("vera", "view_app").cookies[settings.SESSION_COOKIE_NAME].value

    def journey(page: Page) -> list[str]:
        page.context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": quiet_site.url}])
        page.goto(f"{quiet_site.url}{APPS}{watch.app_id}/settings/")
        expect(page.locator(".field-description .readonly")).to_be_visible()
        cut: list[str] = page.evaluate(
            "[...document.querySelectorAll('.form-row')].filter(row => row.scrollWidth > row.clientWidth).map(row => row.className)"
        )
        return cut

    assert browser.drive(journey) == []


def test_forced_colours(quiet_site: Site, browser: Browser, watch: AppRepository) -> None:
    """The chosen tab is marked, buttons look like buttons, and bars can be seen."""
    resync(watch)
    line = "tab => getComputedStyle(tab).borderBottomColor"

    def journey(page: Page) -> None:
        page.emulate_media(forced_colors="active")
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}{APPS}{watch.app_id}/change/")
        chosen, other = (page.locator(".tabs").get_by_role("link", name=name) for name in ("Operate", "Settings"))
        assert chosen.evaluate(line) != other.evaluate(line)
        expect(page.get_by_role("button", name="Send test ping")).to_have_css("border-top-style", "solid")
        bar = page.locator(".progress-box progress")
        expect(bar).to_have_css("border-top-style", "solid")
        expect(bar).to_have_css("forced-color-adjust", "none")

    browser.drive(journey)


def test_paper(quiet_site: Site, browser: Browser, watch: AppRepository) -> None:
    """It has the rows and all of their columns, and no controls. On A4, nothing is cut off."""
    resync(watch)

    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 718, "height": 1000})
        for name in ("failedsync", "syncrun", "bulkoperation"):
            page.goto(f"{quiet_site.url}/admin/deliveries_app/{name}/")
            assert (name, overflow(page)) == (name, [])
        page.goto(quiet_site.url + LIST)
        assert overflow(page) == []
        row = page.get_by_role("row").filter(has_text="documents_")
        expect(row.locator(".field-files")).to_be_visible()
        assert page.evaluate("getComputedStyle(document.querySelector('.results')).overflowX") == "visible"
        expect(
            page.locator("#header, #toolbar, .actions, .button, [type=checkbox]").locator("visible=true")
        ).to_have_count(0)
        page.set_viewport_size({"width": 1047, "height": 700})  # landscape: no space is kept for the hidden sidebar
        assert page.evaluate("document.querySelector('.main > .content').offsetWidth") == 1047

    browser.drive(journey)


def test_without_javascript(quiet_site: Site, open_browser: Callable[..., Browser], watch: AppRepository) -> None:
    """Pages say what doesn't work. The rest does."""

    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}/admin/")
        expect(page.locator("noscript p")).to_be_visible()
        page.goto(f"{quiet_site.url}{APPS}{watch.app_id}/change/")
        page.get_by_role("link", name="Watch a repository", exact=True).click()
        expect(page.get_by_label("App:")).to_have_value(str(watch.app_id))

    open_browser(java_script_enabled=False).drive(journey)


def test_without_htmx(quiet_site: Site, browser: Browser) -> None:
    def journey(page: Page) -> None:
        page.route("**/htmx-2*", lambda route: route.abort())
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}/admin/")
        expect(page.get_by_role("alert").filter(has_text="it doesn't refresh. Reload it.")).to_be_visible()
        expect(page.get_by_role("button", name="Refresh")).to_be_hidden()

    browser.drive(journey)
    assert all("net::ERR_FAILED" in complaint for complaint in browser.complaints)
