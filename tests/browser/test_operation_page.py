"""The page of an operation says what the rows say, whatever happens meanwhile, and is final without a reload."""

import re
from collections.abc import Iterator
from threading import Event

import pytest
from playwright.sync_api import Page, expect

from deliveries_app.models import App, AppRepository, BulkOperation, Status
from deliveries_app.scheduling import enqueue_due, request_sync
from tests.browser.accessibility import violations
from tests.browser.conftest import Browser, Site
from tests.browser.test_journey import LIST, force_resync, sign_in
from tests.support.receiver import Answer, Notification, wait_for
from tests.support.world import World

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

FILES = 400
SHOWN = """() => {
    for (const spoken of document.querySelectorAll("#content-main [role=status]")) spoken.textContent = "";
    return document.getElementById("content-main").innerText;
}"""


class Client:
    """The client app: it takes `pace` seconds per file, or 25 while it `hangs`, and refuses with `answer`."""

    def __init__(self) -> None:
        self.pace = 0.25
        self.answer: Answer | None = None
        self.hangs = Event()
        self.repositories: set[str] = set()  # those that it has got a file of
        self._ends = Event()

    def take(self, notification: Notification) -> Answer | None:
        self.repositories.add(notification.repository)
        self._ends.wait(25 if self.hangs.is_set() else self.pace)
        return self.answer

    def end(self) -> None:
        self._ends.set()


@pytest.fixture
def client_app(world: World, site: Site) -> Iterator[Client]:
    """The client of two repositories, which are synced."""
    files = {f"posts/{number:03}.html": b"<p>%d</p>" % number for number in range(FILES)}
    for name in ("docs", "site"):
        world.watch(files, name=f"acme/{name}")
    wait_for(lambda: AppRepository.objects.filter(status=Status.SYNCED).count() == 2, timeout=90)
    client = Client()
    world.answer(client.take)
    yield client
    client.end()


def is_shown(browser: Browser, *texts: str, seconds: float = 60) -> None:
    """Wait until the operation's box shows all these texts."""

    def expect_texts(page: Page) -> None:
        box = page.locator(".progress-body")
        for text in texts:
            expect(box).to_contain_text(text, timeout=seconds * 1000)

    browser.drive(expect_texts)


def nothing_moves(page: Page) -> None:
    assert page.locator(".progress-body .moving:visible").count() == 0
    assert not re.search(r"files/s|left", page.locator(".progress-body").inner_text())


def rows_agree(page: Page, states: dict[str, str]) -> None:
    """Compare each row's status with that of its watch."""
    for name, label in states.items():
        expect(page.get_by_role("row").filter(has_text=name).locator(".badge")).to_have_text(label)


def states() -> dict[str, str]:
    return {str(watch.repository): str(watch.state.label) for watch in AppRepository.objects.with_state()}


def resume() -> None:
    App.objects.update(paused=False, cooldown_until=None, down_count=0)
    request_sync(AppRepository.objects.all())
    enqueue_due()


@pytest.mark.early(0)
def test_operation_page_is_true_until_the_end(world: World, site: Site, browser: Browser, client_app: Client) -> None:
    def start(page: Page) -> None:
        sign_in(page, site)
        force_resync(page, site, "acme/docs", "acme/site")
        page.get_by_label("Reason").fill("The client lost its disk.")
        page.get_by_role("button", name=re.compile("^Re-sync 2")).click()
        expect(page).to_have_title(re.compile(r"^\d+% · Re-sync · 2 repositories \| Docora$"))
        expect(page.get_by_text("The client lost its disk.")).to_be_visible()

    browser.drive(start)
    is_shown(browser, "Syncing", "files/s", "left")

    App.objects.update(paused=True)
    wait_for(lambda: set(states().values()) == {"Paused"}, timeout=60)
    is_shown(browser, "Paused", "The app is paused")
    browser.drive(nothing_moves)
    browser.drive(lambda page: rows_agree(page, {"acme/docs": "Paused", "acme/site": "Paused"}))

    client_app.repositories.clear()
    resume()
    is_shown(browser, "Syncing", "files/s")
    wait_for(lambda: len(client_app.repositories) == 2, timeout=60)  # otherwise only one of them would fail
    client_app.answer = Answer(503, headers={"Retry-After": "600"})
    wait_for(lambda: set(states().values()) == {"On hold"}, timeout=90)
    is_shown(browser, "On hold", "Endpoint cooldown")
    browser.drive(nothing_moves)
    browser.drive(lambda page: rows_agree(page, {"acme/docs": "On hold", "acme/site": "On hold"}))

    client_app.answer = None
    resume()
    is_shown(browser, "Syncing", "files/s")

    def lose_the_connection(page: Page) -> None:
        page.context.set_offline(True)
        expect(page.locator(".progress-body")).to_contain_text("Connection lost, retrying")
        nothing_moves(page)
        page.context.set_offline(False)
        expect(page.locator(".progress-body")).not_to_contain_text("Connection lost")

    browser.drive(lose_the_connection)
    browser.complaints.clear()  # the browser reports that it is offline

    client_app.hangs.set()
    is_shown(browser, "Stalled", "Nothing acknowledged for 2")
    browser.drive(nothing_moves)
    site.kill_worker()
    client_app.hangs.clear()
    wait_for(lambda: "Syncing" not in states().values(), timeout=90)  # the leases have ended
    is_shown(browser, "Retrying", "Waiting for the next attempt")  # both had failed before
    browser.drive(nothing_moves)
    now = states()
    browser.drive(lambda page: rows_agree(page, now))

    client_app.pace = 0
    site.start_worker()
    operation = BulkOperation.objects.get()
    wait_for(lambda: BulkOperation.objects.filter(ended_at__isnull=False).exists(), timeout=120)
    operation.refresh_from_db()

    def is_final(page: Page) -> None:
        box = page.locator(".progress-box")
        expect(box).to_contain_text("2 repositories: 2 succeeded")
        expect(box.locator(".badge")).to_have_text("Succeeded")
        expect(page).to_have_title("Re-sync · 2 repositories | Docora")
        expect(page.get_by_text("Ended", exact=True)).to_be_visible()
        expect(page.get_by_role("link", name="2 succeeded")).to_be_visible()
        expect(page.get_by_text("in progress")).to_have_count(0)
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
        rows_agree(page, {"acme/docs": "Succeeded", "acme/site": "Succeeded"})
        assert violations(page) == []
        before = page.evaluate(SHOWN)
        page.reload()
        assert page.evaluate(SHOWN) == before

    browser.drive(is_final)
    assert browser.complaints == []


def test_what_a_screen_reader_hears_of_a_resync(world: World, site: Site, browser: Browser, client_app: Client) -> None:
    """By roles and names alone: the row, the confirmation, the bar, its announcements every tenth, and the result.

    The bar isn't a live region. What is announced is put into the operation's status, at most once for each tenth.
    """
    client_app.pace = 0.1

    def journey(page: Page) -> None:
        sign_in(page, site)
        page.goto(site.url + LIST)
        row = page.get_by_role("row").filter(has_text="acme/docs")
        expect(row.get_by_text("Up to date")).to_be_visible()
        row.get_by_role("link", name="Re-sync acme/docs → Portal").click()

        main = page.get_by_role("main")
        expect(main.get_by_role("heading", level=1)).to_have_text("Re-sync acme/docs")
        expect(main.get_by_text("This will re-sync acme/docs and re-send ALL files to Portal.")).to_be_visible()
        headings = main.get_by_role("columnheader").all_inner_texts()
        assert [heading.lower() for heading in headings] == ["repository", "app", "files", "size", "status"]
        expect(main.get_by_role("row", name=re.compile("^Total 1 app 400"))).to_be_visible()
        expect(main.get_by_role("textbox", name="Reason (optional)")).to_be_editable()
        expect(main.get_by_role("link", name="Cancel")).to_be_visible()
        main.get_by_role("button", name="Re-sync", exact=True).click()

        expect(main.get_by_role("heading", level=1)).to_have_text("Re-sync · acme/docs → Portal")
        expect(page.get_by_role("status").filter(has_text="Re-sync of 1 repository requested.")).to_be_visible()
        box = main.get_by_role("region", name="Re-sync")
        expect(box.get_by_role("progressbar", name="Progress of Re-sync · acme/docs → Portal").first).to_be_visible()
        expect(box.get_by_role("button", name="Cancel")).to_be_visible()
        expect(box.get_by_text("Syncing", exact=True)).to_be_visible()
        spoken = box.get_by_role("status")
        expect(spoken).to_have_text(re.compile(r"acme/docs → Portal: more than \d0 percent done\."))
        client_app.pace = 0
        expect(spoken).to_have_text("Re-sync · acme/docs → Portal: Succeeded.", timeout=60_000)
        expect(box.get_by_text("Succeeded", exact=True)).to_be_visible()
        expect(box.get_by_role("button")).to_have_count(0)

    browser.drive(journey)
    assert browser.complaints == []
