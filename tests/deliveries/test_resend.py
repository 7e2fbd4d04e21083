"""Resend in the admin: one file at once, or the files of a selection as one operation."""

import csv
import io
import re
from collections import Counter
from html import unescape
from urllib.parse import quote

import pytest
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.admin import deliveries as admin_of_deliveries
from deliveries_app.models import App, AppRepository, BulkOperation, Delivery, Outcome, RootCause, SyncRun
from deliveries_app.services import (
    MAX_RESENT_AT_ONCE,
    cancel_operation,
    resend_files,
    resend_many,
    resync_single,
    retry_single,
)
from deliveries_app.services.requests import NotFound
from tests.support.audit import by_users
from tests.support.histories import refusing
from tests.support.staff import VIEWS, fail, make_app, make_watch, staff
from tests.support.world import World

LIST = "/admin/deliveries_app/delivery/"
CONFIRM = f"{LIST}resend/"
RUNS = "/admin/deliveries_app/syncrun/"


def add_deliveries(watch: AppRepository, paths: list[str], **fields) -> list[Delivery]:
    values = {
        "mode": "100644", "kind": "create", "source_key": "x", "sha": "0" * 64, "size": 1500, "generation": 1,
        "acknowledged": True, "updated_at": timezone.now(),
    } | fields  # fmt: skip
    return Delivery.objects.bulk_create(
        Delivery(watch=watch, path=path, sequence=number, **values) for number, path in enumerate(paths)
    )


def resend_url(watch: AppRepository, path: str) -> str:
    return f"/admin/deliveries_app/apprepository/{watch.pk}/resend/?path={quote(path, safe='')}"


def sent_since(world: World, before: int) -> list[tuple[str, str]]:
    return sorted((note.kind, note.path) for note in world.requests()[before:])


# --- One file ----------------------------------------------------------------------------------------------------------


def test_one_file_is_resent_at_once(world: World) -> None:
    operator = staff("anna", *(f"view_{model}" for model in VIEWS), "resync_apprepository")
    path = "line\nbreak & é.txt"
    _, watch = world.watch({path: b"1", "other.txt": b"2"})
    world.settle()
    row, before = world.rows(watch)[path], len(world.requests())
    page = f"{LIST}{row.pk}/change/"
    shown = unescape(operator.get(page).text)
    assert f'action="{resend_url(watch, path)}&next={page}"' in shown
    answer = operator.post(f"{resend_url(watch, path)}&next={page}", follow=True)
    assert answer.redirect_chain == [(page, 302)]
    assert "Resend queued for line\nbreak & é.txt." in unescape(answer.text)
    assert "Unconfirmed" in answer.text
    assert by_users().latest("pk").message == "Resent 1 file"
    world.settle()
    assert sent_since(world, before) == [("create", path)]
    assert "Delivered" in operator.get(page).text


def test_file_without_a_record_cannot_be_resent(operator: Client, watches) -> None:
    answer = operator.post(resend_url(watches[0], "none.txt"), follow=True)
    assert "Portal holds no such file, so there is nothing to resend: none.txt" in answer.text
    assert not BulkOperation.objects.exists()


def test_failing_file_that_was_never_sent_has_no_button(world: World) -> None:
    """`a/b` waits for the delete of `a`, which fails."""
    operator = staff("anna", *(f"view_{model}" for model in VIEWS), "resync_apprepository")
    repo, watch = world.watch({"a": b"1"})
    world.sync(watch)
    repo.commit({"a": None, "a/b": b"2"})
    world.answer(refusing("a"))
    world.sync(watch)
    for page in (f"apprepository/{watch.pk}", f"app/{watch.app_id}"):
        shown = operator.get(f"/admin/deliveries_app/{page}/change/").text
        assert ">a/b</a>" in shown
        assert re.findall('aria-label="Resend ([^"]*)"', shown) == ["a"]


def test_resend_needs_the_permission_and_a_post(operator: Client, viewer: Client, watches) -> None:
    (row,) = add_deliveries(watches[0], ["a.txt"])
    url = resend_url(watches[0], "a.txt")
    assert operator.get(url).status_code == 405
    for client, method in ((viewer, "post"), (viewer, "get")):
        assert getattr(client, method)(url).status_code == 403
        assert getattr(client, method)(f"{CONFIRM}?ids={row.pk}").status_code == 403
    row.refresh_from_db()
    assert row.acknowledged
    for page in (
        LIST,
        f"{LIST}{row.pk}/change/",
        f"/admin/deliveries_app/apprepository/{watches[0].pk}/why/?path=a.txt",
    ):
        assert "Resend" not in viewer.get(page).text, page
        assert "Resend" in operator.get(page).text, page


# --- A selection -------------------------------------------------------------------------------------------------------


def test_selection_is_confirmed_and_resent_as_one_operation(world: World) -> None:
    operator = staff("anna", *(f"view_{model}" for model in VIEWS), "resync_apprepository")
    _, docs = world.watch({"docs/a": b"1", "docs/b": b"22", "src/c": b"333"}, name="acme/docs")
    _, site = world.watch({"docs/a": b"1"}, name="acme/site", app=world.add_app("Search"))
    world.settle()
    before = len(world.requests())
    chosen = [world.rows(docs)["docs/a"].pk, world.rows(docs)["src/c"].pk, world.rows(site)["docs/a"].pk]
    answer = operator.post(LIST, {"action": "resend", "_selected_action": chosen}, follow=True)
    page = unescape(answer.text)
    assert "This will resend 3 files from 2 repositories to 2 apps. Continue?" in page
    assert "5 bytes" in page
    hidden = {name: answer.context[name] for name in ("selection_digest", "selection_files")}
    url = answer.redirect_chain[-1][0]
    done = operator.post(url, {"post": "yes", "reason": "Lost its disk", **hidden}, follow=True)
    assert "Resend of 3 files requested." in unescape(done.text)
    operation = BulkOperation.objects.get()
    assert (operation.kind, operation.title, operation.total) == ("resend", "Resend · 3 files", 2)
    assert (operation.reason, operation.requested_by) == ("Lost its disk", "anna")
    assert sorted(operation.runs.values_list("files_total", "bytes_total")) == [(1, 1), (2, 4)]
    world.settle()
    assert sent_since(world, before) == [("create", "docs/a"), ("create", "docs/a"), ("create", "src/c")]
    operation.refresh_from_db()
    assert operation.ended_at
    text = unescape(operator.get(done.redirect_chain[-1][0]).text)
    assert "2 repositories: 2 succeeded · 3 files" in text


def test_paused_repositories_and_apps_are_named(operator: Client, watches) -> None:
    for watch in watches:
        add_deliveries(watch, ["a"])
    AppRepository.objects.filter(pk=watches[0].pk).update(paused_at=timezone.now())
    App.objects.filter(pk=watches[2].app_id).update(paused=True)
    page = operator.get(f"{CONFIRM}?all=1").text
    assert "2 repositories are paused, or their apps are. Nothing is sent for them until they are resumed." in page
    for watch, text in zip(watches, ("when the repository is resumed", "", "when the app is resumed"), strict=True):
        answer = operator.post(resend_url(watch, "a"), follow=True).text
        assert "Resend queued for a." in answer
        assert text in answer
        assert ("The resend starts" in answer) is bool(text)


def test_endpoint_that_is_down_is_named(operator: Client, watches) -> None:
    for watch in watches:
        add_deliveries(watch, ["a.txt"])
    App.objects.filter(pk=watches[0].app_id).update(down_count=1)
    page = operator.get(f"{CONFIRM}?all=1").text
    assert "1 of 2 with warnings" in page
    assert page.index("The endpoint doesn&#x27;t respond.") < page.index(f'id="endpoint-{watches[2].app_id}"')


def test_everything_that_a_filter_matches(operator: Client, watches) -> None:
    docs, site, other = watches
    for watch in watches:
        add_deliveries(watch, ["docs/a", "docs/b", "src/c"])
    url = f"{CONFIRM}?all=1&watch__app={docs.app_id}&q=docs/"
    assert "This will resend 4 files from 2 repositories to Portal. Continue?" in operator.get(url).text
    operator.post(url, {"post": "yes"})
    sent = Delivery.objects.filter(acknowledged=False).values_list("watch", "path")
    assert sorted(sent) == sorted((watch.pk, path) for watch in (docs, site) for path in ("docs/a", "docs/b"))
    only = operator.get(f"{CONFIRM}?all=1&watch={other.pk}&q=src/").text
    assert "This will resend 1 file from 1 repository to Search. Continue?" in only


def test_changed_selection_is_confirmed_again(operator: Client, watches) -> None:
    add_deliveries(watches[0], ["a"])
    url = f"{CONFIRM}?all=1&watch={watches[0].pk}"
    shown = operator.get(url).context
    hidden = {"post": "yes", **{name: shown[name] for name in ("selection_digest", "selection_files")}}
    add_deliveries(watches[0], ["b"])
    assert "The selection has changed" in operator.post(url, hidden, follow=True).text
    assert not BulkOperation.objects.exists()
    gone = operator.post(f"{CONFIRM}?ids=999999999", {"post": "yes"}, follow=True)
    assert "The selection has no files to resend." in gone.text
    assert not BulkOperation.objects.exists()


def test_too_many_files_are_not_resent(operator: Client, watches, monkeypatch) -> None:
    monkeypatch.setattr(admin_of_deliveries, "MAX_RESENT_AT_ONCE", 3)
    add_deliveries(watches[0], list("abcd"))
    url = f"{CONFIRM}?all=1&watch={watches[0].pk}"
    for answer in (operator.get(url, follow=True), operator.post(url, {"post": "yes"}, follow=True)):
        assert answer.redirect_chain == [(LIST, 302)]
        assert "The selection has more than 3 files, the most that can be resent at once." in answer.text
        assert "re-sync the repositories" in answer.text
    assert not BulkOperation.objects.exists()
    with pytest.raises(ValueError, match="At most 10,000 files"):
        resend_many(Actor.command(), range(MAX_RESENT_AT_ONCE + 1))


def test_confirmation_costs_the_same_for_any_number_of_files(operator: Client, db) -> None:
    app, counts = make_app("Portal"), []
    for number in range(12):
        add_deliveries(make_watch(app, f"repository-{number}"), ["a", "b"])
        if number in {1, 11}:
            operator.get(f"{CONFIRM}?all=1&watch__app={app.pk}")
            with CaptureQueriesContext(connection) as queries:
                assert operator.get(f"{CONFIRM}?all=1&watch__app={app.pk}").status_code == 200
            counts.append(len(queries))
    assert counts[0] == counts[1]


def test_resend_takes_over_a_running_resync(world: World) -> None:
    """And its cancel leaves the re-sync's files to be sent."""
    _, watch = world.watch({"a": b"1", "b": b"2"})
    world.settle()
    run, before = resync_single(Actor.command(), watch), len(world.requests())
    operation = resend_many(Actor.command(), [world.rows(watch)["a"].pk])
    run.refresh_from_db()
    assert run.outcome == "superseded"
    assert operation.runs.get().files_total == run.files_total + 1
    assert cancel_operation(Actor.command(), operation) == 1
    watch.refresh_from_db()
    assert (watch.status, watch.resend_floor) == ("pending_snapshot", run.generation)
    world.settle()
    assert sent_since(world, before) == [("create", "a"), ("create", "b")]


def test_resend_of_an_app_s_own_files_only(watches) -> None:
    (row,) = add_deliveries(watches[2], ["a"])  # of Search
    with pytest.raises(PermissionDenied):
        resend_many(Actor.of_app(watches[0].app), [row.pk])
    row.refresh_from_db()
    assert row.acknowledged


def test_file_of_an_unwatched_repository_is_not_resent(watches) -> None:
    (row,) = add_deliveries(watches[0], ["a"])
    AppRepository.objects.update(ended_at=timezone.now())
    with pytest.raises(NotFound):
        resend_files(Actor.system(), watches[0], ["a"])
    row.refresh_from_db()
    assert row.acknowledged


def test_reason_is_cleaned(watches) -> None:
    (row,) = add_deliveries(watches[0], ["a"])
    operation = resend_many(Actor.system(), [row.pk], reason="Lost\0its disk" + "!" * 300)
    operation.refresh_from_db()
    assert operation.reason.startswith("Lost\ufffdits disk!")
    assert len(operation.reason) == 200


def test_reason_that_is_too_long(operator: Client, watches) -> None:
    add_deliveries(watches[0], ["a"])
    answer = operator.post(f"{CONFIRM}?all=1", {"post": "yes", "reason": "!" * 201})
    assert "at most 200 characters" in answer.text
    assert not BulkOperation.objects.exists()


def test_resend_is_named_wherever_its_run_is(watches) -> None:
    """Its reason on the wire is `retry`, as that of a retry."""
    operator = staff("anna", *(f"view_{model}" for model in (*VIEWS, "queue")), "resync_apprepository")
    for watch in watches:
        add_deliveries(watch, ["a"])
    operator.post(resend_url(watches[0], "a"))
    resend_many(Actor.command(), list(Delivery.objects.filter(watch=watches[1]).values_list("pk", flat=True)))
    fail(watches[2], RootCause.SERVER_ERROR)
    retry_single(Actor.command(), watches[2])
    runs = [SyncRun.objects.get(watch=watch) for watch in watches]
    assert [run.reason for run in runs] == ["retry"] * 3

    def listed(query: str) -> set[int]:
        page = operator.get(f"{RUNS}{query}").text
        return {int(pk) for pk in re.findall(rf'href="{RUNS}(\d+)/change/', page)}

    assert listed("?reason=resend") == {runs[0].pk, runs[1].pk}
    assert listed("?reason=retry") == {runs[2].pk}
    export = b"".join(operator.get(f"{RUNS}export/")).decode()
    exported = {row["run_id"]: row["trigger"] for row in csv.DictReader(io.StringIO(export, newline=""))}
    list_page, queue = operator.get(RUNS).text, operator.get("/admin/deliveries_app/queue/").text
    for run, name in zip(runs, ("Resend", "Resend", "Retry"), strict=True):
        assert exported[run.run_id] == name.lower()
        assert str(run).endswith(f"({name.lower()})")
        page = operator.get(f"{RUNS}{run.pk}/change/").text
        assert f"<dt>Trigger</dt><dd>{name}, requested by {run.requester}</dd>" in page
        page = operator.get(f"/admin/deliveries_app/apprepository/{run.watch_id}/change/").text
        assert f"<td>{name}</td>" in page
        assert f"{name} requested" in page
    for page in (list_page, queue):
        assert Counter(re.findall(r"\b(Resend|Retry) by \w+", page)) == {"Resend": 2, "Retry": 1}


def test_cancelled_resend_says_so(operator: Client, watches) -> None:
    add_deliveries(watches[0], ["a"])
    operator.post(resend_url(watches[0], "a"))
    answer = operator.post(f"/admin/deliveries_app/apprepository/{watches[0].pk}/cancel/", follow=True)
    assert "Resend cancelled. Files that were not resent are sent in 5 min." in answer.text
    assert by_users().latest("pk").message == "Cancelled the resend"


def test_user_who_resends_one_file_can_cancel_it(operator: Client, watches) -> None:
    add_deliveries(watches[0], ["a"])
    operator.post(resend_url(watches[0], "a"))
    url = f"/admin/deliveries_app/apprepository/{watches[0].pk}/cancel/"
    assert url in operator.get(f"/admin/deliveries_app/apprepository/{watches[0].pk}/change/").text
    operator.post(url)
    assert watches[0].runs.get().outcome == Outcome.CANCELLED
