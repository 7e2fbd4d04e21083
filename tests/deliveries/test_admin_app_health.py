"""The list of apps as a health board: what each row says, where its numbers lead, and what it costs."""

import re
from datetime import timedelta
from html import unescape

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.models import App, HourlyTraffic, Status
from deliveries_app.reports.chart import sparkline
from deliveries_app.webhooks import endpoint_stats
from tests.support.staff import make_app, make_watch, staff

APPS = "/admin/deliveries_app/app/"


@pytest.fixture
def operator(db) -> Client:
    return staff("olga", "view_app", "view_apprepository", "resync_apprepository")


@pytest.fixture
def app(db) -> App:
    """Portal accepts 90 of its latest 100 requests, and one of its two repositories fails."""
    app, now = make_app("Portal"), timezone.now()
    make_watch(app, "docs")
    make_watch(app, "site", status=Status.FAILED, failing_since=now, root_cause="http_5xx")
    latest = endpoint_stats.Latest()
    for number in range(100):
        latest.add(number >= 10, 0.038 if number < 90 else 0.21)
    endpoint_stats.record_latest(app, latest, {})
    HourlyTraffic.objects.create(app=app, hour=now - timedelta(hours=60), files=7, acknowledged_at=now)  # not shown
    hour = now.replace(minute=0, second=0, microsecond=0)
    HourlyTraffic.objects.create(app=app, hour=hour, files=1, failed=2)
    earlier = hour - timedelta(hours=5)
    HourlyTraffic.objects.create(app=app, hour=earlier, files=1200, acknowledged_at=now - timedelta(hours=5, minutes=1))
    return app


def cells(client: Client, query: str = "") -> dict[str, dict[str, str]]:
    """Return the text of each row's cells, by the app's name and the column."""
    rows = {}
    for row in re.findall(r'<tr role="row">(?=<t[dh] role="(?:cell|rowheader)).*?</tr>', client.get(APPS + query).text):
        found = re.findall(r'class="[^"]*field-(\w+)[^"]*">(.*?)</t[dh]>', row)
        texts = {name: " ".join(unescape(re.sub("<[^>]+>", " ", html)).split()) for name, html in found}
        rows[texts["name"]] = texts
    return rows


def test_row_shows_health(operator: Client, app: App) -> None:
    assert cells(operator)["Portal"] == {
        "name": "Portal",
        "state": "Active",
        "failing": "1",
        "accepted": "90% of 100",
        "p95": "210 ms",
        "last_success": "5 h ago",
        "last_day": "1,201 files delivered, 2 failed attempts in the last 24 hours",
        "repositories": "2",
        "row_buttons": "Re-sync all",
    }


def test_row_of_an_app_without_requests_says_so(operator: Client) -> None:
    make_app("New")
    rows = cells(operator)
    assert (rows["New"]["accepted"], rows["New"]["last_success"], rows["New"]["p95"]) == (
        "No recent requests",
        "—",
        "—",
    )
    assert rows["New"]["last_day"] == "Nothing delivered in the last 24 hours"


def test_numbers_and_the_button_are_links(operator: Client, app: App) -> None:
    page = operator.get(APPS).text
    assert f'href="/admin/deliveries_app/failedsync/?app={app.pk}"' in page
    assert f'href="/admin/deliveries_app/apprepository/?app={app.pk}"' in page
    button = re.search('href="([^"]+)" aria-label="Re-sync all repositories of Portal"', page)
    assert button
    question = operator.get(unescape(button[1]))
    assert "This will re-sync all 2 repositories for Portal." in question.text
    assert f'href="{APPS}"' in question.text


def test_viewer_of_apps_alone_sees_numbers_without_links(app: App) -> None:
    viewer = staff("vera", "view_app")
    row = cells(viewer)["Portal"]
    assert (row["failing"], row["repositories"]) == ("1", "2")
    assert "row_buttons" not in row
    assert "/failedsync/?app=" not in viewer.get(APPS).text


def test_sorts_by_what_the_database_knows(operator: Client, app: App) -> None:
    make_app("Archive")
    columns = ["name", "state", "repositories", "failing", "accepted", "p95", "last_success", "last_day"]
    page = operator.get(APPS).text
    sortable = re.findall(r'class="(?:sorted ascending )?(?:sortable )?column-(\w+)[^"]*"[^>]*>', page)
    assert set(sortable) >= {"name", "state", "failing", "last_success", "repositories"}
    unsorted = operator.get(f"{APPS}?o={columns.index('last_day') + 1}").context["cl"]
    assert unsorted.get_ordering_field("last_day") is None
    for name in ("failing", "last_success", "repositories"):
        number = columns.index(name) + 1
        assert next(iter(cells(operator, f"?o=-{number}"))) == "Portal", name
        assert next(iter(cells(operator, f"?o={number}"))) == "Archive", name


def test_query_count_does_not_depend_on_the_number_of_apps(operator: Client, app: App) -> None:
    operator.get(APPS)
    with CaptureQueriesContext(connection) as of_one:
        operator.get(APPS)
    for number in range(30):
        other = make_app(f"App {number}")
        make_watch(other, "docs")
        HourlyTraffic.objects.create(app=other, hour=timezone.now(), files=1)
    with CaptureQueriesContext(connection) as of_many:
        operator.get(APPS)
    assert len(of_many) == len(of_one)


def test_board_works_without_redis(operator: Client, app: App, valkey_server) -> None:
    operator.get(APPS)
    valkey_server.stop()
    assert cells(operator)["Portal"]["accepted"] == "Unknown"
    page = operator.get(f"{APPS}{app.pk}/endpoint/").text
    assert "Recent notifications are unknown: Redis isn&#x27;t responding" in page


@pytest.mark.parametrize(
    ("values", "good", "bad"),
    [
        ([(0, 0), (0, 0)], "", ""),
        ([(10, 0), (5, 0)], "M0 0h2v20h-2zM3 10h2v10h-2z", ""),
        ([(0, 0), (8, 2)], "M3 4h2v16h-2z", "M3 0h2v4h-2z"),
        ([(1000, 1)], "M0 2h2v18h-2z", "M0 0h2v2h-2z"),
        ([(1000, 0), (1, 1)], "M0 0h2v20h-2zM3 18h2v2h-2z", "M3 16h2v2h-2z"),
    ],
)
def test_sparkline_paths(values: list[tuple[int, int]], good: str, bad: str) -> None:
    assert sparkline(values) == (good, bad)
