"""The search box on every page: what it finds, for whom, and what it costs."""

import re
from html import unescape

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.models import App, AppRepository, BulkOperation, Delivery, Outcome, Status, SyncRun
from tests.support.staff import VIEWS, make_app, make_watch, staff

ADMIN = "/admin/deliveries_app/"
SEARCH = "/admin/search/"
ERROR = "3 files couldn't be delivered. The app returned HTTP 503."


@pytest.fixture
def watches(db) -> list[AppRepository]:
    portal, shop = make_app("Portal"), make_app("Shop")
    App.objects.filter(pk=shop.pk).update(base_url="https://hooks.shop.example")
    failing = {"status": Status.FAILED, "failing_since": timezone.now(), "root_cause": "http_5xx", "last_error": ERROR}
    watches = [make_watch(portal, "docs"), make_watch(shop, "docs"), make_watch(shop, "handbook", **failing)]
    for watch in watches[1:]:
        Delivery.objects.create(
            watch=watch, path="src/guide.md", mode="100644", kind="create", source_key="x", sha="0" * 64, size=3,
            sequence=1, generation=1, acknowledged=True, updated_at=timezone.now(),
        )  # fmt: skip
    return watches


@pytest.fixture
def viewer(db) -> Client:
    return staff("vera", *(f"view_{model}" for model in VIEWS))


def found(client: Client, text: str) -> dict[str, list[str]]:
    """Return the titles of the rows by the heading of their group."""
    page = client.get(SEARCH, {"q": text}).text
    groups = {}
    for section in re.findall(r'<section aria-labelledby="group-.*?</section>', page, re.DOTALL):
        heading = re.search("<h2[^>]*>(.*?)</h2>", section)
        assert heading
        groups[heading[1]] = [unescape(title) for title in re.findall('<li><a href="[^"]+">(.*?)</a>', section)]
    return groups


def test_user_who_can_view_nothing_gets_a_message(watches) -> None:
    page = staff("eve").get(SEARCH, {"q": "portal"}).text
    assert "You don't have permission to search anything." in page
    assert "Searched:" not in page
    assert "Searched: exact IDs." in staff("rita", "view_syncrun").get(SEARCH, {"q": "portal"}).text
    assert "Searched: apps, exact IDs." in staff("ada", "view_app").get(SEARCH, {"q": "nothing"}).text
    assert "Ask an administrator to add you to a group" in staff("otto").get("/admin/").text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("portal", {"Apps": ["Portal"], "Watched repositories": ["acme/docs → Portal"]}),
        ("hooks.shop", {"Apps": ["Shop"]}),
        ("handbook", {"Watched repositories": ["acme/handbook → Shop"], "Failed syncs": ["acme/handbook → Shop"]}),
        ("acme/docs", {"Watched repositories": ["acme/docs → Portal", "acme/docs → Shop"]}),
        ("git@github.com:acme/docs.git", {"Watched repositories": ["acme/docs → Portal", "acme/docs → Shop"]}),
        ("https://github.com/Acme/docs/", {"Watched repositories": ["acme/docs → Portal", "acme/docs → Shop"]}),
        ("returned HTTP 503", {"Failed syncs": ["acme/handbook → Shop"]}),
        ("503 HTTP", {}),
        ("HTTP 503", {"Failed syncs": ["acme/handbook → Shop"]}),
        ("src/gui", {"Files whose path starts with this": ["src/guide.md", "src/guide.md"]}),
        ("src/guide.md", {"Files whose path starts with this": ["src/guide.md", "src/guide.md"]}),
        ("nothing like it", {}),
    ],
)
def test_each_kind_is_found(viewer: Client, watches, text: str, expected: dict[str, list[str]]) -> None:
    assert found(viewer, text) == expected


def test_ids_lead_to_their_pages(viewer: Client, watches) -> None:
    operation = BulkOperation.objects.create(title="Re-sync", total=1, requested_by="anna", ended_at=timezone.now())
    run = SyncRun.objects.create(
        watch=watches[0], app_name="Portal", repository_name="acme/docs", reason="resync", requested_by="anna",
        generation=1, outcome=Outcome.SUCCEEDED, ended_at=timezone.now(),
    )  # fmt: skip
    for public_id, page in {
        f" {run.run_id} ": f"{ADMIN}syncrun/{run.pk}/change/",
        operation.operation_id: f"{ADMIN}bulkoperation/{operation.pk}/change/",
        watches[0].app.app_id: f"{ADMIN}app/{watches[0].app_id}/change/",
    }.items():
        answer = viewer.get(SEARCH, {"q": public_id})
        assert (answer.status_code, answer.url) == (302, page)
    assert "Nothing found." in viewer.get(SEARCH, {"q": "run_0123456789abcdef01234567"}).text
    repository_id = watches[2].repository.repository_id
    assert found(viewer, repository_id)["Watched repositories"] == ["acme/handbook → Shop"]
    nobody = staff("carl", "view_delivery")
    assert nobody.get(SEARCH, {"q": run.run_id}).status_code == 200


def test_only_what_the_user_can_view_is_searched(watches) -> None:
    client = staff("carl", "view_app")
    assert found(client, "portal") == {"Apps": ["Portal"]}
    assert found(client, "src/") == {}
    with CaptureQueriesContext(connection) as queries:
        client.get(SEARCH, {"q": "src/"})
    assert not any("deliveries_app_delivery" in query["sql"] for query in queries)
    assert Client().get(SEARCH, {"q": "portal"}).status_code == 302
    assert client.post(SEARCH, {"q": "portal"}).status_code == 405


def test_all_leads_to_the_same_rows(viewer: Client, watches) -> None:
    for number in range(30):
        make_watch(watches[0].app, f"handbook-{number:02}")
    page = viewer.get(SEARCH, {"q": "handbook"}).text
    assert len(found(viewer, "handbook")["Watched repositories"]) == 10
    link = re.search('<a href="([^"]+)">Show all 31</a>', page)
    assert link
    assert viewer.get(unescape(link[1])).context["cl"].result_count == 31
    assert page.count("Show all") == 1


def test_queries_are_bounded_and_constant(viewer: Client, watches) -> None:
    def asked(text: str) -> list[str]:
        with CaptureQueriesContext(connection) as queries:
            viewer.get(SEARCH, {"q": text})
        return [query["sql"] for query in queries]

    asked("docs")
    before = {text: asked(text) for text in ("docs", "src/", "HTTP 503", "nothing")}
    for number in range(30):
        make_watch(make_app(f"App {number}"), "docs")
    for text, queries in before.items():
        assert len(asked(text)) == len(queries)
    for sql in before["src/"]:
        if '"deliveries_app_delivery"."path" >=' in sql:
            assert "LIMIT" in sql
            assert "LIKE" not in sql.upper()


def test_box_is_on_every_page_and_keeps_the_text(viewer: Client, watches) -> None:
    for url in ("/admin/", f"{ADMIN}app/", f"{ADMIN}apprepository/{watches[0].pk}/change/"):
        assert 'id="site-search"' in viewer.get(url).text, url
    page = viewer.get(SEARCH, {"q": '<b>"x'}).text
    assert 'value="&lt;b&gt;&quot;x"' in page
    assert "<b>" not in page
    assert 'id="site-search"' not in Client().get("/accounts/login/").text
    assert "Enter the name, ID or base URL of an app" in viewer.get(SEARCH).text
    for odd in ("\u202e", "%", "_", "'", "\\", "9" * 40, "run_\ud800", "x" * 3000):
        assert viewer.get(SEARCH, {"q": odd.encode("utf-8", "surrogatepass")}).status_code == 200, odd
