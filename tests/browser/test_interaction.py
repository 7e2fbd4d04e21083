"""Keyboard use, and state that live pages must keep: focus, checkboxes, messages, the session."""

import re
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from threading import Event

import pytest
from django.conf import settings
from django.contrib.sessions.models import Session
from django.utils import timezone
from playwright.sync_api import Locator, Page, Route, expect

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, BulkOperation, DriftCheck, Outcome, RootCause, Status, SyncRun
from deliveries_app.services import cancel_operation, resync_by_app
from tests.browser.accessibility import violations
from tests.browser.conftest import PASSWORD, Browser, Site, running_clock, stop_clock
from tests.browser.test_journey import LIST, force_resync, sign_in
from tests.support.receiver import Answer, Notification, wait_for
from tests.support.staff import fail, make_app, make_watch
from tests.support.world import World

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


# Stores in `sessionStorage` whether the pressed button was disabled, because the browser leaves the page meanwhile.
NOTE_THE_BUTTON = """addEventListener("submit", () => setTimeout(() => {
    sessionStorage.busy = document.querySelector("form[aria-busy=true] button.button").disabled;
}))"""

PRESS_ESCAPE = """addEventListener("submit", () => setTimeout(() => {
    stop();
    dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
}, 500), {once: true})"""


CONTROLS_UNDER_THE_MESSAGE = """() => {
    const box = document.querySelector(".toast").getBoundingClientRect();
    const covers = (other) =>
        other.width > 0 && other.left < box.right && other.right > box.left && other.top < box.bottom && other.bottom > box.top;
    return [...document.querySelectorAll("a, button, input, select")]
        .filter((control) => !control.closest(".toast") && control.checkVisibility({ visibilityProperty: true }))
        .filter((control) => covers(control.getBoundingClientRect()))
        .map((control) => control.outerHTML);
}"""


@pytest.fixture
def gate(world: World) -> Iterator[Event]:
    """While it is cleared, the client takes a second per file."""
    gate = Event()
    gate.set()

    def take_a_moment(notification: Notification) -> Answer | None:
        gate.wait(1)
        return None

    world.answer(take_a_moment)
    yield gate
    gate.set()


@pytest.fixture
def watched(world: World, gate: Event, site: Site) -> AppRepository:
    """acme/docs, synced like acme/site, with 200 files each."""
    files = {f"posts/{number:03}.html": b"<p>%d</p>" % number for number in range(200)}
    watch, _ = (world.watch(files, name=f"acme/{name}")[1] for name in ("docs", "site"))
    wait_for(lambda: AppRepository.objects.filter(status="synced").count() == 2, timeout=60)
    return watch


@pytest.fixture
def idle(quiet_site: Site) -> AppRepository:
    """acme/docs, up to date like acme/site. Nothing is synced."""
    portal = make_app("Portal")
    make_watch(portal, "site")
    return make_watch(portal, "docs")


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until the target has visible focus."""
    for _ in range(150):
        page.keyboard.press("Tab")
        if target.count() and target.evaluate("target => target === document.activeElement"):
            assert target.evaluate("target => getComputedStyle(target).outlineStyle") != "none"
            return
    raise AssertionError(f"Tab never comes to {target}")


def after_polls(page: Page, count: int, address: str) -> None:
    """Wait until the page has polled URLs with this text that many more times and swapped the responses in."""
    for _ in range(count):
        with page.expect_response(lambda response: address in response.url, timeout=30_000):
            pass
    page.wait_for_timeout(100)


def test_resync_with_the_keyboard_alone(quiet_site: Site, browser: Browser, idle: AppRepository) -> None:
    def journey(page: Page) -> None:
        page.goto(f"{quiet_site.url}/accounts/login/")
        expect(page.locator("[autofocus]")).to_be_focused()
        page.keyboard.type("anna")
        page.keyboard.press("Tab")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to main content")).to_be_focused()
        page.keyboard.press("Enter")
        tab_to(page, page.get_by_role("main").get_by_role("link", name="2 up to date"))
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{quiet_site.url}{LIST}?state=up_to_date")
        tab_to(page, page.get_by_role("row").filter(has_text="acme/docs").get_by_role("checkbox"))
        page.keyboard.press("Space")
        tab_to(page, page.get_by_label("Action:"))
        page.keyboard.type("Forc")
        tab_to(page, page.get_by_role("button", name="Run"))
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Re-sync acme/")).to_be_visible()
        page.reload()  # the confirmation is still shown
        expect(page.get_by_text("This will re-sync acme/docs and re-send ALL files to Portal.")).to_be_visible()
        tab_to(page, page.get_by_role("button", name="Re-sync"))
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Re-sync · acme/docs → Portal")).to_be_visible()
        toast = page.get_by_role("status").filter(has_text="Re-sync of 1 repository requested.")
        expect(toast).to_be_visible()
        tab_to(page, toast.get_by_role("button", name="Dismiss this message"))
        page.keyboard.press("Enter")
        expect(toast).to_be_hidden()
        expect(page.get_by_role("main")).to_be_focused()

    browser.drive(journey)
    assert SyncRun.objects.filter(reason="resync", watch=idle).count() == 1
    assert browser.complaints == []


def test_polls_keep_focus_checkboxes_and_open_details(
    site: Site, browser: Browser, watched: AppRepository, gate: Event
) -> None:
    gate.clear()

    def on_the_operation(page: Page) -> None:
        sign_in(page, site)
        force_resync(page, site, "acme/docs", "acme/site")
        page.get_by_role("button", name="Re-sync 2 repositories").click()
        cancel = page.get_by_role("button", name="Cancel")
        cancel.focus()
        after_polls(page, 3, "/admin/progress/")
        expect(cancel).to_be_focused()
        assert violations(page) == []  # with a message shown and the bar moving

    def on_the_list(page: Page) -> None:
        page.goto(site.url + LIST)
        row = page.get_by_role("row").filter(has_text="acme/site")
        expect(row.locator("progress")).to_be_visible()
        folded = page.locator("#changelist-filter details").first
        folded.locator("summary").click()
        was_open = folded.evaluate("details => details.open")
        tick = row.get_by_role("checkbox")
        tick.check()
        tick.focus()
        after_polls(page, 3, "/admin/live/")
        expect(tick).to_be_focused()
        expect(tick).to_be_checked()
        assert folded.evaluate("details => details.open") == was_open

    def to_the_end(page: Page, operation: int) -> None:
        page.goto(f"{site.url}/admin/deliveries_app/bulkoperation/{operation}/change/")
        page.get_by_role("button", name="Cancel").focus()
        gate.set()
        expect(page.locator(".progress-box .badge").get_by_text("Succeeded")).to_be_visible(timeout=60_000)
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
        assert page.evaluate("document.activeElement.id").startswith("actions-")  # focus stays where Cancel was

    browser.drive(on_the_operation)
    browser.drive(on_the_list)
    pk = BulkOperation.objects.get().pk
    browser.drive(lambda page: to_the_end(page, pk))
    assert browser.complaints == []


def test_second_press_of_a_button_sends_nothing(quiet_site: Site, browser: Browser, idle: AppRepository) -> None:
    def journey(page: Page) -> None:
        held: list[Route] = []
        page.route("**/force-resync/**", lambda route: hold(route, held))
        sign_in(page, quiet_site)
        force_resync(page, quiet_site, "acme/docs", "acme/site")
        page.evaluate(NOTE_THE_BUTTON)
        page.get_by_role("button", name="Re-sync 2 repositories").dblclick(no_wait_after=True)
        while not held:
            page.wait_for_timeout(50)
        page.wait_for_timeout(1000)  # a second request would be held as well
        assert len(held) == 1
        held[0].continue_()
        expect(page.get_by_role("status").filter(has_text="Re-sync of 2 repositories requested.")).to_be_visible()
        assert page.evaluate("sessionStorage.busy") == "true"

    browser.drive(journey)
    assert BulkOperation.objects.count() == 1
    assert browser.complaints == []


@pytest.mark.parametrize("has_navigation", [True, False], ids=["navigation", "older browser"])
def test_stopped_request_can_be_sent_again(
    quiet_site: Site, browser: Browser, idle: AppRepository, *, has_navigation: bool
) -> None:
    """While a request waits for its answer, Esc stops it, as `stop()` does."""

    def journey(page: Page) -> None:
        held: list[Route] = []
        if not has_navigation:
            page.add_init_script("Object.defineProperty(window, 'navigation', {value: undefined})")
        page.route("**/force-resync/**", lambda route: hold(route, held))
        sign_in(page, quiet_site)
        force_resync(page, quiet_site, "acme/docs")
        button = page.get_by_role("button", name="Re-sync", exact=True)
        page.evaluate(NOTE_THE_BUTTON)
        page.evaluate(PRESS_ESCAPE)
        button.click(no_wait_after=True)
        page.wait_for_timeout(1500)
        assert page.evaluate("sessionStorage.busy") == "true"
        button.click(no_wait_after=True)
        while len(held) < 2:
            page.wait_for_timeout(50)
        held[1].continue_()
        expect(page.get_by_role("heading", name="Re-sync · acme/docs → Portal")).to_be_visible()

    browser.drive(journey)
    assert BulkOperation.objects.count() == 1
    assert browser.complaints == []


def test_poll_replaces_no_form_that_is_being_sent(quiet_site: Site, browser: Browser, idle: AppRepository) -> None:
    check = DriftCheck.objects.create(watch=idle)

    def journey(page: Page) -> None:
        held: list[Route] = []
        page.route("**/driftcheck/*/cancel/", lambda route: hold(route, held))
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}/admin/deliveries_app/driftcheck/{check.pk}/change/")
        cancel = page.get_by_role("button", name="Cancel")
        cancel.hover()
        page.mouse.down()
        after_polls(page, 1, "/admin/live/checks/")
        with page.expect_request("**/driftcheck/*/cancel/"):
            page.mouse.up()
        after_polls(page, 1, "/admin/live/checks/")
        page.mouse.down()
        page.mouse.up()
        page.wait_for_timeout(500)  # a second request would be held as well
        assert len(held) == 1
        held[0].continue_()
        expect(page.get_by_text("Cancelled").first).to_be_visible()

    browser.drive(journey)
    assert browser.complaints == []


def test_form_sent_to_another_tab_leaves_the_page_alone(
    quiet_site: Site, browser: Browser, idle: AppRepository
) -> None:
    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}{LIST}{idle.pk}/change/")
        with page.context.expect_page() as opened:
            page.locator("#pause-watch").click(modifiers=["Control"])
        opened.value.wait_for_load_state()
        opened.value.close()
        expect(page.locator("#pause-watch")).to_be_enabled()
        expect(page.locator("#pause-watch")).to_have_text("Resume", timeout=10_000)  # refreshed

    browser.drive(journey)
    assert browser.complaints == []


def test_second_press_while_the_page_still_loads(quiet_site: Site, browser: Browser, idle: AppRepository) -> None:
    def journey(page: Page) -> None:
        scripts: list[Route] = []
        posts: list[Route] = []
        sign_in(page, quiet_site)
        page.route(re.compile(r"/static/.*(docora|htmx-2).*\.js$"), lambda route: later(route, scripts))
        page.route("**/force-resync/**", lambda route: hold(route, posts))
        page.goto(f"{quiet_site.url}{LIST}force-resync/?ids={idle.pk}", wait_until="commit")
        button = page.get_by_role("button", name="Re-sync", exact=True)
        expect(button).to_be_visible()
        assert page.evaluate("document.readyState") != "complete"
        button.dblclick(no_wait_after=True, delay=100)
        page.wait_for_timeout(500)  # a second request would be held as well
        assert len(posts) == 1
        posts[0].continue_()
        expect(page.get_by_role("heading", name="Re-sync · acme/docs → Portal")).to_be_visible()

    browser.drive(journey)
    assert BulkOperation.objects.count() == 1
    assert browser.complaints == []


def later(route: Route, scripts: list[Route]) -> None:
    """Hold all scripts back, except the one that the page waits for."""
    route.continue_() if "submit_once" in route.request.url else scripts.append(route)


def hold(route: Route, held: list[Route]) -> None:
    """Hold POSTs back until the test releases them."""
    held.append(route) if route.request.method == "POST" else route.continue_()


def test_ended_session_shows_a_notice(site: Site, browser: Browser, watched: AppRepository, gate: Event) -> None:
    gate.clear()

    def begin(page: Page) -> None:
        sign_in(page, site)
        force_resync(page, site, "acme/docs", "acme/site")
        page.get_by_role("button", name="Re-sync 2 repositories").click()
        expect(page.locator(".progress-box progress").first).to_be_visible()

    def lose_the_server(page: Page) -> None:
        page.context.set_offline(True)
        page.wait_for_event("requestfailed")
        page.context.set_offline(False)
        after_polls(page, 2, "/admin/progress/")
        expect(page.locator(".progress-box progress").first).to_be_visible()

    def end(page: Page) -> None:
        notice = page.locator(".progress-box").get_by_text("Your session has expired.")
        expect(notice).to_be_visible(timeout=10_000)
        expect(page.locator("#login-form")).to_have_count(0)  # no nested page
        assert violations(page) == []
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(4_500)  # long enough for two polls
        assert [url for url in asked if f"/{operation.operation_id}/?" in url] == []
        page.get_by_role("link", name="Sign in again").first.click()
        page.get_by_label("Username:").fill("anna")
        page.get_by_label("Password:").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_url(re.compile(rf"/bulkoperation/{operation.pk}/change/"))
        expect(page.locator(".progress-box progress").first).to_be_visible()

    browser.drive(begin)
    browser.drive(lose_the_server)
    operation = BulkOperation.objects.get()
    Session.objects.all().delete()
    browser.drive(end)
    own = re.compile(r"Failed to load resource: .*(401|ERR_INTERNET_DISCONNECTED)|^htmx:(sendError|afterRequest)")
    assert [complaint for complaint in browser.complaints if not own.search(complaint)] == []


def test_refresh_after_a_new_sign_in_shows_the_whole_page(quiet_site: Site, browser: Browser) -> None:
    watch = retried(make_app("Portal"), "docs", "a.md")

    def end(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}{LIST}{watch.pk}/change/")
        cookies = page.context.cookies()
        page.context.clear_cookies(name=settings.SESSION_COOKIE_NAME)
        expect(page.locator(".progress-box [data-notice]")).to_be_visible(timeout=10_000)
        expect(page.locator("#watch-live [data-notice]")).to_be_visible(timeout=10_000)
        page.context.add_cookies(cookies)  # type: ignore[arg-type]  # as in another tab
        page.get_by_role("button", name="Refresh").click()
        expect(page.locator(".progress-box progress")).to_be_visible()
        expect(page.locator("[data-notice]")).to_have_count(0)
        expect(page.locator("[data-live-pause]")).to_have_attribute("aria-pressed", "false")

    browser.drive(end)


def test_messages_stay_until_dismissed_and_cover_nothing(quiet_site: Site, browser: Browser) -> None:
    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}/admin/auth/user/")
        page.get_by_role("link", name="anna").click()
        stop_clock(page)
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page).to_have_url(f"{quiet_site.url}/admin/auth/user/")
        page.wait_for_load_state()
        heading = page.get_by_role("heading", name="Users", exact=True)
        before = heading.bounding_box()
        page.clock.run_for(200)
        toast = page.get_by_role("status").filter(has_text="was changed successfully")
        expect(toast).to_be_visible()
        assert heading.bounding_box() == before  # nothing moves when it appears
        assert page.evaluate(CONTROLS_UNDER_THE_MESSAGE) == []
        with running_clock(page):
            assert violations(page) == []
        page.clock.run_for(600_000)
        expect(toast).to_be_visible()

        page.goto(f"{quiet_site.url}{LIST}force-resync/?ids=0")
        page.clock.run_for(200)
        warning = page.get_by_role("alert").filter(has_text="The selection has no repositories to re-sync.")
        expect(warning).to_be_visible()
        warning.get_by_role("button", name="Dismiss this message").click()
        expect(warning).to_be_hidden()

    browser.drive(journey)
    assert browser.complaints == []


def test_progress_announcements_and_user_preferences(
    site: Site, browser: Browser, watched: AppRepository, gate: Event
) -> None:
    gate.clear()

    def journey(page: Page) -> None:
        page.emulate_media(reduced_motion="no-preference")
        sign_in(page, site)
        page.goto(site.url + LIST)
        time = page.get_by_role("row").filter(has_text="acme/docs").locator("time")
        expect(time).to_have_text(re.compile("just now|ago"))
        expect(time).to_have_attribute("title", re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+$"))
        page.get_by_role("link", name="Re-sync acme/docs → Portal").click()
        page.get_by_role("button", name="Re-sync").click()
        expect(page.get_by_role("heading", name="Re-sync · acme/docs → Portal")).to_be_visible()
        page.goto(site.url + LIST)
        icon = page.locator("#result_list .badge-busy .icon")
        expect(icon).to_be_visible()
        # `expect` tries again, because a poll may just have replaced the element.
        expect(icon).to_have_css("animation-name", "docora-pulse")
        page.emulate_media(reduced_motion="reduce")
        expect(icon).to_have_css("animation-name", "none")
        page.emulate_media(forced_colors="active")
        expect(page.locator("td progress")).to_have_css("border-top-style", "solid")
        expect(page.locator("td .badge").first).not_to_have_css("border-top-color", "rgba(0, 0, 0, 0)")
        gate.set()
        expect(page.locator("#spoken")).to_have_text("acme/docs → Portal: Up to date.", timeout=60_000)
        gate.clear()
        page.goto(f"{site.url}{LIST}{watched.pk}/change/")
        page.locator(".progress-box").get_by_role("link", name="Re-sync").click()
        page.get_by_role("button", name="Re-sync").click()
        expect(page.get_by_role("heading", name="Re-sync · acme/docs → Portal")).to_be_visible()
        page.goto(f"{site.url}{LIST}{watched.pk}/change/")
        expect(page.locator(".progress-text .badge").first).to_have_text("Syncing")
        gate.set()
        expect(page.locator("#spoken")).to_have_text("acme/docs: Up to date.", timeout=60_000)

    browser.drive(journey)
    assert browser.complaints == []


def retried(app: App, name: str, *paths: str) -> AppRepository:
    """Return a watch whose retry is running, after these files have failed."""
    now = timezone.now()
    watch = make_watch(
        app, name, status=Status.SCANNING, lease_until=now + timedelta(minutes=5), failing_since=now, next_sync_at=now,
        root_cause="http_5xx", last_error="The app returned HTTP 500.", files_failing=len(paths),
    )  # fmt: skip
    for path in paths:
        watch.failures.create(
            path=path, path_digest=sha256(path.encode()).hexdigest(), cause="http", status_code=500,
            message="The app returned HTTP 500.", attempts=3, first_at=now, last_at=now,
        )  # fmt: skip
    watch.runs.create(
        app_name=app.name, repository_name=f"acme/{name}", reason="retry", requested_by="user:anna", generation=1,
        started_at=now, files_total=len(paths),
    )  # fmt: skip
    return watch


def settle(watch: AppRepository, outcome: Outcome) -> None:
    now, failed = timezone.now(), outcome != Outcome.SUCCEEDED
    if not failed:
        watch.failures.all().delete()
    watch.runs.filter(outcome="").update(outcome=outcome, ended_at=now, error="2 files failed." if failed else "")
    AppRepository.objects.filter(pk=watch.pk).update(
        status=Status.FAILED if failed else Status.SYNCED, lease_until=None, last_error="2 files failed." if failed else "",
        failing_since=now if failed else None, root_cause="http_5xx" if failed else "", next_sync_at=None,
        files_failing=2 if failed else 0, last_synced_at=None if failed else now,
    )  # fmt: skip


def content_of(page: Page) -> str:
    """Return the text of the page, without how long ago things happened."""
    return re.sub(r"just now|\d+ (s|min) ago", "…", page.locator("#content-main").inner_text())


def test_watch_page_is_final_and_keeps_what_is_in_use(quiet_site: Site, browser: Browser) -> None:
    paths = [f"posts/{number:02}.md" for number in range(40)]
    watch = retried(make_app("Portal"), "docs", *paths)
    address = f"{quiet_site.url}{LIST}{watch.pk}/change/"

    def open_files(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(address)
        group = page.locator(".failure-group > summary")
        group.click()
        expect(group).to_be_focused()
        page.evaluate("scrollTo(0, 900)")
        after_polls(page, 1, f"/admin/live/{watch.pk}/")

    def fails(page: Page) -> None:
        expect(page.locator(".progress-box .badge")).to_have_text("Failed", timeout=30_000)
        expect(page.locator(".errornote")).to_have_text("2 files failed.")
        expect(page.locator(".failure-group > summary")).to_be_focused()
        assert page.locator(".failure-group").evaluate("group => group.open")
        assert page.evaluate("scrollY") == 900
        shown = content_of(page)
        page.reload()
        page.locator(".failure-group > summary").click()
        assert shown == content_of(page)

    def focus_retry(page: Page) -> None:
        page.goto(address)
        page.get_by_role("button", name="Retry").focus()
        after_polls(page, 1, f"/admin/live/{watch.pk}/")
        expect(page.get_by_role("button", name="Retry")).to_be_focused()

    def succeeds(page: Page) -> None:
        expect(page.locator(".progress-box .badge")).to_have_text("Up to date", timeout=30_000)
        expect(page.locator("#spoken")).to_have_text("acme/docs: Up to date.")
        expect(page.get_by_role("button", name="Retry")).to_have_count(0)
        assert page.evaluate("document.activeElement.id") == "watch-actions"  # where Retry was
        assert violations(page) == []
        shown = content_of(page)
        assert "HTTP 500" not in shown
        page.reload()
        assert shown == content_of(page)

    browser.drive(open_files)
    settle(watch, Outcome.FAILED)
    browser.drive(fails)
    watch = retried(make_app("Search"), "docs", *paths)
    address = f"{quiet_site.url}{LIST}{watch.pk}/change/"
    browser.drive(focus_retry)
    settle(watch, Outcome.SUCCEEDED)
    browser.drive(succeeds)
    assert browser.complaints == []


@pytest.mark.parametrize("table", ["list", "repository"])
def test_settled_row_is_final_and_keeps_focus(quiet_site: Site, browser: Browser, table: str) -> None:
    watch = retried(make_app("Portal"), "docs", "a.md", "b.md")
    page_of_repository = f"/admin/repositories_app/repository/{watch.repository_id}/change/"
    address = quiet_site.url + {"list": LIST, "repository": page_of_repository}[table]

    def focus_resync(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(address)
        expect(page.get_by_role("button", name="Retry acme/docs")).to_be_visible()
        page.get_by_role("link", name="Re-sync acme/docs").focus()
        after_polls(page, 2, "/admin/live/?")

    def succeeds(page: Page) -> None:
        row = page.get_by_role("row").filter(has_text="acme/docs")
        expect(row.locator(".badge")).to_have_text("Up to date", timeout=30_000)
        expect(page.get_by_role("link", name="Re-sync acme/docs")).to_be_focused()
        shown = re.sub(r"just now|\d+ s ago", "…", row.inner_text())
        assert "HTTP 500" not in shown
        assert "Retry" not in shown
        page.reload()
        assert shown == re.sub(r"just now|\d+ s ago", "…", row.inner_text())

    browser.drive(focus_resync)
    settle(watch, Outcome.SUCCEEDED)
    browser.drive(succeeds)
    assert browser.complaints == []


def test_app_page_refreshes_files_and_operations_around_what_is_in_use(quiet_site: Site, browser: Browser) -> None:
    watch = retried(make_app("Portal"), "docs", *(f"posts/{number:02}.md" for number in range(40)))
    operation = resync_by_app(Actor.command(), watch.app)
    group = ".failure-group > summary"

    def open_files(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}/admin/deliveries_app/app/{watch.app_id}/change/")
        expect(page.locator("#app-recent")).to_contain_text("No other bulk operations yet.")
        page.locator(group).click()

    def keeps_them_open(page: Page) -> None:
        expect(page.locator("#app-recent")).to_contain_text("Cancelled by", timeout=30_000)
        assert page.locator(".failure-group").evaluate("group => group.open")
        expect(page.locator(group)).to_be_focused()
        assert violations(page) == []
        page.evaluate("getSelection().selectAllChildren(document.querySelector('.failure-group a'))")
        after_polls(page, 1, "/admin/live/app/")
        assert page.evaluate("getSelection().toString()").startswith("posts/")

    def drops_them(page: Page) -> None:
        page.wait_for_timeout(6_000)  # longer than it takes to poll
        expect(page.locator(group)).to_be_visible()  # selected
        page.evaluate("getSelection().removeAllRanges()")
        expect(page.locator(group)).to_have_count(0, timeout=30_000)

    browser.drive(open_files)
    cancel_operation(Actor.command(), operation)
    browser.drive(keeps_them_open)
    watch.failures.all().delete()
    browser.drive(drops_them)
    assert browser.complaints == []


NOTE_THE_SWAP = """(address) => {
    window.swapped = new Promise((resolve) => document.addEventListener("htmx:afterOnLoad", (event) => {
        if (event.detail.pathInfo.requestPath.startsWith(address)) resolve();
    }));
}"""
SELECTED = "getSelection().toString()"
SELECT_ALL_FROM_THE_ERROR_ON = """() => {
    const [error, fields] = ["#watch-problem", "#watch-fields"].map((part) => document.querySelector(part));
    getSelection().setBaseAndExtent(fields, fields.childNodes.length, error, 0);
}"""


def test_polls_keep_selected_text(quiet_site: Site, browser: Browser, idle: AppRepository) -> None:
    """That of a part that stays the same, and that of several parts, whose times change."""
    operation = resync_by_app(Actor.command(), idle.app)
    check = DriftCheck.objects.create(watch=idle)
    fail(idle, RootCause.TIMEOUT)

    def poll(page: Page, address: str, every: int) -> None:
        page.evaluate(NOTE_THE_SWAP, address)
        page.clock.run_for(every)
        page.evaluate("swapped")

    def select(page: Page) -> str:
        sign_in(page, quiet_site)
        stop_clock(page)
        page.goto(f"{quiet_site.url}/admin/deliveries_app/bulkoperation/{operation.pk}/change/")
        page.evaluate("getSelection().selectAllChildren(document.querySelector('#operation-fields code'))")
        poll(page, f"/admin/progress/{operation.operation_id}/?", 2_000)
        assert page.evaluate(SELECTED) == operation.operation_id
        page.goto(f"{quiet_site.url}/admin/deliveries_app/driftcheck/{check.pk}/change/")
        page.evaluate("getSelection().selectAllChildren(document.getElementById('drift-watch'))")
        poll(page, f"/admin/live/checks/{check.pk}/", 2_000)
        assert page.evaluate(SELECTED) == "acme/docs"
        page.goto(f"{quiet_site.url}{LIST}{idle.pk}/change/")
        page.evaluate(SELECT_ALL_FROM_THE_ERROR_ON)
        return page.evaluate(SELECTED)

    def still_selected(page: Page) -> str:
        poll(page, f"/admin/live/watch/{idle.pk}/", 5_000)
        return page.evaluate(SELECTED)

    selected = browser.drive(select)
    AppRepository.objects.update(last_scanned_at=timezone.now())
    assert browser.drive(still_selected) == selected
    assert browser.complaints == []


# The colours of the bar and of the border of a progress box, and that of a custom property.
COLOURS_OF_BOX = """(box, name) => {
    const property = (element, name) => getComputedStyle(element).getPropertyValue(name);
    const probe = box.appendChild(document.createElement("i"));
    const asShown = (colour) => { probe.style.color = colour; return getComputedStyle(probe).color; };
    const bar = asShown(property(box.querySelector("progress"), "--bar"));
    return [bar, getComputedStyle(box).borderLeftColor, asShown(property(box, name))];
}"""


def test_bar_has_the_colour_of_the_result(quiet_site: Site, browser: Browser) -> None:
    results = [
        (Outcome.SUCCEEDED, 2, "--good-text"), (Outcome.FAILED, 0, "--bad-border"), (Outcome.FAILED, 1, "--retry"),
        (Outcome.CANCELLED, 0, "--neutral-border"),
    ]  # fmt: skip
    app, pages = make_app("Portal"), []
    for number, (outcome, files_done, colour) in enumerate(results):
        watch = retried(app, f"docs-{number}", "a.md", "b.md")
        watch.runs.update(files_done=files_done, files_failed=2 - files_done)
        settle(watch, outcome)
        pages.append((f"{LIST}{watch.pk}/change/", colour))
        pages.append((f"/admin/deliveries_app/syncrun/{watch.runs.get().pk}/change/", colour))

    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        for address, colour in pages:
            page.goto(quiet_site.url + address)
            bar, border, expected = page.locator(".progress-box").evaluate(COLOURS_OF_BOX, colour)
            assert (bar, border) == (expected, expected), f"{address} is not {colour}"

    browser.drive(journey)
    assert browser.complaints == []


def test_badges_move_only_where_they_are_refreshed(quiet_site: Site, browser: Browser) -> None:
    """Elsewhere, a sync that has ended would still seem to run."""
    watch = retried(make_app("Portal"), "docs")
    AppRepository.objects.update(lease_until=timezone.now() + timedelta(seconds=settings.LEASE_SECONDS))
    pages = {
        LIST: "docora-pulse",
        f"{LIST}{watch.pk}/change/": "docora-pulse",
        "/admin/deliveries_app/failedsync/": "docora-pulse",
        "/admin/deliveries_app/syncrun/": "none",
        f"{LIST}force-resync/?ids={watch.pk}": "none",
    }

    def journey(page: Page) -> None:
        page.emulate_media(reduced_motion="no-preference")
        sign_in(page, quiet_site)
        for address, animation in pages.items():
            page.goto(quiet_site.url + address)
            expect(page.locator(".badge-busy .icon").first).to_have_css("animation-name", animation)

    browser.drive(journey)
    assert browser.complaints == []


COLOURS = """() => [...document.body.querySelectorAll("*")].map((element) => {
    const { color, backgroundColor, borderTopColor, borderLeftColor, fill } = getComputedStyle(element);
    return [element.tagName, element.className, color, backgroundColor, borderTopColor, borderLeftColor, fill].join(" ");
})"""


def test_chosen_theme_looks_like_that_of_the_system(quiet_site: Site, browser: Browser) -> None:
    fail(make_watch(make_app("Portal"), "docs"), RootCause.TIMEOUT)

    def colours_of(page: Page, system: str, theme: str) -> list[str]:
        page.emulate_media(color_scheme=system)
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
        return page.evaluate(COLOURS)

    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}/admin/deliveries_app/failedsync/")
        light, dark = colours_of(page, "light", "auto"), colours_of(page, "dark", "auto")
        assert light != dark
        assert colours_of(page, "light", "dark") == dark
        assert colours_of(page, "dark", "light") == light

    browser.drive(journey)


def test_columns_of_an_operation_do_not_overlap(quiet_site: Site, browser: Browser) -> None:
    app = make_app("Portal")
    for name, files in (("docs", 400), ("site", 1_000_000)):
        make_watch(app, name, tree_files=files)
    operation = resync_by_app(Actor.command(), app)
    for run in operation.runs.all():
        operation.runs.filter(pk=run.pk).update(
            outcome=Outcome.FAILED, ended_at=timezone.now(), files_done=run.files_total - 40, files_failed=40,
            error="40 files couldn't be delivered. The app returned HTTP 500.",
        )  # fmt: skip

    def journey(page: Page) -> None:
        sign_in(page, quiet_site)
        page.goto(f"{quiet_site.url}/admin/deliveries_app/bulkoperation/{operation.pk}/change/")
        for width in (1280, 1440, 1920, 1024, 390):
            page.set_viewport_size({"width": width, "height": 900})
            cells = page.locator(".operation-rows td")
            beyond = cells.evaluate_all(
                "cells => cells.filter(cell => cell.scrollWidth > cell.clientWidth).map(cell => cell.innerText)"
            )
            assert beyond == [], width

    browser.drive(journey)
    assert browser.complaints == []
