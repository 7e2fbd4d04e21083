"""The history: sync runs and bulk operations, filtered and searched without scanning whole tables."""

import csv
import io
import re
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import (
    AppRepository,
    BulkOperation,
    DeliveryFailure,
    Outcome,
    PendingRelease,
    Reason,
    Result,
    SyncRun,
)
from deliveries_app.reports import history
from deliveries_app.services import cancel_operation, delete_app, resync_by_app
from deliveries_app.sweep.cleanup import remove_ended
from repositories_app.models import Repository
from tests.support.staff import make_app, make_watch, staff

RUNS, OPERATIONS = "/admin/deliveries_app/syncrun/", "/admin/deliveries_app/bulkoperation/"


def run_of(watch: AppRepository | None, *, days: float = 0, **fields) -> SyncRun:
    moment = timezone.now() - timedelta(days=days)
    fields = {"reason": Reason.CHANGE, "outcome": Outcome.SUCCEEDED, "requested_by": "Docora"} | fields
    if watch:
        fields = {"app_name": watch.app.name, "repository_name": str(watch.repository)} | fields
    ended = moment + timedelta(seconds=75) if fields["outcome"] else None
    return SyncRun.objects.create(
        watch=watch, **{"generation": 1, "created_at": moment, "started_at": moment, "ended_at": ended} | fields
    )


def listed(client: Client, query: str = "", url: str = RUNS) -> list[int]:
    """Return the primary keys of the rows, in order."""
    page = client.get(url + query)
    assert page.status_code == 200, query
    return [int(pk) for pk in re.findall(rf'href="{url}(\d+)/change/', page.text)]


def day(days_ago: int) -> str:
    return (timezone.localdate() - timedelta(days=days_ago)).isoformat()


# --- Filters -----------------------------------------------------------------------------------------------------------


def test_runs_are_listed_with_trigger_and_outcome(viewer: Client, watches) -> None:
    fields = {"files_total": 1690, "files_done": 1204, "files_failed": 3, "bytes_done": 9_600_000}
    run_of(
        watches[0], reason=Reason.RESYNC, requested_by="anna", outcome=Outcome.FAILED, commit_sha="c0ffee11" + "0" * 32,
        error="3 files were not accepted.", left_out={"ignored": 12}, **fields,
    )  # fmt: skip
    page = viewer.get(RUNS).text
    cells = re.findall(r'class="field-(\w+)[^"]*">(.*?)</t[dh]>', page)
    columns = {name: re.sub("<[^>]+>", "", cell) for name, cell in cells}
    assert columns.pop("requested") == "just now"
    assert columns == {
        "repository_name": "acme/docs", "app_name": "Portal", "result": "Partly failed", "problem": "3 files were not accepted.",
        "took": "1 min 15 s", "trigger": "Re-sync by anna", "files": "1,204 of 1,690",
    }  # fmt: skip


def test_filters_of_runs(viewer: Client, watches) -> None:
    operation = BulkOperation.objects.create(title="Re-sync all", total=1, requested_by="anna")
    portal_docs, portal_site, search_docs = [run_of(watch).pk for watch in watches]
    SyncRun.objects.filter(pk=portal_site).update(operation=operation)
    gone = run_of(None, app_name="Portal", repository_name="acme/gone").pk
    assert listed(viewer) == [gone, search_docs, portal_site, portal_docs]
    assert listed(viewer, f"?watch={watches[1].pk}") == [portal_site]
    assert listed(viewer, f"?watch__app={watches[0].app_id}") == [portal_site, portal_docs]
    assert listed(viewer, f"?watch__repository={watches[0].repository_id}") == [search_docs, portal_docs]
    assert listed(viewer, f"?operation={operation.pk}") == [portal_site]
    assert listed(viewer, f"?watch__app={watches[0].app_id}&watch__repository={watches[0].repository_id}") == [
        portal_docs
    ]
    for app in ("por", "PORTAL", watches[0].app.app_id):
        assert listed(viewer, f"?app_name={app}") == [portal_site, portal_docs]
    assert listed(viewer, "?app_name=&outcome=&from=") == listed(viewer)


def test_runs_are_filtered_by_outcome_and_trigger(viewer: Client, watches) -> None:
    open_run = run_of(watches[0], outcome="", reason=Reason.RETRY).pk
    made = {outcome: run_of(watches[0], outcome=outcome).pk for outcome in Outcome}
    partly = run_of(watches[0], outcome=Outcome.FAILED, files_done=3, files_failed=1).pk
    stopped = run_of(watches[0], outcome=Outcome.FAILED, files_done=3).pk
    rejected = run_of(watches[0], outcome=Outcome.FAILED, files_failed=1).pk
    assert listed(viewer, "?outcome=open") == [open_run]
    assert listed(viewer, "?outcome=succeeded") == [made[Outcome.SUCCEEDED]]
    assert listed(viewer, "?outcome=partly_failed") == [partly]
    assert listed(viewer, "?outcome=failed") == [rejected, stopped, made[Outcome.PAUSED], made[Outcome.FAILED]]
    assert listed(viewer, "?outcome=cancelled") == [made[Outcome.ENDED], made[Outcome.CANCELLED]]
    assert listed(viewer, "?outcome=superseded") == [made[Outcome.SUPERSEDED]]
    assert listed(viewer, "?reason=retry") == [open_run]
    assert listed(viewer, "?reason=retry&outcome=failed") == []
    of_failed = SyncRun.objects.filter(pk__in=[partly, stopped, rejected]).order_by("pk")
    assert [run.result for run in of_failed] == [Result.PARTLY_FAILED, Result.FAILED, Result.FAILED]


def test_open_run_with_a_later_one_is_superseded(viewer: Client, watches) -> None:
    """It is open, because the later re-sync may be cancelled, but nothing is in progress for it."""
    operation = BulkOperation.objects.create(title="Re-sync all", total=1, requested_by="anna")
    earlier = run_of(watches[0], outcome="", reason=Reason.RESYNC, operation=operation)
    later = run_of(watches[0], outcome="", reason=Reason.RESYNC, generation=2)
    other = run_of(watches[1], outcome="", generation=1)

    def shown(url: str) -> dict[int, str]:
        """Return the result of each row."""
        rows = re.findall(
            rf'href="{url}(\d+)/change/.*?field-(?:result|state)[^>]*>(.*?)</td>', viewer.get(url).text, re.S
        )
        return {int(pk): re.sub("<[^>]+>", "", cell).strip() for pk, cell in rows}

    def exported(url: str, column: str) -> list[str]:
        text = b"".join(viewer.get(f"{url}export/")).decode()
        return [row[column] for row in csv.DictReader(io.StringIO(text, newline=""))]

    assert shown(RUNS) == {other.pk: "In progress", later.pk: "In progress", earlier.pk: "Superseded"}
    assert exported(RUNS, "outcome") == ["In progress", "In progress", "Superseded"]
    assert listed(viewer, "?outcome=open") == [other.pk, later.pk]
    assert listed(viewer, "?outcome=superseded") == [earlier.pk]
    assert shown(OPERATIONS) == {operation.pk: "Superseded"}
    assert listed(viewer, "?state=running", OPERATIONS) == []
    assert listed(viewer, "?state=superseded", OPERATIONS) == [operation.pk]
    assert [exported(OPERATIONS, name) for name in ("state", "open", "superseded")] == [["Superseded"], ["0"], ["1"]]
    page = viewer.get(f"{OPERATIONS}{operation.pk}/change/?part=superseded").text
    assert ("1 superseded" in page, "in progress</a>" in page, f'id="run-status-{earlier.pk}"' in page) == (
        True,
        False,
        True,
    )

    SyncRun.objects.filter(pk=later.pk).update(outcome=Outcome.CANCELLED, ended_at=timezone.now())
    assert shown(RUNS) == {other.pk: "In progress", later.pk: "Cancelled", earlier.pk: "In progress"}
    assert shown(OPERATIONS) == {operation.pk: "In progress"}
    assert listed(viewer, "?state=running", OPERATIONS) == [operation.pk]
    assert listed(viewer, "?state=superseded", OPERATIONS) == []


def test_every_operation_is_found_by_the_filter_for_its_badge(viewer: Client, watches) -> None:
    """Whatever its runs and its unreleased watches are, and by no other filter."""
    run_of(watches[0], outcome="", reason=Reason.RESYNC, generation=9)  # supersedes the open ones with generation 1
    superseded, running = (watches[0], ""), (watches[1], "")
    ended = {outcome: (watches[0], outcome) for outcome in Outcome}
    runs: dict[str, list[tuple[AppRepository, str]]] = {
        "none": [],
        "running": [running],
        "superseded": [superseded],
        "both": [superseded, running],
        "superseded and ended": [superseded, ended[Outcome.SUCCEEDED]],
        "ended as superseded": [ended[Outcome.SUPERSEDED]],
        "partly ended as superseded": [ended[Outcome.SUPERSEDED], ended[Outcome.SUCCEEDED]],
        "ended as superseded and failed": [ended[Outcome.SUPERSEDED], ended[Outcome.FAILED]],
        "ended as superseded and cancelled": [ended[Outcome.SUPERSEDED], ended[Outcome.CANCELLED]],
        "cancelled": [ended[Outcome.CANCELLED], ended[Outcome.ENDED]],
    }
    now, cases = timezone.now(), 0
    states: list[dict[str, Any]] = [{}, {"held_at": now}, {"ended_at": now}, {"ended_at": now, "cancelled_at": now}]
    for title, its_runs in runs.items():
        for state in states:
            for unreleased in (False, True):
                if state.get("ended_at") and (unreleased or any(not outcome for _, outcome in its_runs)):
                    continue  # an operation ends after its runs
                operation = BulkOperation.objects.create(
                    title=title, total=2, requested_by="anna", canary=True, **state
                )
                for watch, outcome in its_runs:
                    run_of(watch, operation=operation, outcome=outcome)
                if unreleased:
                    PendingRelease.objects.create(operation=operation, watch=watches[2], position=1)
                cases += 1
    operations = BulkOperation.objects.all()
    outcomes, badges = history.outcomes(operations), {}
    for operation in operations:
        badges[operation.pk] = outcomes[operation.pk].result_of(operation)
    finished = {Result.SUCCEEDED, Result.PARTLY_FAILED, Result.FAILED}
    expected = {
        "running": {Result.RUNNING}, "held": {Result.HELD}, "finished": finished, "cancelled": {Result.CANCELLED},
        "superseded": {Result.SUPERSEDED},
    }  # fmt: skip
    found = {state: listed(viewer, f"?state={state}", OPERATIONS) for state in expected}
    for state, results in expected.items():
        assert sorted(found[state]) == sorted(pk for pk, result in badges.items() if result in results), state
    assert sum(map(len, found.values())) == cases


def test_period_includes_its_last_day(viewer: Client, watches, settings) -> None:
    settings.TIME_ZONE = "Pacific/Auckland"
    timezone.activate("Pacific/Auckland")
    try:
        noon = timezone.localtime().replace(hour=12, minute=0)
        made = [run_of(watches[0], created_at=noon - timedelta(days=days)).pk for days in (0, 1, 6, 7, 40)]
        start = timezone.make_aware(datetime.combine(timezone.localdate() - timedelta(days=1), datetime.min.time()))
        first = run_of(watches[0], created_at=start).pk
        last = run_of(watches[0], created_at=start + timedelta(days=1, microseconds=-1)).pk
        assert listed(viewer, f"?from={day(1)}&until={day(1)}") == [last, made[1], first]
        assert listed(viewer, f"?from={day(6)}") == [made[0], last, made[1], first, made[2]]
        assert listed(viewer, f"?until={day(7)}") == [made[3], made[4]]
    finally:
        timezone.deactivate()


@pytest.mark.parametrize(
    "query",
    ["watch=x", "watch=999999", "watch__app=-1", "watch__repository=%C2%B2", "operation=1,2", "app_name=nobody", "reason=no",
     "outcome=fail", "q=nothing%20like%20it", "q=run_", "q=bulk_nothing", "q=/", "q=%25", "until=2001-01-01"],
)  # fmt: skip
def test_filter_without_matches_offers_to_show_all(viewer: Client, watches, query: str) -> None:
    run_of(watches[0])
    if query == "q=/":  # either side can be open
        assert len(listed(viewer, f"?{query}")) == 1
        return
    page = viewer.get(f"{RUNS}?{query}").text
    assert "No matching sync runs." in page
    assert '<a href="?">Show all</a>' in page


def test_empty_history_says_what_will_be_listed(viewer: Client) -> None:
    assert "No sync runs yet. The first sync of each watched repository appears here." in viewer.get(RUNS).text
    assert "No bulk operations yet. Re-syncs, retries and resends are listed here." in viewer.get(OPERATIONS).text


@pytest.mark.parametrize("query", ["from=x", "until=2026-13-01", "from=9999-99-99"])
@pytest.mark.parametrize("url", [RUNS, OPERATIONS, f"{RUNS}export/", f"{OPERATIONS}export/"])
def test_invalid_date_redirects_to_the_list(viewer: Client, url: str, query: str) -> None:
    answer = viewer.get(f"{url}?{query}")
    assert (answer.status_code, answer["Location"].rpartition("/")[2]) == (302, "?e=1")


def test_other_lookups_are_refused(viewer: Client, watches) -> None:
    run_of(watches[0])
    for query in (
        "error__icontains=a",
        "requested_by=anna",
        "watch__github_token__contains=g",
        "watch__app__name=Portal",
    ):
        assert viewer.get(f"{RUNS}?{query}").status_code == 400, query
        assert viewer.get(f"{RUNS}export/?{query}").status_code == 400, query
    assert viewer.get(f"{OPERATIONS}?app__client_auth_key__startswith=a").status_code == 400


# --- Search ------------------------------------------------------------------------------------------------------------


def test_runs_are_found_by_id_operation_and_name(viewer: Client, watches) -> None:
    operation = BulkOperation.objects.create(title="Re-sync all", total=1, requested_by="anna")
    portal_docs = run_of(watches[0], operation=operation)
    portal_site, search_docs = run_of(watches[1]).pk, run_of(watches[2]).pk
    gone = run_of(None, app_name="Old portal", repository_name="acme/docs-of-old").pk
    found = {
        portal_docs.run_id: [portal_docs.pk],
        operation.operation_id: [portal_docs.pk],
        "portal": [gone, portal_site, portal_docs.pk],
        "ocs": [gone, search_docs, portal_docs.pk],
        "acme": [gone, search_docs, portal_site, portal_docs.pk],
        " acme/site ": [portal_site],
        "acme/do": [gone, search_docs, portal_docs.pk],
        "of-old": [gone],
    }
    assert {term: listed(viewer, f"?q={quote(term)}") for term in found} == found
    assert listed(viewer, "?q=acme&outcome=failed") == []


@pytest.mark.parametrize("term", ["acme/teams/docs", "acme/teams", "teams/do", "teams/", "docs"])
def test_runs_are_found_by_an_owner_with_slashes(viewer: Client, watches, term: str) -> None:
    Repository.objects.filter(pk=watches[0].repository_id).update(owner="acme/teams")
    watches[0].repository.refresh_from_db()
    runs = {watch: run_of(watch).pk for watch in watches}
    assert listed(viewer, f"?q={quote(term)}") == [runs[watches[2]], runs[watches[0]]]


def test_broad_search_is_limited_to_the_newest_runs(viewer: Client, watches, monkeypatch) -> None:
    monkeypatch.setattr(history, "WINDOW", 3)
    monkeypatch.setattr(history, "MAX_WATCHES", 2)
    monkeypatch.setattr("deliveries_app.admin.history.HistoryList.window", 3)
    old = [run_of(watches[0], days=10 + number).pk for number in range(3)]
    new = [run_of(watches[number], days=number).pk for number in range(3)]
    assert listed(viewer, "?q=acme") == new  # matches three watches
    page = viewer.get(f"{RUNS}?q=acme").text
    assert "Only the newest 3 sync runs were searched" in page
    assert listed(viewer, "?q=site") == [new[1]]
    assert listed(viewer, "?outcome=succeeded") == new
    assert listed(viewer, f"?outcome=succeeded&until={day(10)}") == old
    assert listed(viewer, f"?outcome=succeeded&watch={watches[0].pk}") == [new[0], *old]
    assert listed(viewer, "?outcome=succeeded&app_name=portal") == [*new[:2], *old]
    make_watch(watches[0].app, "third")
    assert listed(viewer, "?outcome=succeeded&app_name=portal") == new[:2]
    assert listed(viewer, f"?outcome=succeeded&watch__app={watches[0].app_id}") == new[:2]
    assert listed(viewer, f"?watch__app={watches[0].app_id}") == [*new[:2], *old]
    assert "were searched" not in viewer.get(f"{RUNS}?watch={watches[0].pk}&outcome=succeeded").text
    assert "were searched" not in viewer.get(RUNS).text


# --- Order and cost ----------------------------------------------------------------------------------------------------


def test_lists_sort_by_time_only(viewer: Client, watches) -> None:
    made = [run_of(watches[0], days=days).pk for days in (3, 2, 1)]
    heads = re.findall(r'<th scope="col" class="sortable[^"]*column-(\w+)', viewer.get(RUNS).text)
    assert heads == ["requested"]
    column = list(viewer.get(RUNS).context["cl"].list_display).index("requested")
    assert listed(viewer, f"?o={column}") == made
    assert listed(viewer, f"?o=-{column}") == made[::-1]
    assert listed(viewer, "?o=1") == made[::-1]  # by name, which has no index


@pytest.mark.parametrize(
    "query", ["", "?watch__app={app}", "?q=acme", "?outcome=succeeded", "?app_name=portal&from=2001-01-01", "?o=5&p=1"]
)
@pytest.mark.parametrize("url", [RUNS, OPERATIONS, f"{RUNS}export/", f"{OPERATIONS}export/"])
def test_query_count_is_constant(viewer: Client, watches, url: str, query: str) -> None:
    if "bulkoperation" in url:
        query = query.replace("watch__app", "app").replace("outcome=succeeded", "state=finished")

    def queries_with(rows: int) -> int:
        for _ in range(rows):
            operation = BulkOperation.objects.create(title="acme", total=1, requested_by="anna", app=watches[0].app)
            run_of(watches[0], operation=operation)
        with CaptureQueriesContext(connection) as queries:
            answer = viewer.get(url + query.format(app=watches[0].app_id))
            assert answer.status_code == 200
            if answer.streaming:
                list(answer)
        return len(queries)

    queries_with(2)
    assert queries_with(20) == queries_with(1) <= 12


# --- The page of a run -------------------------------------------------------------------------------------------------


def test_run_page_shows_all_details(viewer: Client, watches) -> None:
    operation = BulkOperation.objects.create(title="Re-sync all · Portal", total=1, requested_by="anna")
    moment = timezone.now().replace(year=2025, month=3, day=4, hour=5, minute=6, second=7)
    run = run_of(
        watches[0], reason=Reason.RESYNC, requested_by="anna", operation=operation, outcome=Outcome.FAILED, attempts=5,
        created_at=moment, started_at=moment, ended_at=moment + timedelta(seconds=200), commit_sha="c0ffee" + "0" * 34,
        files_total=10, files_done=9, files_failed=1, bytes_total=2000, bytes_done=1900, left_out={"submodule": 4},
        error="1 file was not accepted.",
    )  # fmt: skip
    DeliveryFailure.objects.create(
        watch=watches[0], path_digest="0" * 64, path="bad/<b>.txt", cause="http", status_code=500, body="boom",
        message="The app returned HTTP 500.", first_at=moment, last_at=moment,
    )  # fmt: skip
    page = viewer.get(f"{RUNS}{run.pk}/change/").text
    for expected in (
        run.run_id, "2025-03-04 05:06:07 UTC", "2025-03-04 05:09:27 UTC", "3 min 20 s, 5 attempts", "c0ffee" + "0" * 34,
        "9 of 10 acknowledged", "1.9 kB of 2.0 kB", "1 file was not accepted.", "Re-sync, requested by anna", "Submodules",
        "bad/&lt;b&gt;.txt", "HTTP 500</strong> · 1 file", "Currently failing files (1)",
        f'href="/admin/deliveries_app/app/{watches[0].app_id}/change/"',
        f'href="/admin/deliveries_app/apprepository/{watches[0].pk}/change/"',
        f'href="{OPERATIONS}{operation.pk}/change/"', f'href="{RUNS}?watch={watches[0].pk}"',
    ):  # fmt: skip
        assert expected in page, expected


def test_run_page_without_its_watch(viewer: Client) -> None:
    run = run_of(None, app_name="Portal", repository_name="acme/docs", outcome=Outcome.ENDED, started_at=None)
    page = viewer.get(f"{RUNS}{run.pk}/change/").text
    for expected in ("acme/docs", "Portal", "no longer watched", "the run ended before it knew what to send."):
        assert expected in page
    assert "apprepository/None" not in page


def test_links_need_the_permissions_of_their_targets(watches) -> None:
    client = staff("ron", "view_syncrun")
    operation = BulkOperation.objects.create(title="Re-sync all", total=1, requested_by="anna")
    run = run_of(watches[0], operation=operation)
    DeliveryFailure.objects.create(
        watch=watches[0], path_digest="0" * 64, path="secret.txt", cause="http", message="x", first_at=timezone.now(),
        last_at=timezone.now(),
    )  # fmt: skip
    page = client.get(f"{RUNS}{run.pk}/change/").text
    assert "acme/docs" in page
    for address in ("/app/", "/apprepository/", "/bulkoperation/"):
        assert f"/admin/deliveries_app{address}" not in page, address
    assert "secret.txt" not in page


@pytest.mark.parametrize("url", [RUNS, f"{RUNS}export/", OPERATIONS, f"{OPERATIONS}export/"])
def test_history_permissions(client: Client, viewer: Client, operator: Client, watches, url: str) -> None:
    assert client.get(url).status_code == 302
    assert client.get(url)["Location"].startswith("/admin/login/")
    assert staff("mallory", "view_app", "view_apprepository").get(url).status_code == 403
    for who in (viewer, operator):
        answer = who.get(url)
        assert answer.status_code == 200
        assert who.post(url, {"action": "delete_selected", "_selected_action": "1"}).status_code in {200, 302, 403, 405}
    resyncer = staff("rita", "resync_apprepository")  # the permission to start operations is enough to view them
    assert resyncer.get(url).status_code == (200 if "bulk" in url else 403)


# --- Bulk operations ---------------------------------------------------------------------------------------------------


def test_operation_whose_runs_were_cancelled_one_by_one_is_cancelled(viewer: Client, watches) -> None:
    """On the queue page, or because their repositories are no longer watched. The filter agrees with the badge."""
    now, found = timezone.now(), {}
    for name, outcomes in {
        "cancelled": [Outcome.CANCELLED, Outcome.ENDED],
        "one succeeded": [Outcome.CANCELLED, Outcome.SUCCEEDED],
        "failed": [Outcome.PAUSED],
        "superseded": [Outcome.SUPERSEDED],
    }.items():
        operation = BulkOperation.objects.create(title=name, total=len(outcomes), requested_by="anna", ended_at=now)
        found[operation.pk] = name
        for outcome in outcomes:
            run_of(watches[0], operation=operation, outcome=outcome)
    assert re.findall(r"field-state.*?</svg>(.*?)</span>", viewer.get(OPERATIONS).text).count("Cancelled") == 1
    assert [found[pk] for pk in listed(viewer, "?state=cancelled", OPERATIONS)] == ["cancelled"]
    finished = [found[pk] for pk in listed(viewer, "?state=finished", OPERATIONS)]
    assert finished == ["failed", "one succeeded"]
    assert [found[pk] for pk in listed(viewer, "?state=superseded", OPERATIONS)] == ["superseded"]


def cancelled_half_way() -> BulkOperation:
    """A cancelled operation on four repositories: two sent in full, one with 4,400 of 10,000 files, one not started."""
    app = make_app("Portal of four")
    for name in ("one", "two", "big", "rest"):
        make_watch(app, name)
    operation = resync_by_app(Actor.command(), app)
    now = timezone.now()
    runs = operation.runs
    runs.filter(repository_name__in=["acme/one", "acme/two"]).update(
        outcome=Outcome.SUCCEEDED, ended_at=now, started_at=now, files_done=100, files_total=100
    )
    runs.filter(repository_name="acme/big").update(started_at=now, files_done=4400, files_total=10000)
    cancel_operation(Actor.command(), operation)
    operation.refresh_from_db()
    return operation


def test_cancelled_operation_shows_unsent_files(viewer: Client) -> None:
    operation = cancelled_half_way()
    url = f"{OPERATIONS}{operation.pk}/change/"
    page = viewer.get(url).text

    def sent(page: str) -> dict[str, str]:
        rows = re.findall(r'<th scope="row">(.*?)</th>.*?<span id="run-status-\d+">(.*?)</td>', page, re.DOTALL)
        return {re.sub("<[^>]+>", "", name): re.sub("<[^>]+>", "", state).strip() for name, state in rows}

    everything = {"acme/big": "Cancelled", "acme/one": "Succeeded", "acme/rest": "Cancelled", "acme/two": "Succeeded"}
    assert sent(page) == everything
    for expected in (
        "2 succeeded",
        "1 cancelled partway",
        "1 cancelled before the start",
        "4,400 / 10,000",
        "command line",
    ):
        assert expected in page
    assert sent(viewer.get(f"{url}?part=part").text) == {"acme/big": "Cancelled"}
    assert sent(viewer.get(f"{url}?part=untouched").text) == {"acme/rest": "Cancelled"}
    assert sent(viewer.get(f"{url}?part=nonsense").text) == everything


def test_operation_of_a_deleted_app_keeps_its_name(viewer: Client, watches) -> None:
    operation = resync_by_app(Actor.command(), watches[0].app)
    delete_app(Actor.command(), watches[0].app)
    remove_ended()
    page = viewer.get(f"{OPERATIONS}{operation.pk}/change/").text
    assert "<dt>App</dt><dd>Portal (deleted)</dd>" in page


def test_operations_are_listed_with_final_counts(viewer: Client, watches) -> None:
    cancelled = cancelled_half_way()
    running = resync_by_app(Actor.command(), watches[0].app)
    page = viewer.get(OPERATIONS).text
    progress_of = re.findall(r'class="field-outcome_summary">(.*?)</td>', page)
    assert progress_of == ["2 in progress", "2 succeeded, 1 cancelled partway, 1 cancelled before the start"]
    assert listed(viewer, url=OPERATIONS) == [running.pk, cancelled.pk]
    assert listed(viewer, "?state=running", OPERATIONS) == [running.pk]
    assert listed(viewer, "?state=cancelled", OPERATIONS) == [cancelled.pk]
    assert listed(viewer, "?state=finished", OPERATIONS) == []
    assert listed(viewer, "?kind=resync", OPERATIONS) == [running.pk, cancelled.pk]
    assert listed(viewer, "?kind=retry", OPERATIONS) == []
    assert listed(viewer, f"?q={running.operation_id}", OPERATIONS) == [running.pk]
    assert listed(viewer, "?q=of+four", OPERATIONS) == [cancelled.pk]
    assert listed(viewer, "?q=COMMAND", OPERATIONS) == [running.pk, cancelled.pk]


def test_operations_on_several_apps_are_found_for_each(viewer: Client, watches) -> None:
    portal, search = watches[0].app, watches[2].app
    for_portal = resync_by_app(Actor.command(), portal)
    for_both = BulkOperation.objects.create(title="Everything", total=2, requested_by="anna")
    for watch in (watches[0], watches[2]):
        run_of(watch, operation=for_both)
    assert listed(viewer, f"?app={portal.pk}", OPERATIONS) == [for_both.pk, for_portal.pk]
    assert listed(viewer, f"?app={search.pk}", OPERATIONS) == [for_both.pk]
    assert listed(viewer, "?app_name=sea", OPERATIONS) == [for_both.pk]


# --- Links ------------------------------------------------------------------------------------------------------------


def test_app_watch_and_repository_pages_link_to_their_history(viewer: Client, watches) -> None:
    watch = watches[0]
    for page, query in [
        (f"/admin/deliveries_app/app/{watch.app_id}/change/", f"watch__app={watch.app_id}"),
        (f"/admin/deliveries_app/apprepository/{watch.pk}/change/", f"watch={watch.pk}"),
        (
            f"/admin/repositories_app/repository/{watch.repository_id}/change/",
            f"watch__repository={watch.repository_id}",
        ),
    ]:
        assert f'<a href="{RUNS}?{query}">Sync runs</a>' in viewer.get(page).text
    app = viewer.get(f"{RUNS}?watch__app={watch.app_id}").text
    assert f'href="{OPERATIONS}?app={watch.app_id}"' in app
    unseeing = staff("ute", "view_app", "view_apprepository")
    assert RUNS not in unseeing.get(f"/admin/deliveries_app/apprepository/{watch.pk}/change/").text
