"""Progress fragments: live numbers, the end of polling, and final summaries."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, BulkOperation, Delivery, Outcome, Status, SyncRun
from deliveries_app.progress import live, runs
from deliveries_app.services import cancel_operation, resync_by_app, resync_many
from docora.redis import live_counters
from repositories_app.models import Repository
from tests.support.staff import make_app, make_watch

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
    assert f"live/?ids={busy.pk}&quot;" in page or f'live/?ids={busy.pk}"' in page
    shown = admin.get(f"/admin/live/?ids={busy.pk}").text
    assert f'id="live-{busy.pk}"' in shown
    assert f'id="live-{quiet.pk}"' not in shown
    AppRepository.objects.update(status=Status.SYNCED, next_sync_at=None)
    ended = admin.get(f"/admin/live/?ids={busy.pk}").text
    assert "Up to date" in ended
    assert "hx-get" not in ended


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
    admin.post(f"/admin/live/{run.watch_id}/cancel/")
    run.refresh_from_db()
    assert run.outcome == Outcome.CANCELLED


def test_delivery_states(admin: Client, db) -> None:
    watch = make_watch(make_app("Portal"), "docs", generation=5, resend_floor=5)
    common = {
        "watch": watch,
        "mode": "100644",
        "kind": "create",
        "sha": "a" * 64,
        "size": 1,
        "updated_at": timezone.now(),
    }
    Delivery.objects.create(path="told", sequence=1, generation=5, acknowledged=True, **common)
    Delivery.objects.create(path="before", sequence=2, generation=4, acknowledged=True, **common)
    Delivery.objects.create(path="unsure", sequence=3, generation=5, acknowledged=False, **common)
    shown = admin.get("/admin/deliveries_app/delivery/").context["cl"]
    states = {row.path: shown.model_admin.state(row) for row in shown.result_list}
    assert [("Delivered" in states[path]) for path in ("told", "before", "unsure")] == [True, False, False]
    assert "Cleared" in states["before"]
    assert "Unconfirmed" in states["unsure"]


def test_deliveries_are_found_by_path_prefix(admin: Client, db) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    common = {
        "watch": watch,
        "mode": "100644",
        "kind": "create",
        "sha": "a" * 64,
        "size": 1,
        "updated_at": timezone.now(),
    }
    for number, path in enumerate(["src/a", "SRC/b", "src_/c", "lib/src/d"]):
        Delivery.objects.create(path=path, sequence=number, generation=1, acknowledged=True, **common)
    found = admin.get("/admin/deliveries_app/delivery/", {"q": "src/"}).context["cl"].result_list
    assert [row.path for row in found] == ["src/a"]


@pytest.mark.parametrize("public_id", ["repo_0123456789abcdef01234567", "Portal-docs"], ids=["ours", "an imported one"])
def test_deliveries_are_found_by_repository_or_app_id(admin: Client, db, public_id: str) -> None:
    fields = {"mode": "100644", "kind": "create", "sha": "a" * 64, "size": 1, "updated_at": timezone.now()}
    for number, name in enumerate(("docs", "site")):
        watch = make_watch(make_app(name), name)
        Delivery.objects.create(watch=watch, path=name, sequence=number, generation=1, acknowledged=True, **fields)
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
