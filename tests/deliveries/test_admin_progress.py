"""Progress in the admin: live from Redis, from rows without it, and polling that ends."""

import json
import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models.sql.compiler import SQLCompiler
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, Delivery, SyncRun
from deliveries_app.models.root_causes import RootCause
from deliveries_app.progress import live, runs
from deliveries_app.services import cancel_operation, resync_by_app, resync_many, resync_single
from docora.redis import live_counters
from docora.web.errors import NOT_FOUND
from tests.support.staff import fail, make_app, make_watch
from tests.support.world import World


@pytest.fixture
def operation(db) -> BulkOperation:
    app = make_app("Portal")
    for name in ("docs", "site", "big"):
        make_watch(app, name)
    return resync_many(Actor.system(), AppRepository.objects.all())


def fragment(client: Client, operation: BulkOperation) -> str:
    return client.get(f"/admin/progress/{operation.operation_id}/").text


def test_only_running_operations_poll(operator: Client, operation: BulkOperation) -> None:
    running = fragment(operator, operation)
    assert 'hx-trigger="every 2s"' in running
    assert "0 of 3 repositories" in running
    assert "0 / 300 files" in running
    SyncRun.objects.update(outcome="succeeded", ended_at=timezone.now(), started_at=timezone.now(), files_done=100)
    runs.close_operations([operation.pk])
    finished = fragment(operator, operation)
    assert "hx-get" not in finished
    assert 'value="100"' in finished
    assert "3 repositories: 3 succeeded" in finished
    assert "Succeeded</span>" in finished
    assert "Cancel</button>" not in finished


def test_poll_keeps_the_chosen_part_of_an_operation_s_page(operator: Client, operation: BulkOperation) -> None:
    page = operator.get(f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/?part=open").text
    [url] = re.findall(f'hx-get="(/admin/progress/{operation.operation_id}/[?][^"]*)"', page)
    for shown in (page, operator.get(unescape(url)).text):
        assert 'id="part-open" href="?part=open" aria-current="true"' in shown
        assert 'id="part-all" href="?">' in shown


def test_result_has_one_duration(operator: Client, operation: BulkOperation) -> None:
    """A second attempt or a pause resets the start time of the runs, so their duration is shorter."""
    now = timezone.now()
    SyncRun.objects.update(outcome="succeeded", ended_at=now, started_at=now - timedelta(seconds=5), files_done=100)
    ended = {"created_at": now - timedelta(seconds=52), "ended_at": now}
    BulkOperation.objects.filter(pk=operation.pk).update(**ended)
    assert "300 files (" in fragment(operator, operation)
    assert " in 52 s" in fragment(operator, operation)
    assert ", after 52 s" in operator.get(f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/").text


@pytest.mark.parametrize(
    ("state", "statements"), [("counted in Redis", 6), ("lost by Redis", 6), ("finished", 6), ("cancelled", 8)]
)
def test_poll_takes_few_statements(
    operator: Client, operation: BulkOperation, redis_client, django_assert_max_num_queries, state: str, statements: int
) -> None:
    """The last poll of a cancelled operation takes two more, to name the repositories that had started.

    On the operation's own page, each poll takes one more, for the numbers by outcome.
    """
    runs.seed(operation.runs.select_related("operation").order_by("pk")[0])
    run, watch = operation.runs.order_by("pk")[0], AppRepository.objects.order_by("pk")[0]
    if state == "lost by Redis":
        redis_client.flushall()
    elif state == "finished":
        SyncRun.objects.update(outcome="succeeded", ended_at=timezone.now(), started_at=timezone.now())
        runs.close_operations([operation.pk])
    elif state == "cancelled":
        SyncRun.objects.filter(pk=run.pk).update(started_at=timezone.now(), files_done=44)
        cancel_operation(Actor.system(), operation)
    pks = ",".join(map(str, AppRepository.objects.values_list("pk", flat=True)))
    run_pks = ",".join(map(str, operation.runs.values_list("pk", flat=True)))
    for path in (
        f"/admin/progress/{operation.operation_id}/?announced=0",
        f"/admin/progress/{operation.operation_id}/rows/?ids={run_pks}",
        f"/admin/live/?ids={pks}&files=1",
        f"/admin/live/{watch.pk}/?announced=0",
    ):
        with django_assert_max_num_queries(statements):
            assert operator.get(path).status_code == 200, path
    on_page = f"/admin/progress/{operation.operation_id}/?announced=0&page=1"
    with django_assert_max_num_queries(statements + 1):
        assert operator.get(on_page).status_code == 200


def test_poll_builds_no_sql(operator: Client, operation: BulkOperation, monkeypatch: pytest.MonkeyPatch) -> None:
    """That would take longer than all the rest of the poll. The first one may build what later ones execute."""
    live.seed_operation(operation)
    fragment(operator, operation)
    built: list[str] = []

    def as_sql(compiler: SQLCompiler, *options: Any, **named: Any) -> Any:
        built.append(str(compiler.query.model))
        return original(compiler, *options, **named)

    original = SQLCompiler.as_sql
    monkeypatch.setattr(SQLCompiler, "as_sql", as_sql)
    fragment(operator, operation)
    assert built == []


def test_poll_is_refused_at_once_after_losing_access(operator: Client, operation: BulkOperation) -> None:
    address = f"/admin/progress/{operation.operation_id}/"
    anna = User.objects.get(username="anna")
    assert operator.get(address).status_code == 200
    anna.user_permissions.clear()
    assert operator.get(address).status_code == 403
    User.objects.update(is_active=False)
    assert operator.get(address).status_code == 401


def test_poll_of_another_session_is_refused(operator: Client, operation: BulkOperation) -> None:
    fragment(operator, operation)
    other = Client()
    other.force_login(User.objects.create_user("clerk", is_staff=True))
    assert other.get(f"/admin/progress/{operation.operation_id}/").status_code == 403
    assert Client().get(f"/admin/progress/{operation.operation_id}/").status_code == 401


def test_numbers_come_from_redis_or_else_from_rows(operator: Client, operation: BulkOperation, redis_client) -> None:
    live.seed_operation(operation)
    assert live_counters.advance(operation.operation_id, files_done=42)
    assert "42 / 300 files" in fragment(operator, operation)
    SyncRun.objects.filter(pk=operation.runs.first().pk).update(files_done=17)  # type: ignore[union-attr]
    redis_client.flushall()
    assert "17 / 300 files" in fragment(operator, operation)


def test_redis_outage_makes_no_error_page(operator: Client, operation: BulkOperation, valkey_server) -> None:
    valkey_server.stop()
    assert "0 / 300 files" in fragment(operator, operation)
    url = f"/admin/deliveries_app/apprepository/force-resync/?ids={AppRepository.objects.first().pk}"  # type: ignore[union-attr]
    assert operator.post(url, {"post": "yes"}).status_code == 302
    assert AppRepository.objects.filter(generation=3).count() == 1


def test_row_that_is_retried_says_why(operator: Client, operation: BulkOperation) -> None:
    run = operation.runs.order_by("pk")[0]
    page = f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/"
    rows = f"/admin/progress/{operation.operation_id}/rows/?ids={run.pk}"
    why = f'<span id="run-error-{run.pk}">The app returned HTTP 500.</span>'
    assert why not in operator.get(page).text
    assert run.watch
    fail(run.watch, RootCause.SERVER_ERROR, status=500)
    AppRepository.objects.filter(pk=run.watch_id).update(last_error="The app returned HTTP 500.")
    assert why in operator.get(page).text
    assert why.replace(">", ' hx-swap-oob="true">', 1) in operator.get(rows).text
    SyncRun.objects.filter(pk=run.pk).update(outcome="failed", ended_at=timezone.now(), error="It gave up.")
    assert why not in operator.get(page).text
    assert "It gave up." in operator.get(page).text


def test_bar_is_never_full_before_the_end(operator: Client, operation: BulkOperation) -> None:
    live_counters.start(operation.operation_id, {"files_total": 300, "files_done": 5000, "started": 1, "completed": 9})
    page = fragment(operator, operation)
    assert 'value="99"' in page
    assert "300 / 300 files" in page
    assert "3 of 3 repositories" in page


def test_cancelled_operation_shows_what_was_sent(operator: Client, operation: BulkOperation) -> None:
    first, second, _ = operation.runs.order_by("pk")
    SyncRun.objects.filter(pk=first.pk).update(outcome="succeeded", ended_at=timezone.now(), files_done=100)
    SyncRun.objects.filter(pk=second.pk).update(started_at=timezone.now(), files_done=44)
    answer = operator.post(f"/admin/deliveries_app/bulkoperation/{operation.pk}/cancel/", follow=True)
    assert "Cancelled the sync of 2 repositories." in answer.text
    assert (
        "Cancelled by anna. 1 repository had been sent in full; acme/site → Portal stopped after 44 of 100 files; "
        "1 had not started. For repositories that were stopped partway, only changed files are sent from now on."
    ) in answer.text
    operation.refresh_from_db()
    assert operation.ended_at
    assert operation.operation_id not in operator.get("/admin/deliveries_app/apprepository/").text


def test_cancelled_operation_names_three_of_those_that_were_stopped_partway(operator: Client) -> None:
    app = make_app("Newsletter")
    for number in range(5):
        make_watch(app, f"book-{number}")
    operation = resync_by_app(Actor.system(), app)
    operation.runs.filter(pk__in=operation.runs.order_by("pk").values("pk")[:4]).update(started_at=timezone.now())
    cancel_operation(Actor.system(), operation)
    operation.refresh_from_db()
    text = fragment(operator, operation)
    assert text.count("stopped after 0 of 100 files; ") == 3
    assert "; others were also stopped partway; 1 had not started." in text


def test_cancelled_operation_says_that_none_was_sent(operator: Client, operation: BulkOperation) -> None:
    cancel_operation(Actor.system(), operation)
    operation.refresh_from_db()
    assert "No repository had been sent in full; 3 had not started." in fragment(operator, operation)


def test_second_click_on_cancel_keeps_the_earlier_request(operator: Client, watches: list[AppRepository]) -> None:
    earlier, _ = (resync_single(Actor.system(), watches[0]) for _ in range(2))
    page = f"/admin/deliveries_app/apprepository/{watches[0].pk}/change/"
    shown = re.search(r'id="cancel-watch"[^>]* name="run" value="(run_\w+)"', operator.get(page).text)
    assert shown
    cancel = page.replace("change", "cancel")
    assert "Re-sync cancelled." in operator.post(cancel, {"run": shown[1]}, follow=True).text
    assert "There is nothing to cancel." in operator.post(cancel, {"run": shown[1]}, follow=True).text
    assert SyncRun.objects.get(outcome="") == earlier


def test_viewer_can_look_but_not_cancel(viewer: Client, operation: BulkOperation) -> None:
    assert "0 of 3 repositories" in fragment(viewer, operation)
    assert viewer.post(f"/admin/deliveries_app/bulkoperation/{operation.pk}/cancel/").status_code == 403
    watch = AppRepository.objects.first()
    assert viewer.post(f"/admin/deliveries_app/apprepository/{watch.pk}/cancel/").status_code == 403  # type: ignore[union-attr]
    assert viewer.get(f"/admin/deliveries_app/bulkoperation/{operation.pk}/cancel/").status_code == 405
    assert SyncRun.objects.filter(outcome="").count() == 3


def test_poll_after_sign_out_gets_a_notice(client: Client, operation: BulkOperation) -> None:
    for url in (f"/admin/progress/{operation.operation_id}/", "/admin/live/?ids=1", "/admin/live/1/"):
        answer = client.get(url)
        assert answer.status_code == 401
        assert "Sign in again" in answer.text
        assert "<html" not in answer.text


def test_cells_of_active_rows_are_swapped_in_place(operator: Client, operation: BulkOperation) -> None:
    pks = list(AppRepository.objects.values_list("pk", flat=True))
    AppRepository.objects.filter(pk=pks[0]).update(status="synced", next_sync_at=None)
    page = operator.get(f"/admin/live/?ids={','.join(map(str, pks))}").text
    assert page.count('hx-swap-oob="true"') == 3 + 4  # each status, and the other cells of the one that has settled
    assert f"?ids={pks[1]},{pks[2]}" in page
    AppRepository.objects.update(status="synced", next_sync_at=None)
    assert "hx-get" not in operator.get(f"/admin/live/?ids={pks[0]}").text


def test_json_shows_the_same_numbers(operator: Client, operation: BulkOperation) -> None:
    data = operator.get(f"/admin/api/retry/progress/{operation.operation_id}").json()["data"]
    assert (data["operation_id"], data["total"], data["completed"]) == (operation.operation_id, 3, 0)
    assert (data["files_total"], data["files_done"], data["percent"], data["finished"]) == (300, 0, 0, False)


def test_second_resync_supersedes_the_older_operation(world: World, operator: Client) -> None:
    _, watch = world.watch({"a.txt": b"a"})
    world.settle()
    first = resync_many(Actor.system(), AppRepository.objects.all())
    second = resync_many(Actor.system(), AppRepository.objects.all())
    world.settle()
    first.refresh_from_db()
    second.refresh_from_db()
    assert first.ended_at
    assert second.ended_at
    assert (live.of_operation(first).superseded, live.of_operation(second).succeeded) == (1, 1)
    assert "1 superseded by a later request" in fragment(operator, first)
    assert Delivery.objects.get(watch=watch).acknowledged


def test_operation_says_that_a_later_request_is_in_progress(operator: Client, operation: BulkOperation) -> None:
    """A worker syncs the later one, so the older operation is neither syncing nor stalled."""
    later = resync_many(Actor.system(), AppRepository.objects.filter(repository__name="docs"))
    AppRepository.objects.filter(repository__name="docs").update(
        status="scanning", lease_until=timezone.now() + timedelta(seconds=20)
    )
    page = operator.get(f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/").text
    rows = re.findall(r"<tr>.*?</tr>", page.partition("<tbody>")[2], re.DOTALL)
    [row] = [row for row in rows if "acme/docs" in row]
    assert "Superseded" in row
    assert page.count("a later request is in progress") == 1
    SyncRun.objects.filter(operation=operation).exclude(repository_name="acme/docs").update(
        outcome="succeeded", ended_at=timezone.now()
    )
    shown = fragment(operator, operation)
    assert "Superseded</span>" in shown
    assert "A later request is in progress" in shown
    assert "Syncing</span>" in fragment(operator, later)
    older = operation.runs.get(repository_name="acme/docs")
    assert "a later request is in progress" in operator.get(f"/admin/deliveries_app/syncrun/{older.pk}/change/").text
    cancel_operation(Actor.system(), later)
    assert "Syncing</span>" in fragment(operator, operation)


def test_watch_shows_the_earlier_resync_after_the_later_was_cancelled(
    operator: Client, operation: BulkOperation
) -> None:
    watch = AppRepository.objects.get(repository__name="docs")
    later = resync_many(Actor.system(), AppRepository.objects.filter(pk=watch.pk))
    cancel_operation(Actor.system(), later)
    run = operation.runs.get(watch=watch)
    for page in (f"apprepository/{watch.pk}", f"syncrun/{run.pk}"):
        shown = operator.get(f"/admin/deliveries_app/{page}/change/").text
        assert f'hx-get="/admin/live/{watch.pk}/?announced=0' in shown
    assert 'id="cancel-watch"' in operator.get(f"/admin/live/watch/{watch.pk}/").text


def test_cancelling_twice_is_harmless(operation: BulkOperation) -> None:
    assert cancel_operation(Actor.system(), operation) == 3
    assert cancel_operation(Actor.system(), operation) == 0


# --- The admin JSON -----------------------------------------------------------------------------------------------------


def post(client: Client, url: str, body: object = None):
    return client.post(url, json.dumps(body) if body is not None else "", content_type="application/json")


def test_json_calls_follow_the_contract(operator: Client, operation: BulkOperation) -> None:
    watch = AppRepository.objects.select_related("app", "repository").first()
    assert watch
    ids = {"app_id": watch.app.app_id, "repository_id": watch.repository.repository_id}
    answer = post(operator, "/admin/api/resync", ids)
    assert answer.json() == {"data": {"message": "Re-sync queued", "job_id": f"{ids['app_id']}-{ids['repository_id']}"}}
    answer = post(operator, f"/admin/api/resync/app/{ids['app_id']}")
    data = answer.json()["data"]
    assert (data["message"], data["total"]) == ("Bulk re-sync started", 3)
    assert data["operation_id"].startswith("bulk_")
    answer = post(operator, f"/admin/api/retry/cancel/{data['operation_id']}")
    assert answer.json() == {"data": {"message": "Cancellation requested"}}
    listed = operator.get(f"/admin/api/repositories?app_id={ids['app_id']}&search=docs").json()["data"]
    assert [row["name"] for row in listed["repositories"]] == ["docs"]
    assert listed["repositories"][0]["app_id"] == ids["app_id"]


def test_json_errors_have_one_shape(operator: Client, viewer: Client, client: Client, operation: BulkOperation) -> None:
    unknown = {"app_id": "app_x", "repository_id": "repo_x"}
    empty = make_app("Empty")
    for answer, status, expected in [
        (post(client, "/admin/api/resync", unknown), 401, "Sign in to the admin first"),
        (client.get("/admin/api/retry/progress/x"), 401, "Sign in to the admin first"),
        (post(viewer, "/admin/api/resync", unknown), 403, "You don't have permission to do this"),
        (
            post(viewer, f"/admin/api/retry/cancel/{operation.operation_id}"),
            403,
            "You don't have permission to do this",
        ),
        (post(operator, "/admin/api/resync", {}), 400, "app_id and repository_id are required"),
        (
            post(operator, "/admin/api/resync", {"app_id": 1, "repository_id": None}),
            400,
            "app_id and repository_id are required",
        ),
        (post(operator, "/admin/api/resync", [1]), 400, "The body must be a JSON object"),
        (operator.post("/admin/api/resync", "{", content_type="application/json"), 400, "The body must be JSON"),
        (post(operator, "/admin/api/resync", unknown), 404, "App-repository link not found"),
        (post(operator, "/admin/api/resync/app/app_x"), 404, "App not found"),
        (post(operator, f"/admin/api/resync/app/{empty.app_id}"), 404, "No repositories for this app"),
        (operator.get("/admin/api/retry/progress/bulk_x"), 404, "Operation not found or expired"),
        (operator.get("/admin/api/nothing/here"), 404, NOT_FOUND),
    ]:
        assert (answer.status_code, answer.json()["error"]) == (status, expected)


def test_json_calls_enforce_csrf(operator: Client, operation: BulkOperation) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = operator.cookies
    answer = post(strict, "/admin/api/resync", {"app_id": "a", "repository_id": "b"})
    assert answer.status_code == 403
    assert answer.json()["code"] == "forbidden"


def test_screen_reader_text_changes_every_tenth_and_at_the_end(operator: Client, operation: BulkOperation) -> None:
    watch = AppRepository.objects.order_by("pk")[0]
    run = watch.runs.get()
    SyncRun.objects.filter(pk=run.pk).update(started_at=timezone.now(), files_done=42)
    spoken = '<span id="spoken" hx-swap-oob="innerHTML">'
    assert (
        f"{spoken}acme/docs: more than 40 percent sent.</span>"
        in operator.get(f"/admin/live/{watch.pk}/?announced=30").text
    )
    quiet = operator.get(f"/admin/live/{watch.pk}/?announced=40").text
    assert spoken not in quiet
    assert "?announced=40" in quiet
    AppRepository.objects.filter(pk=watch.pk).update(status="synced", next_sync_at=None)
    assert f"{spoken}acme/docs: Up to date.</span>" in operator.get(f"/admin/live/{watch.pk}/?announced=40").text


def test_list_announces_settled_rows(operator: Client, operation: BulkOperation) -> None:
    first, second, _ = AppRepository.objects.order_by("pk")
    assert 'id="spoken"' not in operator.get(f"/admin/live/?ids={first.pk},{second.pk}").text
    AppRepository.objects.filter(pk=second.pk).update(status="failed")
    page = operator.get(f"/admin/live/?ids={first.pk},{second.pk}").text
    assert '<span id="spoken" hx-swap-oob="innerHTML">acme/site → Portal: Failed. </span>' in page
