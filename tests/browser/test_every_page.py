"""Every page that a superuser can reach, in a real browser: none breaks the content security policy, or fails.

The walk begins at the overview and follows every link below `/admin/`, so a page that is added later is walked too.
"""

import re
from urllib.parse import urlsplit

import pytest
from axes.models import AccessAttempt
from django.contrib.auth.models import Group, User
from playwright.sync_api import Page, expect

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, Delivery, SyncRun
from deliveries_app.services import resync_by_app
from tests.browser.conftest import PASSWORD, Browser, Site
from tests.support.receiver import wait_for
from tests.support.world import World

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

LIMIT = 400  # pages; more means that the walk found a way to go round for ever
KINDS = 3  # pages of one kind (`/admin/…/12/change/`) that are walked


def kind_of(path: str) -> str:
    return re.sub(r"\d+|bulk_[0-9a-f]+", "N", path)


def sign_in(page: Page, site: Site, password: str = PASSWORD) -> None:
    page.goto(f"{site.url}/admin/login/")
    page.get_by_label("Username:").fill("anna")
    page.get_by_label("Password:").fill(password)
    page.get_by_role("button", name="Log in").click()


def links(page: Page) -> list[str]:
    """The paths below /admin/ that the page links to, with their queries."""
    found = page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")
    parts = [urlsplit(address) for address in found]
    here = urlsplit(page.url).netloc
    return [f"{part.path}?{part.query}" for part in parts if part.netloc == here and part.path.startswith("/admin/")]


def walk(page: Page, site: Site, complaints: list[str]) -> dict[str, int]:
    """kind of page → status of the last one of it."""
    waiting, seen, kinds = ["/admin/?"], {"/admin/?"}, dict[str, int]()
    statuses: dict[str, int] = {}
    while waiting:
        address = waiting.pop(0)
        path, _, query = address.partition("?")
        kind = kind_of(path) + ("?…" if query else "")
        kinds[kind] = kinds.get(kind, 0) + 1
        if kinds[kind] > KINDS or "logout" in path:
            continue
        before = len(complaints)
        response = page.goto(site.url + address)
        statuses[kind] = response.status if response else 0
        page.wait_for_load_state("networkidle") if "progress" in path else None
        complaints[before:] = [f"{address}: {complaint}" for complaint in complaints[before:]]
        if not page.url.startswith(f"{site.url}/admin/"):
            continue
        new = [link for link in links(page) if link not in seen]
        seen.update(new)
        waiting += new
        assert len(statuses) < LIMIT
    return statuses


@pytest.fixture
def everything(world: World, site: Site) -> AppRepository:
    """A row of every kind: synced and failed watches, runs, an operation, deliveries, people, failed sign-ins."""
    _, pair = world.watch({f"posts/{number}.html": b"<p>%d</p>" % number for number in range(3)}, name="acme/docs")
    broken, _ = world.watch(name="acme/broken")
    Group.objects.get_or_create(name="Operators")
    User.objects.create_user("victor", password="x", is_staff=True)
    AccessAttempt.objects.create(
        username="mallory", ip_address="203.0.113.9", user_agent="curl", failures_since_start=5
    )
    wait_for(lambda: AppRepository.objects.filter(status="synced").count() == 2, timeout=40)
    broken.path.rename(broken.path.with_suffix(".gone"))
    resync_by_app(Actor.command(), world.app)
    wait_for(lambda: BulkOperation.objects.filter(ended_at__isnull=False).exists(), timeout=40)
    return pair


def test_no_page_breaks_the_policy_or_fails(site: Site, browser: Browser, everything: AppRepository) -> None:
    assert Delivery.objects.exists()
    assert SyncRun.objects.exists()

    def journey(page: Page) -> dict[str, int]:
        sign_in(page, site)
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        return walk(page, site, browser.complaints)

    statuses = browser.drive(journey)
    assert browser.complaints == []
    assert {kind: status for kind, status in statuses.items() if status != 200} == {}
    for kind in (
        "/admin/",
        "/admin/deliveries_app/app/",
        "/admin/deliveries_app/app/add/",
        "/admin/deliveries_app/app/N/change/",
        "/admin/deliveries_app/apprepository/N/change/",
        "/admin/repositories_app/repository/N/change/",
        "/admin/deliveries_app/syncrun/",
        "/admin/deliveries_app/delivery/",
        "/admin/deliveries_app/bulkoperation/N/change/",
        "/admin/auth/user/add/",
        "/admin/auth/user/N/change/",
        "/admin/auth/user/N/password/",
        "/admin/auth/user/N/delete/",
        "/admin/auth/group/add/",
        "/admin/auth/group/N/change/",
        "/admin/axes/accessattempt/",
        "/admin/axes/accessattempt/N/change/",
        "/admin/password_change/",
    ):
        assert kind in statuses


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/nothing", 404, "There is no such page"),
        ("/admin/nothing/", 404, "There is no such page"),
        ("/docs/", 200, None),
        ("/docs/webhooks/", 200, None),
        ("/docs/api/", 200, None),
        ("/docs/operations/", 200, None),
    ],
)
def test_pages_outside_the_walk_obey_it_too(
    site: Site, browser: Browser, address: str, status: int, words: str | None
) -> None:
    def journey(page: Page) -> int:
        sign_in(page, site)
        response = page.goto(site.url + address)
        if words:
            expect(page.get_by_role("heading", name=words)).to_be_visible()
        assert response
        return response.status

    found = browser.drive(journey)
    assert found == status
    own = "Failed to load resource: the server responded with a status of 404 (Not Found)"
    assert [complaint for complaint in browser.complaints if complaint != own or found != 404] == []


def test_signing_out_and_being_locked_out_obey_it_too(site: Site, browser: Browser) -> None:
    def journey(page: Page) -> None:
        sign_in(page, site)
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_role("heading", name="Logged out")).to_be_visible()
        for _ in range(5):
            sign_in(page, site, "wrong")
        expect(page.get_by_text("Too many failed sign-ins. Wait 15 minutes")).to_be_visible()
        page.get_by_role("link", name="Back to the sign-in page").click()
        expect(page.get_by_label("Username:")).to_be_visible()

    browser.drive(journey)
    own = "Failed to load resource: the server responded with a status of 429 (Too Many Requests)"
    assert [complaint for complaint in browser.complaints if complaint != own] == []
