"""Import from the existing service: what is imported, and the rows that result."""

import io
import json
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from deliveries_app.importing.source import Source
from deliveries_app.models import App, AppRepository, AuditAction, AuditEntry, Delivery, Status, SyncRun
from repositories_app.models import Repository
from tests.support.existing import LONG_AGO, ExistingService
from tests.support.histories import sha
from tests.support.postgres import PostgresServer
from tests.support.staff import staff

BASE = "http://127.0.0.1:9/hooks"
GIT = "https://127.0.0.1/acme"
FILES = {"a.txt": b"a", "dir/ü.txt": b"b", "z": b""}

pytestmark = pytest.mark.django_db(transaction=True)


def run(existing: ExistingService, monkeypatch: pytest.MonkeyPatch, *arguments: str, **options: Any) -> dict[str, Any]:
    """Run the import and return its JSON report, with `failed` for the exit status."""
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", existing.key)
    out = io.StringIO()
    try:
        call_command("import_docora", existing.url, *arguments, json=True, stdout=out, **options)
    except CommandError as error:
        if not out.getvalue() or "imported only in part or not at all" not in str(error):
            raise
        return json.loads(out.getvalue()) | {"failed": True}
    return json.loads(out.getvalue()) | {"failed": False}


def progress_of(report: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Return kind → (imported, already here, left out)."""
    return {name: tuple(report[name].values()) for name in ("apps", "repositories", "watches", "files")}


def reasons(report: dict[str, Any], of: str = "problems") -> str:
    return "\n".join(f"{item['what']} {item['name']}: {item['reason']}" for item in report[of])


@pytest.mark.parametrize("public_ids", [False, True], ids=["uuids", "public ids"])
def test_import_keeps_ids_times_and_secrets(source_server, monkeypatch, public_ids: bool) -> None:
    existing = ExistingService(source_server, public_ids=public_ids)
    app = existing.app(BASE, "Portal", website="https://portal.example", description="Ours.")
    repository = existing.repository(f"{GIT}/docs.git", is_private=True)
    existing.watch(app, repository, FILES, token="ghp_abc")
    report = run(existing, monkeypatch)
    existing.drop()
    assert progress_of(report) == {
        "apps": (1, 0, 0),
        "repositories": (1, 0, 0),
        "watches": (1, 0, 0),
        "files": (3, 0, 0),
    }
    assert (report["failed"], report["problem_count"], report["remark_count"]) == (False, 0, 0)
    row = App.objects.get()
    assert (row.app_id, row.name, row.base_url, row.email) == (app.app_id, "Portal", BASE, "ops@portal.example")
    assert (row.website, row.description) == ("https://portal.example", "Ours.")
    assert (row.client_auth_key, row.created_at, row.paused) == (app.key, LONG_AGO, False)
    assert AuditEntry.objects.get(action=AuditAction.APP_IMPORTED).app_id == app.app_id
    found = Repository.objects.get()
    assert (found.repository_id, found.canonical_url) == (repository.repository_id, f"{GIT}/docs")
    assert (found.owner, found.name, found.is_private, found.twin) == ("acme", "docs", True, 0)
    watch = AppRepository.objects.get()
    assert (watch.github_url, watch.github_token, watch.created_at) == (f"{GIT}/docs.git", "ghp_abc", LONG_AGO)
    assert (watch.status, watch.arriving, watch.next_sync_at, watch.base_commit) == (Status.SYNCED, False, None, "")
    assert watch.job_id == f"{app.app_id}-{repository.repository_id}"
    rows = {row.path: row for row in Delivery.objects.filter(watch=watch)}
    assert {path: row.acknowledged_sha for path, row in rows.items()} == {
        path: sha(body) for path, body in FILES.items()
    }
    for row in rows.values():
        assert (row.acknowledged, row.source_key, row.generation, row.known_size) == (True, None, 1, None)
        assert (row.sha, row.updated_at) == (row.acknowledged_sha, LONG_AGO)


def test_times_are_read_in_any_format_of_the_database(existing: ExistingService, monkeypatch) -> None:
    existing.app(BASE)
    existing.url += "&options=-cdatestyle%3DGerman%20-ctimezone%3DAmerica/St_Johns"
    run(existing, monkeypatch)
    assert App.objects.get().created_at == LONG_AGO


def test_status_may_be_an_enum(existing: ExistingService, monkeypatch) -> None:
    existing.watch(existing.app(BASE), existing.repository(f"{GIT}/docs"))
    existing.connection.execute("CREATE TYPE status AS ENUM ('pending_snapshot', 'scanning', 'synced', 'failed')")
    existing.connection.execute("ALTER TABLE app_repositories ALTER status TYPE status USING status::status")
    assert run(existing, monkeypatch)["remarks"] == []
    assert AppRepository.objects.get().status == Status.SYNCED


def test_secrets_are_encrypted_with_docoras_key(existing: ExistingService, monkeypatch) -> None:
    existing.app(BASE)
    run(existing, monkeypatch)
    with connection.cursor() as cursor:
        cursor.execute("SELECT client_auth_key FROM deliveries_app_app")
        assert cursor.fetchone()[0].startswith("gAAAAA")


@pytest.mark.parametrize(
    ("status", "files", "expected", "is_due", "run_opened"),
    [
        ("synced", FILES, Status.SYNCED, False, False),
        ("pending_snapshot", {}, Status.PENDING, True, True),
        ("pending_snapshot", FILES, Status.PENDING, True, False),
        ("scanning", FILES, Status.PENDING, True, False),
        ("failed", FILES, Status.FAILED, True, False),
        ("no such status", FILES, Status.PENDING, True, False),
    ],
)
def test_initial_state_of_a_watch(
    existing: ExistingService, monkeypatch, status: str, files, expected: Status, is_due: bool, run_opened: bool
) -> None:
    app, repository = existing.app(BASE), existing.repository(f"{GIT}/docs")
    existing.watch(
        app, repository, files, status=status, last_error="Bad credentials\x1b" if status == "failed" else None
    )
    report = run(existing, monkeypatch)
    watch = AppRepository.objects.get()
    assert (watch.status, watch.next_sync_at is not None, SyncRun.objects.count()) == (expected, is_due, run_opened)
    assert (status == "no such status") == ("'no such status' is unknown" in reasons(report, "remarks"))
    assert watch.is_failing == (status == "failed")
    if watch.is_failing:
        assert watch.last_error.startswith("Failed in the service that it was imported from: Bad credentials")
    if run_opened:
        assert (SyncRun.objects.get().reason, SyncRun.objects.get().requested_by) == ("initial", "command line")


def test_two_spellings_of_a_repository_keep_their_ids(existing: ExistingService, monkeypatch) -> None:
    portal, search = existing.app(BASE, "Portal"), existing.app(BASE, "Search")
    plain = existing.repository(f"{GIT}/docs")
    dotted = existing.repository(f"{GIT}/docs.git", created_at=LONG_AGO + timedelta(days=1))
    existing.watch(portal, plain, {"a": b"1"})
    existing.watch(portal, dotted, {"a": b"1", "b": b"2"})
    existing.watch(search, dotted, {})
    report = run(existing, monkeypatch)
    assert progress_of(report)["watches"] == (3, 0, 0)
    assert f"{dotted.repository_id} is kept" in reasons(report, "remarks")
    rows = Repository.objects.order_by("twin")
    assert [(row.repository_id, row.canonical_url, row.twin) for row in rows] == [
        (plain.repository_id, f"{GIT}/docs", 0),
        (dotted.repository_id, f"{GIT}/docs", 1),
    ]
    watched = {(watch.app.name, watch.repository.repository_id): watch for watch in AppRepository.objects.all()}
    assert {key: watch.deliveries.count() for key, watch in watched.items()} == {
        ("Portal", plain.repository_id): 1, ("Portal", dotted.repository_id): 2, ("Search", dotted.repository_id): 0,
    }  # fmt: skip
    assert watched["Search", dotted.repository_id].github_url == f"{GIT}/docs.git"


def test_dry_run_reports_the_same_and_writes_nothing(existing: ExistingService, monkeypatch) -> None:
    app = existing.app(BASE)
    existing.watch(app, existing.repository(f"{GIT}/docs"), FILES)
    existing.watch(app, existing.repository(f"{GIT}/docs.git"), FILES | {"../out": b""})
    existing.app(BASE, "Broken", client_auth_key_encrypted="00:11:22")
    dry = run(existing, monkeypatch, "--dry-run")
    assert not App.objects.exists()
    assert not Repository.objects.exists()
    assert not Delivery.objects.exists()
    wet = run(existing, monkeypatch)
    assert (dry.pop("dry_run"), wet.pop("dry_run")) == (True, False)
    assert dry == wet
    assert progress_of(wet) == {"apps": (1, 0, 1), "repositories": (2, 0, 0), "watches": (2, 0, 0), "files": (6, 0, 1)}


def test_second_import_adds_new_rows_and_keeps_changed_ones(existing: ExistingService, monkeypatch) -> None:
    app, repository = existing.app(BASE), existing.repository(f"{GIT}/docs")
    existing.watch(app, repository, FILES, token="ghp_abc")
    run(existing, monkeypatch)
    App.objects.update(name="Renamed here", base_url="http://127.0.0.1:10/")
    AppRepository.objects.update(github_token="replaced", generation=3, resend_floor=3)
    Delivery.objects.filter(path="a.txt").update(sha="f" * 64, acknowledged_sha="f" * 64, source_key="A")
    before = list(App.objects.values()), list(AppRepository.objects.values()), list(Delivery.objects.values())
    assert progress_of(run(existing, monkeypatch)) == {
        "apps": (0, 1, 0), "repositories": (0, 1, 0), "watches": (0, 1, 0), "files": (0, 3, 0),
    }  # fmt: skip
    assert before == (list(App.objects.values()), list(AppRepository.objects.values()), list(Delivery.objects.values()))
    existing.watch(app, existing.repository(f"{GIT}/site"), {"new": b"1"})
    existing.app(BASE, "Search")
    assert progress_of(run(existing, monkeypatch)) == {
        "apps": (1, 1, 0), "repositories": (1, 1, 0), "watches": (1, 1, 0), "files": (1, 3, 0),
    }  # fmt: skip


def test_text_report(existing: ExistingService, monkeypatch) -> None:
    app = existing.app(BASE)
    existing.watch(app, existing.repository(f"{GIT}/docs"), FILES | {"a/../b\nProblems (0):\x9b2J": b"x"})
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{existing.key}\n"))
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 item was imported only in part or not at all"):
        call_command("import_docora", existing.url, encryption_key_stdin=True, stdout=out)
    text = out.getvalue()
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", existing.key)
    existing.connection.execute("DELETE FROM app_delivered_files WHERE file_path LIKE 'a/%'")
    existing.app(BASE, "Broken", client_auth_key_encrypted="00:11:22")
    with pytest.raises(CommandError, match="1 item would be imported only in part or not at all"):
        call_command("import_docora", existing.url, "--dry-run", json=True, stdout=io.StringIO())
    for line in (
        "3 imported, 0 already here, 1 left out",
        "Problems (1):",
        "file a/../b\ufffdProblems (0):\ufffd2J in",
        "manage.py resync",
    ):
        assert line in text


def test_text_report_shortens_repeated_reasons(existing: ExistingService, monkeypatch) -> None:
    for number in range(12):
        existing.repository(f"https://forgotten.example/acme/docs-{number}")
    existing.repository("https://other.example/acme/docs")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{existing.key}\n"))
    out = io.StringIO()
    with pytest.raises(CommandError, match="13 items would be imported only in part or not at all"):
        call_command("import_docora", existing.url, "--dry-run", encryption_key_stdin=True, stdout=out)
    text = out.getvalue()
    assert "Problems (13):" in text
    assert text.count("Repositories on forgotten.example can't be watched") == 10
    assert text.count("Repositories on other.example can't be watched") == 1
    assert "\n  and 2 more for the same reason (--json lists all)\n" in text


def test_pages_omit_unknown_sizes(existing: ExistingService, monkeypatch) -> None:
    existing.watch(existing.app(BASE), existing.repository(f"{GIT}/docs"), FILES)
    run(existing, monkeypatch)
    client = staff("olga", "view_delivery", "view_apprepository")
    watch = AppRepository.objects.get()
    pages = ("/admin/deliveries_app/delivery/", f"/admin/deliveries_app/apprepository/{watch.pk}/why/?path=a.txt")
    texts = [client.get(page).text for page in pages]
    assert "a.txt" in texts[0]
    assert "create by the previous service" in texts[1]
    assert not any("0 bytes" in text for text in texts)


def test_progress_bar_only_on_a_terminal(existing: ExistingService, monkeypatch, capsys) -> None:
    existing.watch(existing.app(BASE), existing.repository(f"{GIT}/docs"), FILES)
    run(existing, monkeypatch, "--dry-run")
    assert "delivered files" not in capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich behave as on a terminal
    call_command("import_docora", existing.url)
    assert "delivered files" in capsys.readouterr().err


def test_ctrl_c(existing: ExistingService, monkeypatch) -> None:
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", existing.key)

    def interrupt(source: Source) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Source, "apps", interrupt)
    with pytest.raises(CommandError, match="Nothing is lost"):
        call_command("import_docora", existing.url)


def test_docoras_own_database_is_refused(monkeypatch, postgres_server: PostgresServer, instance_environment) -> None:
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", "0" * 64)
    with pytest.raises(CommandError, match=r"This is Docora's own database.*Docora needs a separate one\."):
        call_command("import_docora", instance_environment["DATABASE_URL"])
