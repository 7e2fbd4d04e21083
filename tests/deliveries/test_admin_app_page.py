"""The app page: what it shows, to whom, and what polling refreshes."""

import hashlib
import re
from datetime import timedelta
from html import unescape

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    BulkOperation,
    DeliveryFailure,
    Outcome,
    Status,
    SyncPause,
    SyncRun,
)
from deliveries_app.reports import app_detail, failing_files
from deliveries_app.services import cancel_operation, resync_by_app, resync_many, retry_single
from deliveries_app.webhooks import endpoint_stats
from tests.support.audit import by_users, messages
from tests.support.staff import VIEWS, make_app, make_watch, staff

APPS = "/admin/deliveries_app/app/"
FAILING = {
    "status": Status.FAILED,
    "root_cause": "http_5xx",
    "last_error": "2 files couldn't be delivered. The app returned HTTP 500.",
    "last_status_code": 500,
}


@pytest.fixture
def app(db) -> App:
    return make_app("Portal")


def page(client: Client, app: App, **query: str):
    return client.get(f"{APPS}{app.pk}/change/", query)


def live(client: Client, app: App, **query: str):
    return client.get(f"/admin/live/app/{app.pk}/", query, HTTP_HX_REQUEST="true")


def failing(app: App, name: str, **fields) -> AppRepository:
    return make_watch(app, name, **FAILING | {"failing_since": timezone.now() - timedelta(hours=1)} | fields)


def file_failing(watch: AppRepository, path: str, minutes_ago: int = 1) -> DeliveryFailure:
    moment = timezone.now() - timedelta(minutes=minutes_ago)
    return DeliveryFailure.objects.create(
        watch=watch, path=path, path_digest=hashlib.sha256(path.encode()).hexdigest(), cause="http", status_code=500,
        message="The app returned HTTP 500.", body="<b>boom</b>", attempts=3, first_at=moment, last_at=moment,
    )  # fmt: skip


def names(text: str) -> list[str]:
    """Return the repositories of the table, in its order."""
    return re.findall(r'id="watch-\d+" href="[^"]+">([^<]+)</a>', text)


def text_of(text: str, watch: AppRepository) -> str:
    """Return the text that the table shows beside a repository's status."""
    row = text[text.index(f'id="watch-{watch.pk}"') :]
    cell = row[row.index('class="row-progress"') : row.index("</td>", row.index('class="row-progress"'))]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", cell.partition(">")[2])).split())


def test_health_shows_recent_notifications_or_their_absence(admin: Client, app: App) -> None:
    assert "No recent notifications" in page(admin, app).text
    latest = endpoint_stats.Latest()
    for number in range(100):
        latest.add(number != 0, 0.038 if number < 90 else 0.21)
    endpoint_stats.record_latest(app, latest, {})
    for shown in (page(admin, app), live(admin, app)):
        assert "99% accepted · median 38 ms · p95 210 ms (last 100)" in shown.text


def test_status_says_when_it_is_tried_again(admin: Client, app: App) -> None:
    App.objects.update(cooldown_until=timezone.now() + timedelta(seconds=150))
    assert "On hold · the app returned HTTP 429 or 503, next try <time" in page(admin, app).text
    App.objects.update(down_count=3)
    assert "Endpoint down</span> next try <time" in page(admin, app).text
    App.objects.update(cooldown_until=timezone.now() - timedelta(hours=3))
    assert "Endpoint down</span> tried again with the next sync" in page(admin, app).text


def test_works_without_redis(admin: Client, app: App, valkey_server) -> None:
    make_watch(app, "docs", status=Status.SCANNING)
    valkey_server.stop()
    assert names(page(admin, app).text) == ["acme/docs"]


def test_rows_show_error_and_next_attempt(admin: Client, app: App) -> None:
    soon = timezone.now() + timedelta(seconds=100)
    files = failing(app, "files", next_sync_at=soon, files_failing=2, base_commit="a" * 40)
    down = failing(app, "down", next_sync_at=soon, files_failing=2, status=Status.PENDING, last_status_code=503)
    git = failing(
        app,
        "git",
        next_sync_at=soon,
        root_cause="git_auth",
        last_error="The git host rejected the token.",
        last_status_code=None,
    )
    waiting = make_watch(app, "waiting", status=Status.PENDING, next_sync_at=timezone.now())
    seconds = make_watch(app, "seconds", status=Status.PENDING, next_sync_at=timezone.now() + timedelta(seconds=8))
    synced = make_watch(app, "well", next_sync_at=None)
    text = page(admin, app).text
    assert text_of(text, files) == "HTTP 500 on 2 files Next try in 1 min"
    # Without a base, the number of files comes from an earlier run.
    assert text_of(text, down) == "HTTP 503 Next try in 1 min"
    assert text_of(text, git) == "The git host rejected the token. Next try in 1 min"
    assert text_of(text, waiting) == "Next sync when a worker is free"
    assert text_of(text, seconds) == "Next sync in a few seconds"
    assert text_of(text, synced) == ""
    App.objects.update(cooldown_until=timezone.now() + timedelta(minutes=10, seconds=30))
    assert text_of(page(admin, app).text, files).endswith("Next try in 10 min")
    App.objects.update(paused=True)
    assert text_of(page(admin, app).text, files).endswith("Continues when the app is resumed")
    SyncPause.objects.create(paused_by="anna")
    assert text_of(page(admin, app).text, files).endswith("Continues when syncing is resumed")


def test_open_circuit_delays_next_attempt_unless_requested(admin: Client, app: App) -> None:
    watch = failing(app, "docs", next_sync_at=timezone.now(), retry_count=3)
    watch.repository.circuit_open_until = timezone.now() + timedelta(minutes=20, seconds=30)
    watch.repository.save()
    assert text_of(page(admin, app).text, watch).endswith("Next try in 20 min")
    retry_single(Actor.system(), watch)
    assert text_of(page(admin, app).text, watch).endswith("Next try when a worker is free")


def test_running_sync_shows_bar_and_files(admin: Client, app: App) -> None:
    leased = {"status": Status.SCANNING, "lease_until": timezone.now() + timedelta(seconds=20)}
    watch = make_watch(app, "docs", **leased)
    SyncRun.objects.create(
        watch=watch, app_name="Portal", repository_name="acme/docs", reason="change", requested_by="sweep", generation=1,
        started_at=timezone.now(), files_total=10_000, files_done=4_400,
    )  # fmt: skip
    text = page(admin, app).text
    assert 'value="44"' in text
    assert text_of(text, watch) == "4,400 / 10,000 files"
    polled = admin.get("/admin/live/", {"ids": watch.pk, "files": "1"}).text
    assert f'id="row-progress-{watch.pk}" hx-swap-oob="true">4,400 / 10,000 files' in polled
    assert f"ids={watch.pk}&files=1" in unescape(polled)
    assert "row-progress-" not in admin.get("/admin/live/", {"ids": watch.pk}).text  # other lists do not show them


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["acme/docs", "acme/site", "acme/web", "other/docs"]),
        ({"q": "docs"}, ["acme/docs", "other/docs"]),
        ({"q": "ACME/do"}, ["acme/docs"]),
        ({"q": "github.com/acme/site"}, ["acme/site"]),
        ({"q": "%"}, []),
        ({"status": "failed"}, ["acme/web"]),
        ({"status": "failing"}, ["acme/site", "acme/web"]),
        ({"status": "synced", "q": "docs"}, ["acme/docs", "other/docs"]),
        ({"status": "nonsense"}, ["acme/docs", "acme/site", "acme/web", "other/docs"]),
        ({"o": "-repository"}, ["other/docs", "acme/web", "acme/site", "acme/docs"]),
        ({"o": "files"}, ["other/docs", "acme/docs", "acme/web", "acme/site"]),
        ({"o": "-files"}, ["acme/site", "acme/web", "acme/docs", "other/docs"]),
        ({"o": "status"}, ["acme/web", "acme/site", "acme/docs", "other/docs"]),
        ({"o": "-synced"}, ["acme/web", "acme/docs", "acme/site", "other/docs"]),
        ({"o": "synced", "q": " docs "}, ["other/docs", "acme/docs"]),
        ({"o": "app__client_auth_key"}, ["acme/docs", "acme/site", "acme/web", "other/docs"]),
    ],
)
def test_table_is_searched_filtered_and_sorted(admin: Client, app: App, query, found: list[str]) -> None:
    now = timezone.now()
    make_watch(app, "docs", tree_files=20, last_synced_at=now - timedelta(hours=1))
    failing(app, "site", status=Status.PENDING, tree_files=40)
    failing(app, "web", tree_files=30, last_synced_at=now)
    other = make_watch(app, "else", tree_files=10)
    other.repository.owner, other.repository.name = "other", "docs"
    other.repository.canonical_url = "https://gitlab.com/other/docs"
    other.repository.save()
    AppRepository.objects.filter(pk=other.pk).update(github_url=other.repository.canonical_url)
    make_watch(make_app("Search"), "docs")
    make_watch(app, "unwatched", ended_at=now)
    assert names(page(admin, app, **query).text) == found
    assert names(live(admin, app, **query).text) == found


def test_search_and_status_filter_the_table_but_sorting_does_not() -> None:
    queries = {"q": "x"}, {"status": "failing"}, {"o": "files"}
    assert [app_detail.TableQuery.parse(query).is_filtered for query in queries] == [True, True, False]


def test_headings_show_and_reverse_the_sort_order(admin: Client, app: App) -> None:
    make_watch(app, "docs")
    text = unescape(page(admin, app, q="docs", p="1", o="files").text)
    assert text.count("aria-sort=") == 1
    assert re.search(r'aria-sort="ascending"><a id="sort-files" href="\?q=docs&o=-files#repositories"', text)
    assert 'id="sort-status" href="?q=docs&o=status#repositories"' in text
    assert 'aria-sort="descending"' in page(admin, app, o="-files").text


def test_large_table_is_paged_and_links_keep_the_query(admin: Client, app: App) -> None:
    for number in range(120):
        make_watch(app, f"docs-{number:03}")
    text = page(admin, app, q="docs", o="-repository", p="2").text
    assert len(names(text)) == app_detail.PER_PAGE
    assert names(text)[0] == "acme/docs-069"
    assert "Page 2 of 3" in text
    for shown in (text, live(admin, app, q="docs", o="-repository", p="2", operations="").text):
        assert 'href="?q=docs&o=-repository&p=3"' in unescape(shown)
        assert 'href="?q=docs&o=-repository&p=1"' in unescape(shown)
    for nonsense in ("x", "-1", "99", "9" * 9):
        assert len(names(page(admin, app, p=nonsense).text)) in {20, 50}


def test_polls_repeat_the_query_of_the_page(admin: Client, app: App) -> None:
    make_watch(app, "docs")
    text = unescape(page(admin, app, q="do cs", status="synced").text)
    assert f'hx-get="/admin/live/app/{app.pk}/?q=do+cs&status=synced"' in text
    assert 'hx-trigger="every 5s, docora:refresh"' in text
    refreshed = unescape(live(admin, app, q="docs", operations="").text)
    assert 'role="search"' not in refreshed.split('id="app-table"')[1]  # typed text is not replaced
    assert f"next={APPS}{app.pk}/change/%3Fq%3Ddocs" in refreshed  # the buttons return to the page


def test_focusable_elements_have_ids(admin: Client, app: App) -> None:
    for number in range(60):
        file_failing(failing(app, f"docs-{number}"), "a.md")
    resync_by_app(Actor.command(), app)
    cancel_operation(Actor.command(), resync_by_app(Actor.command(), app))
    AppRepository.objects.update(failing_since=timezone.now(), root_cause="http_5xx")
    refreshed = live(admin, app, operations="gone").text.split('<div id="app-operations">')[1]
    refreshed = re.sub(
        '<form class="table-search".*?</form>|<p class="live-bar".*?</p>', "", refreshed, flags=re.DOTALL
    )
    focusable = re.findall(r"<(?:a|button|select|input(?! type=\"hidden\"))\b[^>]*>", refreshed)
    assert len(focusable) > 150
    assert [tag for tag in focusable if " id=" not in tag] == []


def test_poll_refreshes_failing_files_and_recent_operations(admin: Client, app: App) -> None:
    """An operation that ends leaves its box and is listed with its result."""

    def part(text: str, name: str, after: str) -> str:
        return text.split(f'id="{name}"')[1].split(after)[0]

    watch = failing(app, "docs")
    operation = resync_by_app(Actor.command(), app)
    before = live(admin, app, operations=str(operation.pk)).text
    assert "Undelivered" not in before
    assert "No other bulk operations yet." in part(before, "app-recent", "</section>")
    file_failing(watch, "a.md")
    AppRepository.objects.update(files_failing=1)
    cancel_operation(Actor.command(), operation)
    after = live(admin, app, operations=str(operation.pk)).text
    assert "Failing files (1)" in part(after, "app-failing-files", "</section>")
    assert "Cancelled by" in part(after, "app-recent", "</section>")
    assert f"progress-{operation.operation_id}" not in after
    assert f"&next={APPS}{app.pk}/change/" in unescape(part(after, "app-failing-files", "</section>"))
    watch.failures.all().delete()
    assert "Undelivered" not in live(admin, app).text


def test_empty_table_says_what_to_do_first(admin: Client, viewer: Client, app: App) -> None:
    text = page(admin, app).text
    assert "This app doesn't watch any repositories yet." in text
    assert "Watch a repository" in text
    assert "Repositories of this app" not in text
    assert "Why was this file" not in text
    assert "apprepository/add/" not in page(viewer, app).text
    make_watch(app, "docs")
    assert "No matching repositories." in page(admin, app, q="nothing").text


def test_row_buttons_need_their_permissions(admin: Client, viewer: Client, operator: Client, app: App) -> None:
    watch, well = failing(app, "docs"), make_watch(app, "site")
    text = unescape(page(admin, app).text)
    assert f'action="/admin/deliveries_app/apprepository/{watch.pk}/retry/?next={APPS}{app.pk}/change/"' in text
    assert f'id="retry-{well.pk}"' not in text
    for name in ("resync", "unwatch"):
        assert f'id="{name}-{watch.pk}"' in text
        assert f'id="{name}-{well.pk}"' in text
    assert "Retry all failed (1)" in text
    bulk = re.search(r'id="retry-failed"[^>]*href="([^"]+)"', text)
    assert bulk
    assert bulk[1].endswith(f"&next={APPS}{app.pk}/change/")
    asked = admin.get(bulk[1])
    assert [row.pk for row in asked.context["impact"].sample] == [watch.pk]
    assert admin.post(f"/admin/deliveries_app/apprepository/{watch.pk}/retry/?next={APPS}{app.pk}/change/").url == (
        f"{APPS}{app.pk}/change/"
    )
    for shown in (page(operator, app).text, live(operator, app).text):
        assert "force-resync" in shown
        assert "retry-" not in shown
        assert "unwatch-" not in shown
    for shown in (page(viewer, app).text, live(viewer, app).text):
        assert not re.search(r"force-resync|/retry/|/delete/|retry-failed", shown)


def test_table_needs_permission_to_view_watches(app: App) -> None:
    watch = failing(app, "docs")
    file_failing(watch, "a.md")
    blind = staff("bob", "view_app", "resync_apprepository", "retry_apprepository")
    for shown in (page(blind, app), live(blind, app)):
        assert shown.status_code == 200
        assert "acme/docs" not in shown.text
        assert "a.md" not in shown.text
        assert "force-resync" not in shown.text
        assert "permission to view watched repositories" in shown.text


def test_fragment_needs_permission_to_view_apps(client: Client, admin: Client, app: App) -> None:
    assert live(client, app).status_code == 401
    assert "Sign in again" in live(client, app).text
    assert live(staff("norbert", "view_apprepository"), app).status_code == 403
    assert live(staff("vera", *(f"view_{model}" for model in VIEWS)), app).status_code == 200
    assert client.post(f"/admin/live/app/{app.pk}/").status_code == 405
    App.objects.update(ended_at=timezone.now())
    assert live(admin, app).status_code == 404


def test_operation_boxes_are_sent_only_when_the_set_changes(admin: Client, app: App) -> None:
    make_watch(app, "docs")
    operation = resync_by_app(Actor.command(), app)
    assert f'name="operations" value="{operation.pk}"' in page(admin, app).text
    assert f"progress-{operation.operation_id}" in live(admin, app, operations="").text
    assert 'id="app-operations"' not in live(admin, app, operations=str(operation.pk)).text
    SyncRun.objects.update(outcome=Outcome.SUCCEEDED, ended_at=timezone.now())
    BulkOperation.objects.update(ended_at=timezone.now())
    assert '<div id="app-operations">' in live(admin, app, operations=str(operation.pk)).text


def test_ended_operations_are_listed_with_outcomes(admin: Client, app: App) -> None:
    other = make_app("Search")
    for name in ("docs", "site"):
        make_watch(app, name)
        make_watch(other, name)
    make_watch(make_app("Newsletter"), "docs")
    resync_many(Actor.command(), AppRepository.objects.exclude(app=app))
    ours, _ = resync_by_app(Actor.command(), app), resync_by_app(Actor.command(), other)
    both = resync_many(Actor.command(), AppRepository.objects.all())
    SyncRun.objects.update(outcome=Outcome.SUCCEEDED, started_at=timezone.now(), ended_at=timezone.now())
    BulkOperation.objects.update(ended_at=timezone.now())
    context = page(admin, app).context
    assert context["operations"] == []
    assert [shown["operation"] for shown in context["recent"]] == [both, ours]
    text = page(admin, app).text
    assert "2 repositories: 2 succeeded" in text
    link = re.search(r'href="([^"]+)">All sync runs of this app', text)
    assert link
    assert {run.app_name for run in admin.get(unescape(link[1])).context["cl"].result_list} == {"Portal"}


def test_failing_files_of_all_repositories_are_grouped(admin: Client, app: App, monkeypatch) -> None:
    docs, site = failing(app, "docs"), failing(app, "site")
    for number in range(30):
        file_failing(docs, f"docs/{number}.md", minutes_ago=100 + number)
        file_failing(site, f"site & co/{number}.md", minutes_ago=number)
    file_failing(failing(make_app("Search"), "docs"), "of another app")
    DeliveryFailure.objects.filter(path="docs/0.md").update(kind="skipped")
    DeliveryFailure.objects.filter(path__in=["docs/1.md", "docs/2.md"]).update(status_code=None, message="Too slow.")
    files = page(admin, app).context["failing_files"]
    assert (files.count, files.is_more, files.more_groups) == (59, False, 0)
    assert [(group.title, group.count, group.watches) for group in files.groups] == [
        ("HTTP 500", 57, 2),
        ("Too slow", 2, 1),
    ]
    assert len(files.groups[0].listed) == failing_files.LISTED_FILES_OF_APP
    assert [row.path for row in files.groups[0].listed[:2]] == ["site & co/0.md", "site & co/1.md"]
    text = unescape(page(admin, app).text)
    assert "</strong> · 57 files in 2 repositories" in text
    assert "The newest 10 of 57 files." in text
    assert f"apprepository/{site.pk}/why/?path=site%20%26%20co%2F0.md" in text
    assert "<b>boom" not in page(admin, app).text
    monkeypatch.setattr(failing_files, "READ_FILES", 20)
    assert "Failing files (more than 20)" in page(admin, app).text


def test_operating_and_settings_are_on_tabs_of_their_own(admin: Client, app: App) -> None:
    make_watch(app, "site")
    resync_by_app(Actor.command(), app)
    file_failing(failing(app, "docs"), "a.md")
    operate, settings = page(admin, app).text, admin.get(f"{APPS}{app.pk}/settings/").text
    for part in ("hx-get", 'name="q"', 'name="path"', "/retry/", "force-resync", "/cancel/", "Pause app"):
        assert part in operate
        assert part not in settings.replace('<input type="search" name="q"', "")
    for part in ('name="base_url"', "Rotate key", "Rotate token", 'id="tokens"', f"{APPS}{app.pk}/delete/"):
        assert part in settings
        assert part not in operate
    for text, name, address in ((operate, "Operate", "change"), (settings, "Settings", "settings")):
        current = re.findall(r'<a href="([^"]+)" aria-current="page">(\w+)</a>', text.partition('class="tabs"')[2])
        assert current == [(f"{APPS}{app.pk}/{address}/", name)]


def test_settings_are_saved_from_their_tab_and_from_the_usual_url(admin: Client, app: App) -> None:
    form = admin.get(f"{APPS}{app.pk}/settings/").context["adminform"].form
    posted = {name: form[name].value() or "" for name in form.fields}
    for address in ("settings", "change"):
        url = f"{APPS}{app.pk}/{address}/"
        wrong = admin.post(url, posted | {"base_url": "ftp://x.example"})
        assert "The base URL must start with" in wrong.text
        assert f'<a href="/admin/deliveries_app/app/{app.pk}/settings/" aria-current="page">Settings</a>' in wrong.text
        saved = admin.post(url, posted | {"name": f"Portal {address}", "_save": "1"})
        assert saved.url == f"{APPS}{app.pk}/change/"
        assert admin.post(url, posted | {"name": f"Portal {address}", "_continue": "1"}).url == url
        app.refresh_from_db()
        assert app.name == f"Portal {address}"


def test_viewer_reads_the_settings(app: App) -> None:
    viewer = staff("vera", "view_app")
    settings = viewer.get(f"{APPS}{app.pk}/settings/").text
    assert app.base_url in settings
    assert 'name="base_url"' not in settings
    assert viewer.post(f"{APPS}{app.pk}/settings/", {"name": "Other"}).status_code == 403
    assert staff("carl").get(f"{APPS}{app.pk}/settings/").status_code == 403


def test_app_is_paused_and_resumed_from_its_page(admin: Client, app: App) -> None:
    viewer = staff("vera", "view_app")
    assert "Pause app" not in page(viewer, app).text
    assert viewer.post(f"{APPS}{app.pk}/pause/").status_code == 403
    assert "Portal is paused." in admin.post(f"{APPS}{app.pk}/pause/", follow=True).text
    app.refresh_from_db()
    assert app.paused
    answer = admin.post(f"{APPS}{app.pk}/resume/", follow=True).text
    assert "Portal is resumed." in answer
    assert "Pause app" in answer
    app.refresh_from_db()
    assert not app.paused
    assert messages(by_users()) == ["Paused", "Resumed"]


def test_query_count_is_constant(admin: Client, app: App) -> None:
    def count(*urls: str) -> list[int]:
        counts = []
        for url in urls:
            with CaptureQueriesContext(connection) as queries:
                assert admin.get(url).status_code == 200
            counts.append(len(queries))
        return counts

    def add(numbers: range) -> None:
        for number in numbers:
            watch = failing(app, f"docs-{number}", status=[Status.FAILED, Status.SCANNING][number % 2])
            file_failing(watch, f"{number}.md")
            SyncRun.objects.create(
                watch=watch, app_name="Portal", repository_name="x", reason="change", requested_by="x", generation=1
            )

    urls = f"{APPS}{app.pk}/change/", f"/admin/live/app/{app.pk}/?q=docs&status=failing&o=-files"
    add(range(3))
    count(*urls)
    few = count(*urls)
    add(range(3, 300))
    assert count(*urls) == few
    assert max(few) <= 24
