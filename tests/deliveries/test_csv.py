"""The history as CSV: filtered, complete, in bounded memory, with spreadsheet formulas escaped."""

import csv
import io
import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.models import AppRepository, BulkOperation, Outcome, Reason, SyncRun
from deliveries_app.reports import history
from docora.web.csv_export import cell, lines
from tests.support.staff import make_app, make_watch, staff

RUNS = "/admin/deliveries_app/syncrun/export/"
OPERATIONS = "/admin/deliveries_app/bulkoperation/export/"
MOMENT = datetime(2025, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)


@pytest.fixture
def watch(db) -> AppRepository:
    return make_watch(make_app("Portal"), "docs")


def rows(client: Client, query: str = "", url: str = RUNS) -> list[dict[str, str]]:
    answer = client.get(url + query)
    assert answer.status_code == 200
    return list(csv.DictReader(io.StringIO(b"".join(answer).decode(), newline="")))


def many(watch: AppRepository, count: int, **fields) -> list[SyncRun]:
    fields = {
        "requested_by": "Docora",
        "reason": Reason.CHANGE,
        "outcome": Outcome.SUCCEEDED,
        "ended_at": MOMENT,
    } | fields
    return SyncRun.objects.bulk_create(
        [
            SyncRun(watch=watch, generation=1, **({"created_at": MOMENT + timedelta(seconds=n)} | fields))
            for n in range(count)
        ]
    )


# --- What is in it -----------------------------------------------------------------------------------------------------


def test_run_row(viewer: Client, watch: AppRepository) -> None:
    operation = BulkOperation.objects.create(title="Re-sync all", total=1, requested_by="anna")
    [run] = many(
        watch, 1, reason=Reason.RESYNC, requested_by="anna", operation=operation, outcome=Outcome.FAILED, attempts=5,
        app_name="Portal", repository_name="acme/docs", started_at=MOMENT + timedelta(seconds=1), created_at=MOMENT,
        ended_at=MOMENT + timedelta(seconds=3.5), commit_sha="c0ffee", files_total=1690, files_done=1204, files_failed=3,
        bytes_total=10_000, bytes_done=9_000, left_out={"ignored": 12, "lfs_pointer": 1}, error='He said "no",\nthen left',
    )  # fmt: skip
    assert rows(viewer) == [
        {
            "run_id": run.run_id,
            "requested_at": "2025-03-04T05:06:07+00:00",
            "started_at": "2025-03-04T05:06:08+00:00",
            "ended_at": "2025-03-04T05:06:11+00:00",
            "seconds": "2.500",
            "app": "Portal",
            "repository": "acme/docs",
            "trigger": "re-sync",
            "requested_by": "anna",
            "outcome": "Partly failed",
            "attempts": "5",
            "commit": "c0ffee",
            "files_total": "1690",
            "files_done": "1204",
            "files_failed": "3",
            "files_left_out": "12",
            "bytes_total": "10000",
            "bytes_done": "9000",
            "bulk_operation_id": operation.operation_id,
            "error": 'He said "no",\nthen left',
        }
    ]


def test_open_run_and_empty_list(viewer: Client, watch: AppRepository) -> None:
    assert rows(viewer) == []
    assert b"".join(viewer.get(RUNS)).startswith(b'"run_id","requested_at",')
    many(watch, 1, outcome="", ended_at=None)
    [row] = rows(viewer)
    assert (row["outcome"], row["started_at"], row["ended_at"], row["seconds"]) == ("In progress", "", "", "")


def test_operation_row_has_final_counts(viewer: Client, watch: AppRepository) -> None:
    operation = BulkOperation.objects.create(
        title="Re-sync all · Portal", app=watch.app, total=4, requested_by="anna", created_at=MOMENT,
        ended_at=MOMENT + timedelta(seconds=10), cancelled_at=MOMENT + timedelta(seconds=9), cancelled_by="olga",
        reason="Ticket 7",
    )  # fmt: skip
    many(watch, 2, operation=operation, started_at=MOMENT, files_total=10, files_done=10, bytes_total=5, bytes_done=5)
    many(watch, 1, operation=operation, outcome=Outcome.CANCELLED, started_at=MOMENT, files_total=10, files_done=4)
    many(watch, 1, operation=operation, outcome=Outcome.CANCELLED, files_total=10)
    [row] = rows(viewer, url=OPERATIONS)
    assert row == {
        "bulk_operation_id": operation.operation_id, "kind": "resync", "title": "Re-sync all · Portal", "app": "Portal",
        "requested_by": "anna", "requested_at": "2025-03-04T05:06:07+00:00", "ended_at": "2025-03-04T05:06:17+00:00",
        "seconds": "10.000", "state": "Cancelled", "cancelled_at": "2025-03-04T05:06:16+00:00", "cancelled_by": "olga",
        "repositories": "4", "full": "2", "failed": "0", "part": "1", "untouched": "1", "superseded": "0", "open": "0",
        "files_total": "40", "files_done": "24", "bytes_total": "10", "bytes_done": "10", "unreleased": "0",
        "reason": "Ticket 7",
    }  # fmt: skip


def test_download_headers(viewer: Client, watch: AppRepository) -> None:
    for url, name in ((RUNS, "sync-runs"), (OPERATIONS, "bulk-operations")):
        answer = viewer.get(url)
        assert answer["Content-Type"] == "text/csv; charset=utf-8; header=present"
        filename = f"docora-{name}-{timezone.localdate():%Y-%m-%d}.csv"
        assert answer["Content-Disposition"] == f'attachment; filename="{filename}"'
        assert "no-store" in answer["Cache-Control"]
        assert answer["X-Content-Type-Options"] == "nosniff"


def test_names_in_any_script_are_kept(viewer: Client, watch: AppRepository) -> None:
    many(watch, 1, repository_name="ács/文書-✓", error="Größe — 5 ‰\u2028")
    [row] = rows(viewer)
    assert (row["repository"], row["error"]) == ("ács/文書-✓", "Größe — 5 ‰\u2028")


# --- Completeness and filters -----------------------------------------------------------------------------------------


def test_rows_with_equal_times_are_exported_once(viewer: Client, watch: AppRepository, monkeypatch) -> None:
    monkeypatch.setattr(history, "_PAGE", 4)
    made = [*many(watch, 6), *many(watch, 11, created_at=MOMENT), *many(watch, 3)]
    newest_first = sorted(made, key=lambda run: (run.created_at, run.pk), reverse=True)
    assert [row["run_id"] for row in rows(viewer)] == [run.run_id for run in newest_first]
    assert [row["run_id"] for row in rows(viewer, "?o=5&p=2&all=")] == [run.run_id for run in newest_first]


def test_filters_apply_without_a_window(viewer: Client, watch: AppRepository, monkeypatch) -> None:
    monkeypatch.setattr(history, "WINDOW", 2)
    other = make_watch(watch.app, "site")
    failed = many(other, 5, outcome=Outcome.FAILED, repository_name="acme/site")
    many(watch, 5, repository_name="acme/docs", created_at=MOMENT + timedelta(days=9))
    wanted = {run.run_id for run in failed}
    for query in ("outcome=failed", f"watch={other.pk}", "q=site", "until=2025-03-04", f"q={failed[0].run_id}"):
        found = {row["run_id"] for row in rows(viewer, f"?{query}")}
        assert found == (wanted if "run_" not in query else {failed[0].run_id}), query
    assert 'export/?outcome=failed">Export CSV</a>' in viewer.get(RUNS.replace("export/", "?outcome=failed&p=1")).text


def test_memory_and_queries_are_bounded(viewer: Client, watch: AppRepository, monkeypatch) -> None:
    """800 more rows take eight more queries and no more memory: each page is freed."""
    monkeypatch.setattr(history, "_PAGE", 100)

    def cost() -> tuple[int, int]:
        """Return the number of queries and the peak memory in bytes during the download."""
        with CaptureQueriesContext(connection) as queries:
            tracemalloc.start()
            for _ in viewer.get(RUNS):
                connection.queries_log.clear()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return len(queries), peak

    many(watch, 200, error="x" * 5000)
    cost()
    _, small = cost()
    many(watch, 800, error="x" * 5000)
    _, large = cost()
    assert large < 1.5 * small  # 4 MB more text

    with CaptureQueriesContext(connection) as queries:
        list(viewer.get(RUNS))
    assert sum("error" in query["sql"] for query in queries) == 1000 // 100 + 1


# --- Formulas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("\t=1", "'\t'=1"),
        ("\r\n=1", "'\r'\n'=1"),
        ("＝1", "'＝1"),
        ("a;=1", "a;'=1"),
        ('a";"=1', 'a";\'"=1'),
        ('a";\n=cmd', "a\";'\n'=cmd"),
        ("acme/docs", "acme/docs"),
        ("a=b", "a=b"),
        ("3 - 2", "3 - 2"),
        ("", ""),
    ],
)
def test_formulas_are_escaped(text: str, written: str) -> None:
    assert cell(text) == written


def test_numbers_and_times_are_not_escaped() -> None:
    assert [cell(value) for value in (-1, 0, -0.5, None, MOMENT)] == [
        "-1",
        "0",
        "-0.500",
        "",
        "2025-03-04T05:06:07+00:00",
    ]


def test_quotes_and_separators_are_escaped() -> None:
    [_, written] = lines(["error"], [[['",=1+1,"'], ["a\r\n=2"]]])
    assert written == b'""",=1+1,"""\r\n"a\r\'\n\'=2"\r\n'
    assert list(csv.reader(io.StringIO(written.decode(), newline=""))) == [['",=1+1,"'], ["a\r'\n'=2"]]


def test_formulas_in_names_are_escaped_in_the_download(viewer: Client, watch: AppRepository) -> None:
    many(watch, 1, app_name="=HYPERLINK(1)", repository_name="-x/@y", requested_by="+anna", error="=cmd|' /C calc'!A0")
    [row] = rows(viewer)
    named = [row[name] for name in ("app", "repository", "requested_by", "error")]
    assert named == ["'=HYPERLINK(1)", "'-x/@y", "'+anna", "'=cmd|' /C calc'!A0"]
    BulkOperation.objects.create(title="=1", total=1, requested_by="@anna")
    [row] = rows(viewer, url=OPERATIONS)
    assert (row["title"], row["requested_by"]) == ("'=1", "'@anna")


# --- Permissions ------------------------------------------------------------------------------------------------------


def test_download_needs_view_permission_and_get(viewer: Client, client: Client, watch) -> None:
    many(watch, 1)
    assert client.get(RUNS).status_code == 302
    assert staff("mallory", "view_bulkoperation", "view_app").get(RUNS).status_code == 403
    assert staff("ron", "view_syncrun").get(OPERATIONS).status_code == 403
    assert len(rows(staff("rita", "view_syncrun"))) == 1
    for method in ("POST", "PUT", "DELETE"):
        assert viewer.generic(method, RUNS).status_code == 405
    assert viewer.head(RUNS).status_code == 200
