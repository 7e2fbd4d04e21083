"""The lifecycle of a client app in a real browser, from registration to removal."""

import re

import pytest
from playwright.sync_api import Page, expect

from deliveries_app.models import App, AppRepository
from deliveries_app.services.tokens import authenticate
from tests.browser.accessibility import violations
from tests.browser.conftest import Browser, Site
from tests.browser.test_journey import sign_in
from tests.support.receiver import wait_for
from tests.support.world import KEY, World

pytestmark = pytest.mark.browser

APPS = "/admin/deliveries_app/app/"
NEW_KEY = "the key that comes next"


def shown(page: Page, element: str) -> str:
    return page.locator(f"code#{element}").inner_text()


def register(page: Page, site: Site, world: World) -> tuple[str, str]:
    """Register an app and return its id and token from the secrets page."""
    sign_in(page, site)
    page.goto(f"{site.url}{APPS}add/")
    page.get_by_label("Name:").fill("Newsletter")
    page.get_by_label("Base URL:").fill(world.receiver.url)
    page.get_by_label("Email:").fill("ops@newsletter.example")
    page.get_by_label("Signing key:").fill(KEY)
    page.get_by_role("button", name="Register app").click()
    expect(page.get_by_role("heading", name="Newsletter is registered")).to_be_visible()
    expect(page.locator("code#signing-key")).to_have_text(KEY)
    assert violations(page) == []
    page.get_by_role("button", name="Copy: Token").click()
    expect(page.get_by_role("button", name="Copy: Token")).to_have_text(re.compile("Copied|Selected"))
    found = shown(page, "app-id"), shown(page, "token")
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")  # leave the page …
    expect(page.locator("code#token")).to_have_text("")
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")  # … and go back
    expect(page.get_by_role("alert").filter(has_text="credentials are shown only once")).to_be_visible()
    assert found[1] not in page.content()
    return found


def ping(page: Page, site: Site, app: App) -> None:
    page.goto(f"{site.url}{APPS}{app.pk}/change/")
    page.get_by_role("button", name="Send test ping").click()
    expect(page.get_by_role("heading", name="The app accepted the ping (HTTP 200).")).to_be_visible()
    page.reload()  # sends nothing: the page is the response to a GET
    expect(page.get_by_text("pong")).to_be_visible()
    assert violations(page) == []


def rotate_key(page: Page, site: Site, app: App) -> None:
    page.goto(f"{site.url}{APPS}{app.pk}/settings/")
    page.get_by_role("link", name="Rotate key").click()
    page.get_by_label("New signing key:").fill(NEW_KEY)
    page.get_by_role("button", name="Rotate key").click()
    expect(page.locator("code#signing-key")).to_have_text(NEW_KEY)
    page.get_by_role("button", name="Ping with new key").click()
    expect(page.get_by_role("heading", name="The app returned HTTP 401.")).to_be_visible()
    page.get_by_role("link", name="Back to the app").click()
    expect(page.get_by_role("heading", name="Key rotation in progress")).to_be_visible()
    expect(page.get_by_role("link", name="Retire old key")).to_have_count(0)
    assert violations(page) == []


def retire_key(page: Page) -> None:
    page.get_by_role("button", name="Ping with new key").click()
    expect(page.get_by_role("heading", name="The app accepted the ping (HTTP 200).")).to_be_visible()
    page.get_by_role("link", name="Back to the app").click()
    page.get_by_role("link", name="Retire old key").click()
    page.get_by_role("button", name="Retire old key").click()
    expect(page.get_by_role("status").filter(has_text="Old key retired")).to_be_visible()
    expect(page.get_by_role("heading", name="Key rotation in progress")).to_have_count(0)
    assert NEW_KEY not in page.content()


def watch_repository(page: Page, url: str) -> None:
    page.get_by_role("link", name="Operate").click()
    page.get_by_role("link", name="Watch a repository").click()
    page.get_by_label("URL:").fill(url)
    page.get_by_role("button", name="Watch a repository").click()
    expect(page.get_by_role("heading", name="acme/docs → Newsletter")).to_be_visible()
    expect(page.locator(".progress-text .badge").first).to_have_text("Up to date", timeout=30_000)


def ignore_drafts(page: Page) -> None:
    page.get_by_role("link", name="Edit ignore patterns").click()
    page.get_by_label("Patterns:").fill("/drafts/\n")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("pre.body")).to_have_text("/drafts/")


def unwatch_and_delete(page: Page, site: Site, app: App) -> None:
    page.get_by_role("link", name="Stop watching").click()
    expect(page.get_by_text("Docora will stop watching acme/docs for Newsletter.")).to_be_visible()
    page.get_by_role("button", name="Stop watching").click()
    expect(page.get_by_role("heading", name="Watched repositories", exact=True)).to_be_visible()
    page.goto(f"{site.url}{APPS}{app.pk}/settings/")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("This deletes Newsletter.")).to_be_visible()
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Apps", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="Newsletter")).to_have_count(0)


def test_app_lifecycle(world: World, site: Site, browser: Browser) -> None:
    repo = world.git.repo("acme/docs", {"readme.md": b"# Hello\n", "drafts/secret.md": b"not yet"})
    app_id, token = browser.drive(lambda page: register(page, site, world))
    app = App.objects.get(app_id=app_id)
    assert authenticate(token) == app
    browser.drive(lambda page: ping(page, site, app))
    assert [record.kind for record in world.requests()] == ["ping"]

    browser.drive(lambda page: rotate_key(page, site, app))
    world.receiver.keys = NEW_KEY
    browser.drive(retire_key)
    app.refresh_from_db()
    assert (app.client_auth_key, app.is_rotating_key) == (NEW_KEY, False)

    browser.drive(lambda page: watch_repository(page, repo.url))
    watch = AppRepository.objects.get(app=app)
    assert set(world.copy(watch)) == {"readme.md", "drafts/secret.md"}
    browser.drive(ignore_drafts)
    wait_for(lambda: set(world.copy(watch)) == {"readme.md"}, timeout=30)

    browser.drive(lambda page: unwatch_and_delete(page, site, app))
    wait_for(lambda: not App.objects.filter(pk=app.pk).exists(), timeout=40)  # after the cleanup
    assert set(world.receiver.copy(app_id, watch.repository.repository_id)) == {
        "readme.md"
    }  # the client keeps its files
    assert browser.complaints == []
