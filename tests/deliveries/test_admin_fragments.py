"""Progress fragments: live numbers, the end of polling, and final summaries."""

import hashlib
import json
import re
from datetime import timedelta
from html import unescape

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    BulkOperation,
    Delivery,
    DriftCheck,
    DriftKind,
    DriftState,
    Outcome,
    Status,
    SyncRun,
)
from deliveries_app.models.root_causes import RootCause
from deliveries_app.progress import live, runs
from deliveries_app.services import cancel_operation, resync_by_app, resync_many
from deliveries_app.services.requests import Rollout
from docora.redis import live_counters
from docora.templatetags.docora import badge
from repositories_app.models import Repository
from tests.support.staff import fail, make_app, make_watch, staff

LIST = "/admin/deliveries_app/apprepository/"


@pytest.fixture
def user(db) -> User:
    return User.objects.create_superuser("anna", password="x")


@pytest.fixture
def admin(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def operation(user: User) -> BulkOperation:
    app = make_app("Portal")
    for name in ("docs", "site", "web"):
        make_watch(app, name)
    return resync_by_app(Actor.of_user(user), app)


def fragment(client: Client, operation: BulkOperation, **query: str) -> str:
    return client.get(f"/admin/progress/{operation.operation_id}/", query, HTTP_HX_REQUEST="true").text


def begin(run: SyncRun, files_done: int) -> None:
    run.refresh_from_db()
    runs.set_totals(run, files=100, size=5_000, left_out={}, commit="a" * 40)
    runs.count(run, files_done=files_done, bytes_done=files_done * 50, files_failed=0)
    runs.show(run, files_done=files_done, bytes_done=files_done * 50, files_failed=0)


def end(run: SyncRun, outcome: Outcome) -> None:
    SyncRun.objects.filter(pk=run.pk).update(outcome=outcome, ended_at=timezone.now())
    assert run.operation_id is not None
    runs.close_operations([run.operation_id])


def test_running_operation_is_polled_every_two_seconds(admin: Client, operation: BulkOperation) -> None:
    begin(operation.runs.order_by("pk")[0], 50)
    shown = fragment(admin, operation)
    assert 'hx-trigger="every 2s"' in shown
    assert "50 / 300 files" in shown
    assert 'value="16"' in shown
    live_counters.advance(operation.operation_id, files_done=100)
    assert "150 / 300 files" in fragment(admin, operation)


def test_numbers_come_from_rows_without_redis(admin: Client, operation: BulkOperation, valkey_server) -> None:
    begin(operation.runs.order_by("pk")[0], 50)
    valkey_server.stop()
    assert "50 / 300 files" in fragment(admin, operation)


def test_finished_operation_is_final_and_is_not_shown_again(admin: Client, operation: BulkOperation) -> None:
    page = f"/admin/deliveries_app/app/{operation.app_id}/change/"
    for run in operation.runs.all():
        begin(run, 100)
        end(run, Outcome.SUCCEEDED)
    shown = fragment(admin, operation)
    assert "hx-get" not in shown
    assert 'data-outcome="succeeded"' in shown
    assert "3 repositories: 3 succeeded" in shown
    assert f"progress-{operation.operation_id}" not in admin.get(page).text


def test_cancelled_operation_shows_what_was_sent(admin: Client, user: User, operation: BulkOperation) -> None:
    full, half, _ = operation.runs.order_by("pk")
    begin(full, 100)
    end(full, Outcome.SUCCEEDED)
    begin(half, 44)
    cancel_operation(Actor.of_user(user), operation)
    expected = (
        "Cancelled by anna. 1 repository had been sent in full; "
        "acme/site stopped after 44 of 100 files; 1 had not started."
    )
    assert expected in fragment(admin, operation)


def test_operation_is_shown_on_every_page_it_concerns(admin: Client, user: User, operation: BulkOperation) -> None:
    search, bystander = make_app("Search"), make_app("Bystander")
    make_watch(search, "docs")
    make_watch(bystander, "docs")
    both = resync_many(Actor.of_user(user), AppRepository.objects.exclude(app=bystander))
    box = f"progress-{both.operation_id}"
    assert box in admin.get(LIST).text
    assert box in admin.get(f"/admin/deliveries_app/app/{search.pk}/change/").text
    assert box not in admin.get(f"/admin/deliveries_app/app/{bystander.pk}/change/").text


@pytest.mark.parametrize("page", [LIST, "/admin/deliveries_app/failedsync/"])
def test_lists_say_what_a_running_operation_does(admin: Client, operation: BulkOperation, page: str) -> None:
    shown = admin.get(page).text
    box = shown.split(f'id="progress-{operation.operation_id}"')[1].split("</section>")[0]
    assert box.split(">", 1)[0].split("\n")[0].endswith('data-outcome="running"')
    assert "Queued</span>" in box
    assert "#docora-dot" not in box  # the icon of a badge without a state


def test_screen_reader_text_changes_every_ten_percent(admin: Client, operation: BulkOperation) -> None:
    first = operation.runs.order_by("pk")[0]
    begin(first, 90)  # 30 percent of the operation
    spoken = f'id="spoken-{operation.operation_id}"'
    assert spoken in fragment(admin, operation)
    assert spoken not in fragment(admin, operation, announced="30")
    assert spoken in fragment(admin, operation, announced="20")


def test_list_polls_only_active_rows(admin: Client, db) -> None:
    app = make_app("Portal")
    quiet, busy = make_watch(app, "docs"), make_watch(app, "site", status=Status.SCANNING)
    page = admin.get(LIST).text
    assert f'hx-get="/admin/live/?ids={busy.pk}"' in page
    shown = admin.get(f"/admin/live/?ids={busy.pk}").text
    assert f'id="live-{busy.pk}"' in shown
    assert f'id="live-{quiet.pk}"' not in shown
    AppRepository.objects.update(status=Status.SYNCED, next_sync_at=None)
    ended = admin.get(f"/admin/live/?ids={busy.pk}").text
    assert "Up to date" in ended
    assert "hx-get" not in ended


def test_due_watch_is_polled_though_it_was_synced_before(admin: Client, db) -> None:
    """For example after its patterns were changed."""
    watch = make_watch(make_app("Portal"), "docs")
    AppRepository.objects.update(next_sync_at=timezone.now())
    shown = admin.get(f"/admin/live/?ids={watch.pk}").text
    assert "Queued" in shown
    assert f"ids={watch.pk}" in shown
    assert "hx-get" in admin.get(f"/admin/live/{watch.pk}/").text


def test_row_of_a_removed_watch_says_so(admin: Client, db) -> None:
    watch = make_watch(make_app("Portal"), "docs", status=Status.SCANNING)
    AppRepository.objects.update(ended_at=timezone.now())
    shown = admin.get(f"/admin/live/?ids={watch.pk}").text
    assert f'id="live-{watch.pk}"' in shown
    assert "No longer watched" in shown
    assert "hx-get" not in shown
    assert admin.get(f"/admin/live/{watch.pk}/", HTTP_HX_REQUEST="true").status_code == 404


def test_removed_watches_are_not_counted_as_unreleased(admin: Client, user: User, db) -> None:
    watches = [make_watch(make_app("Portal"), name) for name in ("docs", "site", "web")]
    operation = resync_many(Actor.of_user(user), AppRepository.objects.all(), rollout=Rollout(pace=1))
    operation.pending.filter(watch=watches[2]).delete()
    released, unreleased = operation.runs.count(), operation.pending.count()
    page = admin.get(f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/").text
    assert f"{unreleased} not released yet" in page
    assert f"All {released + unreleased}" in " ".join(re.sub(r"<[^>]+>", " ", page).split())


@pytest.mark.parametrize("query", ["operation=999999", "cause=nonsense"])
def test_unknown_operation_or_cause_matches_no_failed_sync(admin: Client, db, query: str) -> None:
    fail(make_watch(make_app("Portal"), "docs"), RootCause.TIMEOUT)
    assert "acme/docs" in admin.get("/admin/deliveries_app/failedsync/").text
    assert "acme/docs" not in admin.get(f"/admin/deliveries_app/failedsync/?{query}").text


def test_focusable_elements_of_polled_parts_have_ids(admin: Client, operation: BulkOperation) -> None:
    """htmx restores the focus by id."""
    run = operation.runs.select_related("watch")[0]
    check = DriftCheck.objects.create(
        watch=run.watch, state=DriftState.DIFFERS, ended_at=timezone.now(), missing=1, listed=1, sent_run=run.run_id
    )
    check.files.create(path="a.md", kind=DriftKind.MISSING)
    progress = f"/admin/progress/{operation.operation_id}/?page=1"
    for address in (progress, "/admin/live/queue/", f"/admin/live/checks/{check.pk}/"):
        focusable = re.findall(r"<(?:a|button|summary)\b[^>]*>", admin.get(address).text)
        assert len(focusable) > 2
        assert [tag for tag in focusable if " id=" not in tag] == []


def test_polling_ends_with_a_deleted_operation(admin: Client, db) -> None:
    answer = admin.get("/admin/progress/bulk_gone/", HTTP_HX_REQUEST="true")
    assert answer.status_code == 404
    assert "hx-get" not in answer.text


def test_watch_page_shows_run_failures_and_cancel(admin: Client, operation: BulkOperation) -> None:
    run = operation.runs.order_by("pk")[0]
    begin(run, 50)
    page = admin.get(f"{LIST}{run.watch_id}/change/").text
    assert "50 / 100 files" in page
    assert "Cancel" in page
    admin.post(f"/admin/deliveries_app/apprepository/{run.watch_id}/cancel/")
    run.refresh_from_db()
    assert run.outcome == Outcome.CANCELLED


FILE = {"cause": "http", "status_code": 500, "message": "The app returned HTTP 500.", "attempts": 3}


def retrying(app: App, *paths: str) -> tuple[AppRepository, SyncRun]:
    """Return a watch whose retry is running, after these files have failed, and the run."""
    now = timezone.now()
    watch = make_watch(
        app, "docs", status=Status.SCANNING, lease_until=now + timedelta(seconds=20), failing_since=now, next_sync_at=now,
        root_cause="http_5xx", last_error="The app returned HTTP 500.", files_failing=len(paths),
    )  # fmt: skip
    for path in paths:
        digest = hashlib.sha256(path.encode()).hexdigest()
        watch.failures.create(path=path, path_digest=digest, first_at=now, last_at=now, **FILE)
    run = watch.runs.create(
        app_name="Portal", repository_name="acme/docs", reason="retry", requested_by="user:anna", generation=1,
        started_at=now, files_total=len(paths),
    )  # fmt: skip
    return watch, run


def syncing(app: App) -> AppRepository:
    """Return a watch that is syncing and not failing."""
    watch, _ = retrying(app)
    AppRepository.objects.update(failing_since=None, last_error="", root_cause="")
    return watch


def start_failing(error: str, root_cause: str) -> None:
    AppRepository.objects.update(
        failing_since=timezone.now(), last_error=error, root_cause=root_cause, status=Status.PENDING
    )


def succeed(watch: AppRepository, run: SyncRun) -> None:
    now = timezone.now()
    watch.failures.all().delete()
    watch.runs.filter(pk=run.pk).update(outcome=Outcome.SUCCEEDED, ended_at=now, files_done=run.files_total)
    AppRepository.objects.filter(pk=watch.pk).update(
        status=Status.SYNCED, lease_until=None, failing_since=None, root_cause="", last_error="", files_failing=0,
        last_synced_at=now, next_sync_at=None,
    )  # fmt: skip


def poll(client: Client, url: str, page: str) -> str:
    return client.get(url, HTTP_HX_REQUEST="true", HTTP_HX_CURRENT_URL=f"http://testserver{page}").text


def without_tokens(html: str) -> str:
    return re.sub('name="csrfmiddlewaretoken" value="[^"]*"', "", html)


def content_of(live: str) -> str:
    """Return the content of a page that is refreshed as a whole, without the pause banner that follows it."""
    return without_tokens(live.split('<div id="sync-pause"')[0].strip())


def selected(page: str) -> list[str]:
    """Return the ids of the elements that the page takes from its own content when it polls."""
    [names] = re.findall('hx-select-oob="([^"]*)"', page)
    return [name.removeprefix("#") for name in names.split(",")]


def poll_url(page: str, watch: AppRepository) -> str:
    [url] = re.findall(f'hx-get="(/admin/live/{watch.pk}/[^"]*)"', page)
    return unescape(url)


def test_last_poll_of_a_watch_shows_what_a_reload_shows(admin: Client, db) -> None:
    watch, run = retrying(make_app("Portal"), "a.md", "b.md")
    page = f"{LIST}{watch.pk}/change/"
    url = poll_url(admin.get(page).text, watch)
    assert "HX-Trigger" not in admin.get(url).headers
    succeed(watch, run)
    last = admin.get(url)
    assert "hx-get" not in last.text
    assert json.loads(last.headers["HX-Trigger"]) == {"docora:refresh": {"target": "#watch-live"}}
    reloaded = admin.get(page).text
    assert last.text.split('<span id="spoken"')[0].strip() in reloaded
    assert content_of(poll(admin, f"/admin/live/watch/{watch.pk}/?active=0", page)) in without_tokens(reloaded)
    for text in ("HTTP 500", "Retry</button>", " failed<", " failing<", "In progress"):
        assert text not in reloaded


def test_watch_s_page_refreshes_once_it_fails(admin: Client, db) -> None:
    watch = syncing(make_app("Portal"))
    page = f"{LIST}{watch.pk}/change/"
    for name in selected(admin.get(page).text):
        assert admin.get(page).text.count(f'id="{name}"') == 1, name
    start_failing("The app returned HTTP 500.", "http_5xx")
    failed = poll(admin, f"/admin/live/watch/{watch.pk}/?active=1", page)
    assert '<p class="errornote">The app returned HTTP 500.</p>' in failed
    assert "Retry</button>" in failed


def test_last_poll_of_a_run_shows_what_a_reload_shows(admin: Client, db) -> None:
    watch, run = retrying(make_app("Portal"), "a.md")
    page = f"/admin/deliveries_app/syncrun/{run.pk}/change/"
    url = poll_url(admin.get(page).text, watch)
    assert "run-fields" not in poll(admin, url, page)
    growing = [f"<dt>{name}</dt>" for name in ("Duration", "Files", "Sent")]
    assert not any(name in admin.get(page).text for name in growing)  # they would stay as they are until the end
    succeed(watch, run)
    last = poll(admin, url, page)
    assert "hx-get" not in last
    assert without_tokens(last.split('<span id="spoken"')[0].strip()) in without_tokens(admin.get(page).text)
    for name in selected(last):
        assert last.count(f'id="{name}"') == 1, name
    assert "<dt>Ended</dt>" in last
    assert all(name in last for name in growing)
    assert "HTTP 500" not in last


@pytest.mark.parametrize("table", ["list", "repository"])
def test_row_that_settles_shows_what_a_reload_shows(admin: Client, db, table: str) -> None:
    watch, run = retrying(make_app("Portal"), "a.md", "b.md")
    page = {"list": LIST, "repository": f"/admin/repositories_app/repository/{watch.repository_id}/change/"}[table]
    [url] = re.findall(r'hx-get="(/admin/live/\?[^"]*)"', admin.get(page).text)
    ordinary = poll(admin, unescape(url), page)
    assert ordinary.count("hx-swap-oob") == 1  # the status
    succeed(watch, run)
    last = poll(admin, unescape(url), page)
    assert "hx-get" not in last
    cells = re.findall(r'<(div|span) id="(?!live)(\w+)-\d+"([^>]*) hx-swap-oob="true">(.*?)</\1>', last)
    assert {name for _, name, *_ in cells} == {"synced", "files", "problem", "buttons"}
    reloaded = admin.get(page).text
    for tag, name, attributes, content in cells:
        assert f'<{tag} id="{name}-{watch.pk}"{attributes}>{content}' in reloaded
    assert "Re-sync</a>" in last
    assert "Retry</button>" not in last
    assert "HTTP 500" not in last


def test_row_that_starts_failing_shows_the_error(admin: Client, db) -> None:
    watch = syncing(make_app("Portal"))
    query = f"/admin/live/?ids={watch.pk}"
    assert "problem-" not in poll(admin, query, LIST)
    start_failing("It broke.", "other")
    failed = poll(admin, query, LIST)
    assert "It broke." in failed
    assert "Retry</button>" in failed
    assert "problem-" not in poll(admin, f"{query}&failing={watch.pk}", LIST)
    assert f"{query}&failing={watch.pk}" in unescape(failed)


def add_delivery(
    watch: AppRepository, path: str, *, sequence: int, generation: int = 1, acknowledged: bool = True
) -> None:
    content = {"mode": "100644", "kind": "create", "sha": "a" * 64, "size": 1, "updated_at": timezone.now()}
    Delivery.objects.create(
        watch=watch, path=path, sequence=sequence, generation=generation, acknowledged=acknowledged, **content
    )


def test_delivery_states(admin: Client, db) -> None:
    watch = make_watch(make_app("Portal"), "docs", generation=5, resend_floor=5)
    add_delivery(watch, "told", sequence=1, generation=5)
    add_delivery(watch, "before", sequence=2, generation=4)
    add_delivery(watch, "unsure", sequence=3, generation=5, acknowledged=False)
    shown = admin.get("/admin/deliveries_app/delivery/").context["cl"]
    states = {row.path: shown.model_admin.state(row) for row in shown.result_list}
    assert [("Delivered" in states[path]) for path in ("told", "before", "unsure")] == [True, False, False]
    assert "Cleared" in states["before"]
    assert "Unconfirmed" in states["unsure"]


def test_deliveries_are_found_by_path_prefix(admin: Client, db) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    for number, path in enumerate(["src/a", "SRC/b", "src_/c", "lib/src/d"]):
        add_delivery(watch, path, sequence=number)
    found = admin.get("/admin/deliveries_app/delivery/", {"q": "src/"}).context["cl"].result_list
    assert [row.path for row in found] == ["src/a"]


@pytest.mark.parametrize("public_id", ["repo_0123456789abcdef01234567", "Portal-docs"], ids=["ours", "an imported one"])
def test_deliveries_are_found_by_repository_or_app_id(admin: Client, db, public_id: str) -> None:
    for number, name in enumerate(("docs", "site")):
        watch = make_watch(make_app(name), name)
        add_delivery(watch, name, sequence=number)
    app, repository = App.objects.get(name="docs"), Repository.objects.get(name="docs")
    for row, field in ((app, "app_id"), (repository, "repository_id")):
        type(row).objects.filter(pk=row.pk).update(**{field: public_id})
        found = admin.get("/admin/deliveries_app/delivery/", {"q": public_id}).context["cl"].result_list
        assert [delivery.path for delivery in found] == ["docs"]
        type(row).objects.filter(pk=row.pk).update(**{field: "another"})


def test_query_count_of_the_list_is_constant(admin: Client, db, django_assert_max_num_queries) -> None:
    app = make_app("Portal")
    for number in range(45):
        make_watch(app, f"many-{number}", status=Status.SCANNING, last_synced_at=timezone.now() - timedelta(hours=1))
    admin.get(LIST)
    with django_assert_max_num_queries(12):
        admin.get(LIST)
    everything = ",".join(str(pk) for pk in AppRepository.objects.values_list("pk", flat=True))
    with django_assert_max_num_queries(6):
        admin.get(f"/admin/live/?ids={everything}")
    assert live.of_runs([]) == {}


def test_open_circuit_cell_is_escaped_text(admin: Client, db) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    watch.repository.circuit_open_until = timezone.now() + timedelta(minutes=20)
    watch.repository.save()
    for url in (LIST, "/admin/repositories_app/repository/"):
        page = admin.get(url).text
        assert "open, next try" in page
        assert "&lt;time" not in page


def test_change_permission_includes_the_view_permission(watches) -> None:
    """As on the pages that poll these fragments."""
    client = staff("carl", "change_app", "change_apprepository", "change_delivery")
    (watch, *_) = watches
    fields = {"mode": "100644", "kind": "create", "source_key": "x", "sha": "0" * 64, "size": 1, "sequence": 1}
    delivery = Delivery.objects.create(
        watch=watch, path="a", generation=1, acknowledged=True, updated_at=timezone.now(), **fields
    )
    for url in (
        f"{LIST}{watch.pk}/change/", f"/admin/live/{watch.pk}/", f"/admin/live/?ids={watch.pk}",
        f"/admin/deliveries_app/app/{watch.app_id}/change/", f"/admin/live/app/{watch.app_id}/",
        f"/admin/deliveries_app/delivery/{delivery.pk}/change/", f"/admin/live/delivery/{delivery.pk}/",
        "/admin/deliveries_app/failedsync/", "/admin/live/failed/",
    ):  # fmt: skip
        assert client.get(url).status_code == 200, url


def test_watch_page_links_only_to_an_app_that_the_user_can_view(watches) -> None:
    page, link = f"{LIST}{watches[0].pk}/change/", f"/admin/deliveries_app/app/{watches[0].app_id}/change/"
    assert link in staff("anna", "view_apprepository", "view_app").get(page).text
    shown = staff("olga", "view_apprepository").get(page).text
    assert "Portal" in shown
    assert link not in shown


def test_poll_that_names_an_invalid_page(admin: Client) -> None:
    invalid = {"HX-Current-URL": "http://[invalid/"}
    assert Client().get("/admin/live/overview/", headers=invalid).status_code == 401
    assert admin.get("/admin/live/overview/", headers=invalid).status_code == 200


@pytest.mark.parametrize("path", ["bulkoperation/{}/cancel/", "bulkoperation/{}/continue/", "apprepository/{}/cancel/"])
def test_anonymous_cancel_redirects_to_the_sign_in_page(admin: Client, operation: BulkOperation, path: str) -> None:
    """The response does not reveal what exists."""
    existing = operation if path.startswith("bulkoperation") else AppRepository.objects.earliest("pk")
    for pk in (existing.pk, 999_999):
        url = f"/admin/deliveries_app/{path.format(pk)}"
        answer = Client().post(url)
        assert (answer.status_code, answer.url) == (302, "/admin/login/?next=/admin/")
    assert operation.runs.filter(outcome="").count() == 3


def test_settled_watch_page_refreshes_itself(admin: Client, db) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    fail(watch, RootCause.SERVER_ERROR, status=500, state=Status.FAILED)
    page, url = f"{LIST}{watch.pk}/change/", f"/admin/live/watch/{watch.pk}/"
    assert f'hx-get="{url}"' in admin.get(page).text
    App.objects.update(paused=True)
    answer = poll(admin, f"{url}?active=0", page)
    assert "The app is paused." in answer
    assert f'id="watch-progress-{watch.pk}"' in answer
    assert 'id="spoken"' not in answer
    assert content_of(answer) in without_tokens(admin.get(page).text)
    # While the page shows the watch as active, the progress polls for itself.
    assert f'id="watch-progress-{watch.pk}"' not in poll(admin, f"{url}?active=1", page)


def test_poll_of_the_app_page_updates_its_status_and_pause_button(admin: Client, db) -> None:
    app = make_app("Portal")
    page, url = f"/admin/deliveries_app/app/{app.pk}/change/", f"/admin/live/app/{app.pk}/"
    before = admin.get(page).text
    for name in selected(before):
        assert before.count(f'id="{name}"') == 1, name
    assert "Pause app" in before
    App.objects.update(paused=True, paused_reason="By a colleague.")
    answer = poll(admin, url, page)
    assert f'<dd id="app-status" data-live-part>{badge("paused", "Paused")} By a colleague.</dd>' in answer
    assert "Resume app</button>" in answer
    assert "Pause app" not in answer


def test_only_a_resync_of_the_whole_app_hides_its_button(admin: Client, operation: BulkOperation) -> None:
    page = f"/admin/deliveries_app/app/{operation.app_id}/change/"
    assert admin.get(page).text.count("resyncs-app") == 1
    BulkOperation.objects.update(total=1)  # as if only one of its repositories were re-synced
    assert "resyncs-app" not in admin.get(page).text
    BulkOperation.objects.update(total=2, kind="retry")
    assert "resyncs-app" not in admin.get(page).text
    BulkOperation.objects.update(kind="resync", app=None)
    assert "resyncs-app" not in admin.get(page).text
