"""The overview: correct numbers, complete with all permissions and nothing without."""

import re
import socket
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection as database
from django.template.loader import render_to_string
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from rq import Worker

from deliveries_app.models import App, AppRepository, BulkOperation, HourlyTraffic, Status, SyncPause, SyncRun
from deliveries_app.models.root_causes import RootCause
from deliveries_app.reports import overview, traffic
from deliveries_app.reports.queue import read_queue
from deliveries_app.sweep import loop
from docora import disk
from docora.redis import heartbeat, queues
from repositories_app.git import remote
from tests.support.plans import read_rows
from tests.support.staff import VIEWS, make_app, make_watch, staff
from tests.support.valkey import ValkeyServer

PAGE = "/admin/"
FRAGMENT = "/admin/live/overview/"
SEES_ALL = (*(f"view_{model}" for model in VIEWS), "view_queue")


@pytest.fixture
def viewer(db) -> Client:
    return staff("vera", *SEES_ALL)


@pytest.fixture
def alive(redis_client) -> None:
    """A worker and the sweep are alive."""
    Worker(["high"], connection=redis_client).register_birth()
    heartbeat.beat()


def fail(app: App, name: str, cause: RootCause = RootCause.SERVER_ERROR, **fields) -> AppRepository:
    fields = {"status": Status.FAILED, "last_error": f"{name} is broken."} | fields
    minutes_ago = fields.pop("minutes_ago", 5)
    return make_watch(
        app, name, failing_since=timezone.now() - timedelta(minutes=minutes_ago), root_cause=cause, **fields
    )


def sent(app: App, *, hours_ago: int = 0, **counts: int) -> None:
    hour = timezone.now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours_ago)
    HourlyTraffic.objects.create(app=app, hour=hour, **counts)


def link(page: str, id_: str) -> str:
    """Return the URL of the link with this id."""
    found = re.search(rf'<a id="{id_}"[^>]* href="([^"]*)"', page)
    assert found, f"no link {id_}"
    return found[1].replace("&amp;", "&")


def shown(page: str, id_: str) -> str:
    """Return the text of the link with this id."""
    found = re.search(rf'<a id="{id_}"[^>]*>(.*?)</a>', page, re.DOTALL)
    assert found, f"no link {id_}"
    return re.sub("<[^>]*>", "", found[1]).strip()


def text_of(page: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", page).split())


@pytest.fixture
def everything(db) -> list[App]:
    """Create some of everything that is counted."""
    portal, search = make_app("Portal"), make_app("Search")
    App.objects.filter(pk=search.pk).update(paused=True)
    later = timezone.now() + timedelta(minutes=3)
    make_watch(portal, "docs")
    make_watch(portal, "gone", ended_at=timezone.now(), failing_since=timezone.now(), root_cause="tls")
    fail(portal, "web", next_sync_at=later)
    fail(portal, "site", status=Status.PENDING, next_sync_at=later)
    make_watch(portal, "big", status=Status.SCANNING, lease_until=soon())
    broken = fail(search, "old", RootCause.GIT_HOST)
    broken.repository.circuit_open_until = later
    broken.repository.save()
    return [portal, search]


@pytest.mark.parametrize(
    ("card", "number"),
    [("apps", 2), ("paused", 1), ("watched", 5), ("failed", 3), ("given-up", 1), ("syncing", 1), ("circuits", 1)],
)
def test_numbers_link_to_matching_lists(viewer: Client, everything, card: str, number: int) -> None:
    page = viewer.get(PAGE).text
    assert shown(page, f"card-{card}").split()[0] == str(number)
    assert viewer.get(link(page, f"card-{card}")).context["cl"].result_count == number


def test_queue_shows_waiting_running_and_retrying(viewer: Client, everything) -> None:
    """The numbers are those of the lists, not of the jobs: at most 20 due watches have one."""
    for name in ("one", "two"):
        make_watch(everything[0], name, status=Status.PENDING, next_sync_at=timezone.now())
    queues.enqueue("default", "deliveries_app.jobs.sync_watch", 1, "job-1")
    view = read_queue()
    lists = len(view.waiting), len(view.running), len(view.scheduled)
    assert all(lists)
    page = viewer.get(PAGE).text
    assert [shown(page, f"card-{name}") for name in ("waiting", "active", "delayed")] == [
        f"{lists[0]} waiting",
        f"{lists[1]} running",
        f"{lists[2]} scheduled",
    ]
    assert link(page, "card-waiting") == reverse("admin:deliveries_app_queue_changelist") + "#waiting"


def test_paused_repositories_are_counted(viewer: Client) -> None:
    portal, search = make_app("Portal"), make_app("Search")
    now = timezone.now()
    make_watch(portal, "docs", next_sync_at=None)
    make_watch(portal, "site", status=Status.PENDING, paused_at=now, next_sync_at=now)
    make_watch(search, "docs", status=Status.PENDING, next_sync_at=now)
    App.objects.filter(pk=search.pk).update(paused=True)
    page = viewer.get(PAGE).text
    assert shown(page, "card-watches-paused") == "2 paused"
    assert viewer.get(link(page, "card-watches-paused")).context["cl"].result_count == 2
    assert "2 due, but paused or on hold" in text_of(page)
    assert 'id="card-held"' not in page  # no list has only these
    assert "None queued" not in page
    assert "Docora checks for changes automatically." in page
    SyncPause.objects.create(paused_by="anna")
    for url in (PAGE, FRAGMENT):
        page = viewer.get(url).text
        assert shown(page, "card-watches-paused") == "3 paused"
        assert "Docora checks for changes automatically." not in page
        assert "Everything is paused, so Docora doesn't check for changes." in page


def test_longest_due_watch_is_named(viewer: Client) -> None:
    """It is one of the queued ones, which are counted beside it."""
    app = make_app("Portal")
    fail(app, "retried", status=Status.PENDING, retry_count=1, next_sync_at=timezone.now() - timedelta(minutes=8))
    late = make_watch(app, "late", next_sync_at=timezone.now() - timedelta(minutes=7))
    make_watch(app, "later", next_sync_at=timezone.now() - timedelta(minutes=2))
    make_watch(app, "at-work", next_sync_at=timezone.now() - timedelta(minutes=9), lease_until=soon())
    page = viewer.get(PAGE).text
    assert shown(page, "card-oldest") == "oldest due 7 min ago"
    assert link(page, "card-oldest") == f"/admin/deliveries_app/apprepository/{late.pk}/change/"


def soon():
    return timezone.now() + timedelta(seconds=20)


def test_failures_are_grouped_by_cause_most_frequent_first(viewer: Client) -> None:
    app = make_app("Portal")
    fail(app, "one", RootCause.GIT_AUTH, minutes_ago=1)
    fail(app, "two", minutes_ago=60)
    newest = fail(app, "three", minutes_ago=2)
    page = viewer.get(PAGE).text
    section = page[page.index('id="failing"') :]
    assert section.index("Endpoint: 5xx") < section.index("Git: token rejected")
    assert shown(page, "see-http_5xx") == "2 repositories"
    assert shown(page, f"failing-{newest.pk}") == "acme/three → Portal"
    assert "three is broken." in section
    assert "two is broken." not in section
    listed = viewer.get(link(page, "see-http_5xx")).context["cl"]
    assert listed.result_count == 2


def test_card_of_failures_lists_the_most_frequent_causes(viewer: Client) -> None:
    """With all sixteen, it was three screens high."""
    app = make_app("Portal")
    for cause in RootCause:
        fail(app, cause.value, cause, minutes_ago=1)
    fail(app, "quota-2", RootCause.QUOTA)
    page = viewer.get(PAGE).text
    assert page.count('id="see-') == 5
    assert shown(page, "see-quota") == "2 repositories"
    assert shown(page, "more-causes") == f"{len(RootCause) - 5} more causes"
    assert viewer.get(link(page, "more-causes")).context["cl"].result_count == len(RootCause) + 1


def test_failing_repositories_are_counted_by_what_happens_next(viewer: Client) -> None:
    app = make_app("Portal")
    fail(app, "docs")
    for name in ("site", "blog"):
        fail(app, name, status=Status.PENDING, retry_count=1, next_sync_at=timezone.now() + timedelta(minutes=5))
    page = viewer.get(PAGE).text
    assert ">2 retrying</a>, " in page
    assert ">1 failed, waiting for the next check</a>" in page


def test_retry_buttons_need_permission(viewer: Client) -> None:
    fail(make_app("Portal"), "web")
    assert "button-retry" not in viewer.get(PAGE).text
    mender = staff("mara", *SEES_ALL, "retry_apprepository")
    address = link(mender.get(PAGE).text, "retry-http_5xx")
    assert address.startswith(reverse("admin:deliveries_app_failedsync_retry_failed"))
    assert "cause=http_5xx" in address
    assert address.endswith("&next=/admin/")


def test_running_syncs_have_bars(viewer: Client) -> None:
    app = make_app("Portal")
    operation = BulkOperation.objects.create(title="Re-sync all · Portal", app=app, requested_by="anna", total=4)
    leased = {"status": Status.SCANNING, "lease_until": soon()}
    sending, reading = (make_watch(app, name, **leased) for name in ("docs", "site"))
    fields = {"app_name": "Portal", "reason": "resync", "requested_by": "anna", "generation": 1}
    numbers = {"files_total": 200, "files_done": 50, "files_failed": 2, "started_at": timezone.now()}
    SyncRun.objects.create(watch=sending, repository_name="acme/docs", operation=operation, **fields, **numbers)
    SyncRun.objects.create(watch=reading, repository_name="acme/site", **fields)
    page = viewer.get(PAGE).text
    assert 'aria-label="Progress of Re-sync all · Portal"' in page
    assert '<progress max="100" value="25" aria-label="Progress of acme/docs → Portal">' in page
    assert "50 / 200 files, 2 failed" in text_of(page)
    assert "Reading the repository" in text_of(page)


def test_waiting_operation_says_so(viewer: Client) -> None:
    app = make_app("Portal")
    watch = make_watch(app, "docs", status=Status.PENDING, next_sync_at=timezone.now())
    operation = BulkOperation.objects.create(title="Re-sync all · Portal", app=app, requested_by="anna", total=1)
    SyncRun.objects.create(
        watch=watch, app_name="Portal", repository_name="acme/docs", operation=operation, reason="resync",
        requested_by="anna", generation=1,
    )  # fmt: skip
    assert "Re-sync all · Portal Queued 0%" in text_of(viewer.get(PAGE).text)
    App.objects.update(paused=True)
    assert "Re-sync all · Portal Paused 0%" in text_of(viewer.get(PAGE).text)


def test_superseded_operation_is_not_in_progress(viewer: Client) -> None:
    """Its repositories are synced for the later one."""
    app = make_app("Portal")
    watch = make_watch(app, "docs", status=Status.PENDING, next_sync_at=timezone.now())
    fields = {"watch": watch, "app_name": "Portal", "repository_name": "acme/docs", "reason": "resync"}
    for generation, title in enumerate(("Earlier", "Later"), start=1):
        operation = BulkOperation.objects.create(title=title, app=app, requested_by="anna", total=1)
        SyncRun.objects.create(operation=operation, requested_by="anna", generation=generation, **fields)
    in_progress = text_of(viewer.get(PAGE).text)
    assert "Later Queued 0%" in in_progress
    assert "Earlier" not in in_progress


def test_overflow_is_a_link(viewer: Client) -> None:
    app = make_app("Portal")
    for number in range(overview.WATCHES_SHOWN + 2):
        make_watch(app, f"r{number}", status=Status.SCANNING, lease_until=soon())
    page = viewer.get(PAGE).text
    assert page.count("Reading the repository") == overview.WATCHES_SHOWN
    assert shown(page, "all-syncing") == f"See all {overview.WATCHES_SHOWN + 2}"
    assert viewer.get(link(page, "all-syncing")).context["cl"].result_count == overview.WATCHES_SHOWN + 2


def test_hour_with_failures_is_marked_and_described(viewer: Client) -> None:
    app = make_app("Portal")
    sent(app, files=900, failed=100, bytes=5_000, requests=1_000, milliseconds=38_000)
    sent(app, hours_ago=5, files=500, bytes=1_000)
    sent(app, hours_ago=24, files=7_000)  # a day ago
    page = viewer.get(PAGE).text
    assert "Delivered in the last 24 hours 1,400 files · 6.0 kB · 100 failed attempts" in text_of(page)
    assert page.count('class="chart-good"') == 2
    assert re.findall('class="chart-bad" d="([^"]+)"', page) == ["M463 0h14v10h-14zM463 103h14v3h-14z"]  # and a mark
    assert page.count('class="chart-hour"') == 24
    assert "Times in UTC" in page
    assert "1,400 files in total." in page
    assert "100 attempts failed, in 1 hour." in page
    assert ": 900 files, 100 failed attempts</title>" in page
    assert "ejected" not in page[page.index('id="day"') :]
    table = page[page.index("<details") : page.index("</details>")]
    assert table.count('<th scope="row">') == 24
    assert '<td class="numeric bad">100</td>' in table


@pytest.mark.parametrize(("hour", "zone"), [(5, "EDT"), (6, "EST")])
def test_chart_names_its_zone_in_the_hour_that_the_end_of_summer_time_repeats(
    db, monkeypatch: pytest.MonkeyPatch, hour: int, zone: str
) -> None:
    now = datetime(2026, 11, 1, hour, 30, tzinfo=UTC)
    monkeypatch.setattr(timezone, "now", lambda: now)
    with timezone.override("America/New_York"):
        chart = render_to_string("docora/overview.html#chart", {"day": traffic.of_last_day()})
    assert f"<span>Times in {zone}</span>" in chart


def test_busiest_and_slowest_apps_are_named(viewer: Client) -> None:
    busy, slow, gone, quiet = make_app("Busy"), make_app("Slow"), make_app("Gone"), make_app("Quiet")
    App.objects.filter(pk=gone.pk).update(ended_at=timezone.now())
    sent(busy, files=1_000, requests=1_000, milliseconds=20_000, bytes=3_000_000)
    sent(slow, files=10, requests=10, milliseconds=25_000)
    sent(quiet, files=1, requests=1, milliseconds=5)
    sent(gone, files=9_000, requests=9_000, milliseconds=9_000_000)
    text = text_of(viewer.get(PAGE).text)
    assert "Busiest apps Busy 1,000 files · 3.0 MB Slow 10 files · 0 bytes Quiet 1 file" in text
    assert "Slowest apps (average) Slow 2.5 s · 10 requests Busy 20 ms · 1,000 requests Quiet 5 ms · 1 request" in text
    assert "Gone" not in text


def test_fresh_instance_shows_the_checklist_instead_of_empty_panels(admin: Client, viewer: Client, alive) -> None:
    page = admin.get(PAGE).text
    assert link(page, "step-register") == reverse("admin:deliveries_app_app_add")
    assert "<svg viewBox" not in page
    assert "Nothing is failing." not in page
    assert "Nothing to sync yet" in viewer.get(PAGE).text
    make_watch(make_app("Portal"), "docs")
    page = admin.get(PAGE).text
    assert "Get started" in page
    assert "No failures." in page
    assert "Nothing to sync yet" not in viewer.get(PAGE).text


def test_healthy_instance_shows_no_warnings(viewer: Client, alive) -> None:
    make_watch(make_app("Portal"), "docs")
    text = text_of(viewer.get(PAGE).text)
    assert re.search(r"1 worker up (less than a second|\d+ s) · last sweep", text)
    assert "No failures." in text
    assert "Nothing is being synced." in text
    assert "Nothing was sent in the last 24 hours." in text
    for failure in ("Redis isn't responding", "No worker is running", "The sweep is not running"):
        assert failure not in text


@pytest.mark.django_db(transaction=True)
def test_database_that_refuses_new_connections_is_shown(alive, postgres_server) -> None:
    """As after its password was changed: the pages work, and repositories waited for a worker without a word."""
    viewer = staff("vera", *SEES_ALL)
    watch = make_watch(make_app("Portal"), "acme/site", next_sync_at=timezone.now() - timedelta(seconds=15))
    pages = (PAGE, FRAGMENT, reverse("admin:deliveries_app_queue_changelist"))
    said = "The database refuses new connections."
    assert said not in viewer.get(PAGE).text
    with postgres_server.refusing_connections(database.settings_dict["NAME"]):
        for page in pages:
            assert said in viewer.get(page).text
        AppRepository.objects.filter(pk=watch.pk).update(next_sync_at=timezone.now())
        assert said not in viewer.get(PAGE).text


def test_redis_outage_is_shown(viewer: Client, everything, valkey_server: ValkeyServer) -> None:
    BulkOperation.objects.create(title="Re-sync all", requested_by="anna", total=4)
    valkey_server.stop()
    for url in (PAGE, FRAGMENT):
        page = viewer.get(url).text
        assert "Redis isn't responding or rejects writes." in page
        assert shown(page, "card-delayed") == "2 scheduled"
        assert shown(page, "card-failed") == "3"
        assert "No worker is running" not in page


@pytest.mark.parametrize("redis_works", [True, False])
def test_almost_full_disk_is_shown(
    viewer: Client, alive, valkey_server: ValkeyServer, monkeypatch, redis_works: bool
) -> None:
    title = "A disk is almost full or not writable."
    assert title not in viewer.get(PAGE).text
    monkeypatch.setattr(disk, "MIN_FREE_BYTES", 10**18)
    monkeypatch.setattr(disk, "MIN_FREE_SHARE", 1.0)
    if not redis_works:
        valkey_server.stop()
    for url in (PAGE, FRAGMENT, reverse("admin:deliveries_app_queue_changelist")):
        page = viewer.get(url).text
        assert re.search(
            rf"{title}</strong> Only \d.* of disk space is left for REPOS_DIR: free up space\. Until", page
        )


def test_disk_of_another_machine_is_shown_with_its_name(viewer: Client, redis_client, settings, tmp_path) -> None:
    heartbeat.beat()
    for host, silent in (("worker-3", False), ("worker-2", False), ("removed", True)):
        worker = Worker(["high"], name=host, connection=redis_client)
        worker.register_birth()
        redis_client.hset(worker.key, mapping={"hostname": host, "disk_problem": "TMPDIR is not writable: check it"})
        if silent:
            redis_client.hset(worker.key, "last_heartbeat", "2026-01-01T00:00:00.000000Z")
    both = "On worker-2, TMPDIR is not writable: check it; on worker-3, TMPDIR is not writable: check it. Until this"
    pages = (PAGE, FRAGMENT, reverse("admin:deliveries_app_queue_changelist"))
    for url in pages:
        assert both in text_of(viewer.get(url).text)
    settings.REPOS_DIR = tmp_path / "file"
    settings.REPOS_DIR.write_text("")
    for url in pages:
        found = text_of(viewer.get(url).text)
        assert re.search(f"[Oo]n {socket.gethostname()}, REPOS_DIR is not writable", found)
        assert "n worker-2, TMPDIR is not writable" in found


def test_redis_that_rejects_writes_is_shown(viewer: Client, valkey_server: ValkeyServer) -> None:
    """The heartbeats of workers and the sweep are missing, although they run."""
    with valkey_server.refusing_writes():
        page = viewer.get(PAGE).text
    assert "Redis isn't responding or rejects writes." in page
    assert "No worker" not in page
    assert "The sweep is not running" not in page


def test_page_says_why_redis_rejects_writes(db, valkey_server: ValkeyServer) -> None:
    """It named REDIS_URL, which is not set with the embedded Valkey, instead of the disk, which was full."""
    operator = staff("olga", *SEES_ALL, "control_queue")
    with valkey_server.unable_to_save():
        page = operator.get(PAGE).text
    assert "The disk of the Redis server cannot be written, so Redis refuses every write: " in page
    assert "Check free space and permissions there; then syncing continues." in page


def test_address_of_redis_is_only_for_operators(viewer: Client, valkey_server: ValkeyServer, settings) -> None:
    operator = staff("olga", *SEES_ALL, "control_queue")
    address = settings.REDIS_URL.partition("://")[2].partition("?")[0].rpartition("/")[0]
    valkey_server.stop()
    for url in (PAGE, FRAGMENT, reverse("admin:deliveries_app_queue_changelist"), "/admin/live/queue/"):
        assert address in operator.get(url).text
        page = viewer.get(url).text
        assert "Redis isn't responding or rejects writes." in page
        assert address not in page
        assert "REDIS_URL" not in page


def test_missing_worker_or_sweep_is_shown(viewer: Client, redis_client) -> None:
    page = viewer.get(PAGE).text
    assert "No worker is running." in page
    assert "The sweep is not running." in page
    assert "It hasn't run in the last 24 hours." in page
    long_ago = timezone.now() - timedelta(minutes=10)
    redis_client.set("docora:heartbeat:sweep", long_ago.timestamp())
    assert "It last ran 10 min ago ." in text_of(viewer.get(PAGE).text)


def test_sweep_time_is_shown(db) -> None:
    with remote.new_client() as client:
        loop.sweep_once(client)
    signs = heartbeat.read()
    assert signs is not None
    assert not signs.sweep_is_late


PARTS = {
    "view_app": "card-apps",
    "view_apprepository": "card-watched",
    "view_repository": "card-circuits",
    "view_queue": "card-waiting",
    "view_delivery": "day",
    "view_bulkoperation": "running",
}


@pytest.mark.parametrize("permission", PARTS)
def test_parts_need_their_view_permissions(everything, permission: str) -> None:
    sent(everything[0], files=1, requests=1)
    page = staff("sam", permission).get(FRAGMENT).text
    found = {name for name, part in PARTS.items() if f'id="{part}"' in page}
    runs = {"view_bulkoperation"} if permission == "view_apprepository" else set()
    assert found == {permission} | runs
    assert ("Portal" in page) == (permission == "view_apprepository")  # in the names of failing and running watches


def test_poll_returns_the_panel_and_the_health_indicators(viewer: Client, alive) -> None:
    answer = viewer.get(FRAGMENT, HTTP_HX_REQUEST="true")
    assert answer.status_code == 200
    assert "<html" not in answer.text
    assert '<p id="overview-signs" class="signs" hx-swap-oob="true">' in answer.text
    assert "hx-get" not in answer.text
    assert 'hx-trigger="every 5s, docora:refresh"' in viewer.get(PAGE).text


def test_poll_without_session_or_permission_gets_a_notice(client: Client, db) -> None:
    assert (client.get(FRAGMENT).status_code, client.post(FRAGMENT).status_code) == (401, 405)
    assert "Sign in again" in client.get(FRAGMENT).text
    nobody = staff("norbert")
    assert nobody.get(FRAGMENT).status_code == 403
    page = nobody.get(PAGE)
    assert page.status_code == 200
    assert "overview" not in re.sub("Overview", "", page.text)


def test_focusable_elements_have_ids(admin: Client, everything) -> None:
    sent(everything[0], files=5, failed=1, requests=6, milliseconds=60)
    panel = admin.get(FRAGMENT).text
    focusable = re.findall(r"<(?:a|button|summary)\b[^>]*>", panel)
    assert len(focusable) > 15
    assert [tag for tag in focusable if ' id="' not in tag] == []
    ids = re.findall(r'\bid="([^"]*)"', panel)
    assert len(ids) == len(set(ids))


def test_names_are_escaped(admin: Client) -> None:
    app = make_app("<b>Portal</b>")
    fail(app, "docs", last_error="<script>alert(1)</script>")
    make_watch(app, "site", status=Status.SCANNING)
    sent(app, files=1, requests=1)
    page = admin.get(PAGE).text
    assert "<b>Portal" not in page
    assert "<script>alert" not in page


def fill(app: App, start: int, count: int) -> None:
    causes = list(RootCause)
    for number in range(start, start + count):
        fail(app, f"failing-{number}", causes[number % len(causes)])
        make_watch(app, f"busy-{number}", status=Status.SCANNING)
        BulkOperation.objects.create(title=f"Re-sync {number}", requested_by="anna", total=1, ended_at=timezone.now())
        sent(make_app(f"App {number}"), files=number + 1, requests=1)


def test_query_count_is_constant(viewer: Client, django_assert_max_num_queries) -> None:
    app = make_app("Portal")
    fill(app, 0, 2)
    with CaptureQueriesContext(database) as few:
        viewer.get(FRAGMENT)
    fill(app, 2, 30)
    with django_assert_max_num_queries(len(few)):
        viewer.get(FRAGMENT)
    assert len(few) < 20


def test_running_syncs_are_found_without_reading_all_watches(db, postgres_server) -> None:
    app, count = make_app("Portal"), 500
    for number in range(count):
        make_watch(app, f"library-{number}")
    with database.cursor() as cursor:
        cursor.execute("ANALYZE")
    make_watch(app, "docs", status=Status.SCANNING, lease_until=timezone.now() + timedelta(seconds=20))
    counts = overview.count_watches()
    assert [str(watch.repository) for watch, _ in overview._running(counts, operations=False).watches] == ["acme/docs"]
    assert read_rows(lambda: overview._running(counts, operations=False), AppRepository._meta.db_table) < count
