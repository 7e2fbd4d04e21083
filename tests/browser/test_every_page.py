"""Every page that a superuser can reach, in a real browser, light and dark, on desktop and phone: none violates the
content security policy, fails, or has accessibility violations.

The walk starts at the overview and follows every link below `/admin/`, so new pages are covered.
"""

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from django.contrib.auth.models import Group, User
from django.urls import reverse
from playwright.sync_api import Error, Page, expect

from deliveries_app.actors import Actor
from deliveries_app.docs.views import PAGES
from deliveries_app.models import AppRepository, BulkOperation, Delivery, SyncRun
from deliveries_app.services import resync_by_app
from repositories_app.models import GitHubApp
from tests.browser.accessibility import (
    FOUR_LOOKS,
    OTHER_WIDTHS,
    TWO_LOOKS,
    Look,
    look_as,
    overflow,
    remove_repetitions,
    violations_in,
)
from tests.browser.conftest import PASSWORD, Browser, Site
from tests.browser.test_journey import sign_in as continue_session
from tests.docora.test_sign_in import try_to_sign_in
from tests.support.github_api import pem
from tests.support.receiver import Answer, wait_for
from tests.support.world import World

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

LIMIT = 400  # kinds of pages; more would mean an endless walk
KINDS = 2  # walked pages of one kind (`/admin/…/12/change/`)
# Operators keep these open all day: check all four looks. Every other page is checked in two.
IMPORTANT = {
    "/admin/",
    "/admin/deliveries_app/app/N/change/",
    "/admin/deliveries_app/apprepository/",
    "/admin/deliveries_app/apprepository/force-resync/",
    "/admin/deliveries_app/bulkoperation/N/change/",
    "/admin/deliveries_app/failedsync/",
    "/admin/deliveries_app/queue/",
}


@dataclass
class Walk:
    """The result of the walk: kind of page → status of its last page, and all problems."""

    statuses: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    looked_at: set[str] = field(default_factory=set)


def kind_of(path: str) -> str:
    return re.sub(r"\d+|bulk_[0-9a-f]+", "N", path)


def sign_in(page: Page, site: Site, password: str = PASSWORD) -> None:
    page.goto(f"{site.url}/admin/login/")
    page.get_by_label("Username:").fill("anna")
    page.get_by_label("Password:").fill(password)
    page.get_by_role("button", name="Sign in", exact=True).click()


def links(page: Page) -> list[str]:
    """Return the paths below /admin/ that the page links to, with their queries."""
    found = page.evaluate("[...document.links].map(link => link.href)")
    parts = [urlsplit(address) for address in found]
    here = urlsplit(page.url).netloc
    return [f"{part.path}?{part.query}" for part in parts if part.netloc == here and part.path.startswith("/admin/")]


def walk(page: Page, site: Site, complaints: list[str]) -> Walk:
    waiting, seen, kinds = ["/admin/?"], {"/admin/?"}, dict[str, int]()
    walk = Walk()
    now, other = TWO_LOOKS  # each page loads in the look that the page before had at the end
    look_as(page, now)
    while waiting:
        address = waiting.pop(0)
        path, _, query = address.partition("?")
        kind = kind_of(path) + ("?…" if query else "")
        kinds[kind] = kinds.get(kind, 0) + 1
        if kinds[kind] > KINDS or "logout" in path:
            continue
        before = page.url
        walk.statuses[kind] = status_of(page, site.url + address)
        if page.url == before:  # a download: the page has been looked at
            continue
        if kind_of(path) not in walk.looked_at:
            walk.looked_at.add(kind_of(path))
            for width in OTHER_WIDTHS:
                look_as(page, Look(now.scheme, width))
                walk.wrong += [f"{address} ({width}): {problem}" for problem in overflow(page)]
            between = FOUR_LOOKS[2:] if kind_of(path) in IMPORTANT else ()
            walk.wrong += violations_in([now, *between, other], page)
            now, other = other, now
        walk.wrong += [f"{address}: {complaint}" for complaint in complaints]
        complaints.clear()
        new = [link for link in links(page) if link not in seen]
        seen.update(new)
        waiting += new
        assert len(walk.statuses) < LIMIT
    return walk


def status_of(page: Page, address: str) -> int:
    try:
        response = page.goto(address)
    except Error as error:
        if "Download is starting" in str(error):  # a download
            return 200
        raise
    return response.status if response else 0


@pytest.fixture
def everything(world: World, site: Site) -> AppRepository:
    """Create rows of every kind: synced watches, watches failing on either side, runs, an operation, deliveries, users."""
    docs, watch = world.watch({f"posts/{number}.html": b"<p>%d</p>" % number for number in range(3)}, name="acme/docs")
    broken, _ = world.watch(name="acme/broken")
    refusing = world.add_app("Search")
    world.answer(lambda notification: Answer(503) if notification.app_id == refusing.app_id else None)
    world.watch_url(docs, app=refusing)
    GitHubApp.objects.create(name="Reader", app_id="123456", private_key=pem())
    Group.objects.get_or_create(name="Operators")
    User.objects.create_user("victor", password="x", is_staff=True)
    wait_for(lambda: AppRepository.objects.filter(status="synced").count() == 2, timeout=40)
    broken.path.rename(broken.path.with_suffix(".gone"))
    resync_by_app(Actor.command(), world.app)
    wait_for(lambda: BulkOperation.objects.filter(ended_at__isnull=False).exists(), timeout=40)
    wait_for(lambda: AppRepository.objects.failing().count() == 2, timeout=40)
    return watch


@pytest.mark.early(0)
def test_every_linked_page_renders_accessibly_within_the_csp(
    site: Site, browser: Browser, everything: AppRepository
) -> None:
    assert Delivery.objects.exists()
    assert SyncRun.objects.exists()

    def journey(page: Page) -> Walk:
        sign_in(page, site)
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        walked = walk(page, site, browser.complaints)
        page.goto(f"{site.url}/admin/deliveries_app/queue/pause/")
        page.get_by_role("button", name="Pause all syncing").click()
        expect(page.get_by_role("region", name="All syncing is paused")).to_be_visible()  # as on every later page
        walked.wrong += violations_in(TWO_LOOKS, page)
        return walked

    found = browser.drive(journey)
    assert not found.wrong, "\n".join(found.wrong)
    assert {kind: status for kind, status in found.statuses.items() if status != 200} == {}
    for kind in (
        "/admin/",
        "/admin/deliveries_app/app/",
        "/admin/deliveries_app/app/add/",
        "/admin/deliveries_app/app/N/change/",
        "/admin/deliveries_app/app/N/settings/",
        "/admin/deliveries_app/app/N/watch-many/",
        "/admin/deliveries_app/app/N/delete/",
        "/admin/deliveries_app/app/force-resync/?…",
        "/admin/deliveries_app/apprepository/",
        "/admin/deliveries_app/apprepository/N/change/",
        "/admin/deliveries_app/apprepository/N/why/?…",
        "/admin/deliveries_app/apprepository/force-resync/?…",
        "/admin/deliveries_app/app/N/history/",
        "/admin/deliveries_app/auditentry/",
        "/admin/deliveries_app/auditentry/N/change/",
        "/admin/deliveries_app/bulkoperation/N/change/",
        "/admin/deliveries_app/bulkoperation/export/",
        "/admin/deliveries_app/delivery/",
        "/admin/deliveries_app/driftcheck/",
        "/admin/deliveries_app/failedsync/",
        "/admin/deliveries_app/failedsync/retry-failed/?…",
        "/admin/deliveries_app/queue/",
        "/admin/deliveries_app/queue/pause/",
        "/admin/deliveries_app/syncrun/",
        "/admin/deliveries_app/syncrun/N/change/",
        "/admin/deliveries_app/syncrun/export/",
        "/admin/repositories_app/githubapp/",
        "/admin/repositories_app/githubapp/add/",
        "/admin/repositories_app/githubapp/N/change/",
        "/admin/repositories_app/githubapp/N/delete/",
        "/admin/repositories_app/githubapp/N/history/",
        "/admin/repositories_app/repository/N/change/",
        "/admin/auth/user/add/",
        "/admin/auth/user/N/change/",
        "/admin/auth/user/N/password/",
        "/admin/auth/user/N/delete/",
        "/admin/auth/group/add/",
        "/admin/auth/group/N/change/",
        "/admin/password_change/",
    ):
        assert kind in found.statuses


def test_pages_outside_the_walk(quiet_site: Site, browser: Browser) -> None:
    def journey(page: Page) -> None:
        continue_session(page, quiet_site)
        for address in ("/nothing", "/admin/nothing/"):
            response = page.goto(quiet_site.url + address)
            assert response
            assert response.status == 404
            expect(page.get_by_role("heading", name="Page not found")).to_be_visible()
            assert violations_in(TWO_LOOKS, page) == []
        for address in map(reverse, PAGES):
            response = page.goto(quiet_site.url + address)
            assert response
            assert response.status == 200
            remove_repetitions(page)  # test_docs.py looks at their width
            assert violations_in(TWO_LOOKS, page) == []

    browser.drive(journey)
    own = "Failed to load resource: the server responded with a status of 404 (Not Found)"
    assert [complaint for complaint in browser.complaints if complaint != own] == []


def test_sign_out_page_and_locked_sign_in(quiet_site: Site, browser: Browser) -> None:
    for _ in range(5):  # checking a password takes the web process half a second, and these tests none
        try_to_sign_in(name="anna", address="127.0.0.1")

    def journey(page: Page) -> None:
        continue_session(page, quiet_site)
        page.goto(f"{quiet_site.url}/admin/password_change/")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Signed out")).to_be_visible()
        assert violations_in(TWO_LOOKS, page) == []
        sign_in(page, quiet_site, "wrong")
        expect(page.get_by_text("Too many failed attempts. Try again in 15 minutes.")).to_be_visible()
        assert violations_in(TWO_LOOKS, page) == []

    browser.drive(journey)
    assert browser.complaints == []
