"""An import reports what it cannot import, and imports everything else."""

import io
import os
from datetime import timedelta

import bcrypt
import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from psycopg.conninfo import conninfo_to_dict

from deliveries_app.importing.source import Source, address_of
from deliveries_app.models import App, AppRepository, AppToken, AuditEntry, Delivery
from deliveries_app.services import imported_tokens
from repositories_app.models import Repository
from tests.deliveries.test_import import BASE, FILES, GIT, progress_of, reasons, run
from tests.support.existing import LONG_AGO, ExistingService

pytestmark = pytest.mark.django_db(transaction=True)


def refusal(url: str, *arguments: str, **options) -> str:
    with pytest.raises(CommandError) as caught:
        call_command("import_docora", url, *arguments, stdout=io.StringIO(), **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("", "Set SOURCE_ENCRYPTION_KEY to the ENCRYPTION_KEY of the existing service"),
        ("abc", "must have 64 hex digits"),
        ("g" * 64, "must have 64 hex digits"),
        ("0" * 64, "decrypts none of the stored secrets"),
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_wrong_key_is_detected_before_writing(
    existing: ExistingService, monkeypatch, key: str, sentence: str, arguments
) -> None:
    existing.watch(existing.app(BASE), existing.repository(f"{GIT}/docs"), FILES, token="ghp_abc")
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", key)
    assert sentence in refusal(existing.url, *arguments)
    assert not App.objects.exists()
    assert not Repository.objects.exists()


def test_wrong_url_is_detected_before_the_key(db, monkeypatch) -> None:
    monkeypatch.delenv("SOURCE_ENCRYPTION_KEY", raising=False)
    assert "must be PostgreSQL" in refusal("nope")


def test_key_in_capital_letters(existing: ExistingService, monkeypatch) -> None:
    existing.app(BASE)
    existing.key = existing.key.upper()
    assert progress_of(run(existing, monkeypatch))["apps"] == (1, 0, 0)


def test_secrets_are_never_printed(existing: ExistingService, monkeypatch, capfd) -> None:
    app = existing.app(BASE, key="a-signing-key-that-nobody-sees")
    existing.watch(app, existing.repository(f"{GIT}/docs"), {}, token="ghp_abcdefghijkl")
    existing.app(BASE, "Broken", client_auth_key_encrypted=existing.encrypt("other")[:-2] + "00")
    report = str(run(existing, monkeypatch))
    output = report + "".join(capfd.readouterr())
    for secret in (existing.key, app.key, app.token, "ghp_abcdefghijkl"):
        assert secret not in output


def test_credentials_in_urls_and_errors_are_redacted(existing: ExistingService, monkeypatch) -> None:
    app = existing.app(BASE)
    existing.watch(app, existing.repository("https://user:s3cret@127.0.0.1/acme/docs"), {})
    error = "git clone https://x-access-token:s3cret@github.com/acme/site failed"
    existing.watch(app, existing.repository(f"{GIT}/site"), {}, status="failed", last_error=error)
    password = "s3cret" * 40  # too long to be shown in full
    existing.watch(app, existing.repository(f"https://user:{password}@127.0.0.1/acme/blog"), {})
    error = f"{'fatal: ' * 50} unable to access https://user:{password}@github.com/acme/wiki"
    existing.watch(app, existing.repository(f"{GIT}/wiki"), {}, status="failed", last_error=error)
    existing.app("https://user:s3cret@portal.example/hooks", "Old address")
    report = run(existing, monkeypatch)
    assert "must not contain credentials" in reasons(report)
    assert "must not contain credentials" in reasons(report, "remarks")
    assert "s3cret" not in str(report) + "".join(watch.last_error for watch in AppRepository.objects.all())
    assert "s3cret" not in str(list(AuditEntry.objects.values()))


@pytest.mark.parametrize("table", ["apps", "app_delivered_files"])
def test_missing_tables_and_columns(existing: ExistingService, monkeypatch, table: str) -> None:
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", existing.key)
    existing.connection.execute("ALTER TABLE app_repositories DROP COLUMN status")
    assert refusal(existing.url) == "The table app_repositories has no column status."
    existing.connection.execute(f"DROP TABLE {table} CASCADE")
    assert f"it has no table {table}" in refusal(existing.url)


def test_tables_in_another_schema(existing: ExistingService, monkeypatch) -> None:
    existing.app(BASE)
    existing.connection.execute("CREATE SCHEMA old")
    for table in ("apps", "repositories", "app_repositories", "app_delivered_files"):
        existing.connection.execute(f"ALTER TABLE {table} SET SCHEMA old")
    existing.url += "&options=-csearch_path%3Dold"
    assert progress_of(run(existing, monkeypatch))["apps"] == (1, 0, 0)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://x/y", "a URL that begins with postgres://"),
        ("postgres://user:s3cr%zz@127.0.0.1/x", "The database URL is malformed"),
        ("postgres://user:s3cret@127.0.0.1:1/x", "cannot be reached"),
        ("postgres://user:s3cret@127.0.0.1/x?no_such=1", "The database URL is malformed"),
        ("postgres://user:s3cret@127.0.0.1/x?schema=public", "After the ?, only parameters of libpq are allowed"),
    ],
)
def test_invalid_url_is_reported_without_the_password(monkeypatch, url: str, sentence: str) -> None:
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", "0" * 64)
    output = refusal(url)
    assert sentence in output
    assert "s3cr" not in output


@pytest.mark.parametrize(("query", "seconds"), [("", "10"), ("?connect_timeout=3", "3")])
def test_source_that_does_not_answer_is_not_waited_for_long(query: str, seconds: str) -> None:
    assert conninfo_to_dict(address_of(f"postgres://user@127.0.0.1/x{query}"))["connect_timeout"] == seconds


def test_source_needs_only_read_access(existing: ExistingService, monkeypatch) -> None:
    existing.watch(existing.app(BASE), existing.repository(f"{GIT}/docs"), FILES)
    role = f"reader_{os.getpid()}"
    existing.connection.execute(f"CREATE ROLE {role} LOGIN")
    existing.connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    existing.url = existing.url.replace("user=docora", f"user={role}")
    try:
        assert progress_of(run(existing, monkeypatch))["files"] == (3, 0, 0)
    finally:
        existing.connection.execute(f"DROP OWNED BY {role}")
        existing.connection.execute(f"DROP ROLE {role}")


def test_role_from_which_policies_hide_rows(existing: ExistingService, monkeypatch) -> None:
    """Files whose records it does not see would be sent again."""
    role = f"tenant_{os.getpid()}"
    existing.connection.execute("ALTER TABLE app_delivered_files ENABLE ROW LEVEL SECURITY")
    existing.connection.execute(f"CREATE ROLE {role} LOGIN")
    existing.connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", existing.key)
    try:
        message = refusal(existing.url.replace("user=docora", f"user={role}"))
        assert 'would be affected by row-level security policy for table "app_delivered_files"' in message
    finally:
        existing.connection.execute(f"DROP OWNED BY {role}")
        existing.connection.execute(f"DROP ROLE {role}")


def test_role_without_read_access(existing: ExistingService, monkeypatch) -> None:
    role = f"nobody_{os.getpid()}"
    existing.connection.execute(f"CREATE ROLE {role} LOGIN")
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", existing.key)
    try:
        message = refusal(existing.url.replace("user=docora", f"user={role}"))
        assert message == (
            "The existing service's database refuses to be read: permission denied for table apps. Grant its user SELECT on "
            "apps, repositories, app_repositories, app_delivered_files."
        )
    finally:
        existing.connection.execute(f"DROP ROLE {role}")


def test_invalid_apps_are_imported_as_far_as_possible(existing: ExistingService, monkeypatch) -> None:
    existing.app("ftp://portal.example", "Wrong address")
    existing.app("http://10.1.2.3:9000/hooks", "Private address")
    existing.app("http://[::1]:9000/hooks", "Private address, version 6")
    existing.app("http://portal.example/hooks", "Host name")
    existing.app("https://portal.example/hooks?key=1", "Query")
    existing.app(" https://portal.example/hooks\n", "Spaces")  # imported without them, so it is valid
    existing.app(BASE, "Unsafe website", website="javascript:alert(1)")
    existing.app(BASE, "No token", token_hash="sha1:whatever")
    existing.app(BASE, "Too costly", token_hash="$2b$31$" + "a" * 53)
    existing.app(BASE, "Invalid salt", token_hash="$2b$12$" + "x" * 53)
    existing.app(BASE, "No key", client_auth_key_encrypted="")
    existing.app(BASE, "Odd id", app_id="../../etc")
    existing.app(BASE, "", app_id="app_without_name")
    existing.app(BASE, "Two\nlines, \u202edrawkcab")
    existing.app(BASE, "Wide  name")
    existing.app(BASE, "Odd key", key="whsec_my-portal-secret-2024")
    existing.app(BASE, "Standard key", key="whsec_" + "YQ" * 12)
    report = run(existing, monkeypatch)
    assert progress_of(report)["apps"] == (15, 0, 2)
    problems, remarks = reasons(report), reasons(report, "remarks")
    assert "app No key (app_" in problems
    assert "Its signing key cannot be decrypted" in problems
    assert "Odd id (../../etc): Its id may contain only" in problems
    assert problems.count("Rotate its token") == 3
    assert remarks.count("starts with whsec_ but") == 1
    assert "app Odd key" in remarks
    assert "Wrong address" in remarks
    assert "The base URL must start with" in remarks
    assert "settings change. 10.1.2.3 is a private address. Only public" in remarks
    assert "settings change. ::1 is " in remarks
    assert remarks.count("Notifications cannot be sent") == 3
    assert remarks.count("Notifications may go to a wrong URL until its base URL") == 1
    assert "Its website is not a valid http(s) URL" in remarks
    assert "In Docora, it is 'app_without_name'." in remarks
    assert "In Docora, it is 'Two lines, \ufffddrawkcab'." in remarks
    assert "had extra spaces or unprintable characters. In Docora, it is 'Wide name'." in remarks
    assert App.objects.get(name="Unsafe website").website == ""
    assert App.objects.get(name="Spaces").base_url == "https://portal.example/hooks"
    assert App.objects.get(name="Wrong address").base_url == "ftp://portal.example"
    assert not App.objects.get(name="Too costly").tokens.exists()


@pytest.mark.parametrize("used", [False, True])
def test_second_app_with_the_same_token_is_imported_without_it(
    existing: ExistingService, monkeypatch, used: bool
) -> None:
    token_hash = bcrypt.hashpw(b"docora_" + b"0" * 64, bcrypt.gensalt(4)).decode()
    existing.app(BASE, "First", token_hash=token_hash)
    if used:
        run(existing, monkeypatch)
        assert imported_tokens.recognise("docora_" + "0" * 64)
    second = existing.app(BASE, "Second", token_hash=token_hash, created_at=LONG_AGO + timedelta(days=1))
    existing.watch(second, existing.repository(f"{GIT}/docs"), FILES)
    dry, wet = run(existing, monkeypatch, "--dry-run"), run(existing, monkeypatch)
    assert progress_of(dry) == progress_of(wet) == {
        "apps": (1, 1, 0) if used else (2, 0, 0), "repositories": (1, 0, 0), "watches": (1, 0, 0), "files": (3, 0, 0),
    }  # fmt: skip
    assert reasons(dry) == reasons(wet)
    assert f"app Second ({second.app_id}): Another app has the same token and keeps it. Rotate" in reasons(wet)
    assert [token.app.name for token in AppToken.objects.all()] == ["First"]


def test_host_that_is_not_allowed_is_imported_once_it_is(existing: ExistingService, monkeypatch, settings) -> None:
    app = existing.app(BASE)
    existing.watch(app, existing.repository("https://git.example/acme/docs"), FILES)
    report = run(existing, monkeypatch)
    assert progress_of(report) == {
        "apps": (1, 0, 0),
        "repositories": (0, 0, 1),
        "watches": (0, 0, 1),
        "files": (0, 0, 3),
    }
    assert "can add the host to ALLOWED_GIT_HOSTS. Once that is fixed, import again to include it" in reasons(report)
    named = [item["name"] for item in report["problems"] if item["what"] == "watch"]
    assert named == [f"https://git.example/acme/docs of Portal ({app.app_id})"]
    settings.ALLOWED_GIT_HOSTS = ["git.example"]
    report = run(existing, monkeypatch)
    assert progress_of(report) == {
        "apps": (0, 1, 0),
        "repositories": (1, 0, 0),
        "watches": (1, 0, 0),
        "files": (3, 0, 0),
    }
    assert not report["failed"]


def test_plain_http(existing: ExistingService, monkeypatch, settings) -> None:
    settings.ALLOW_HTTP = False
    existing.watch(existing.app(BASE), existing.repository("http://127.0.0.1/acme/docs"), {})
    report = run(existing, monkeypatch)
    assert "Notifications cannot be sent until its base URL or the settings change" in reasons(report, "remarks")
    assert "must look like https://<host>/owner/name and start with https://" in reasons(report)


@pytest.mark.parametrize("stored", ["not encrypted", "with space"])
def test_watch_with_an_unusable_token_is_imported_without_it(
    existing: ExistingService, monkeypatch, stored: str
) -> None:
    app, repository = existing.app(BASE), existing.repository(f"{GIT}/docs")
    encrypted = stored if stored == "not encrypted" else existing.encrypt("two words")
    existing.watch(app, repository, FILES, github_token_encrypted=encrypted)
    report = run(existing, monkeypatch)
    assert progress_of(report)["watches"] == (1, 0, 0)
    reason = "cannot be decrypted and was left out." if stored == "not encrypted" else "was left out. "
    assert f"Its token {reason}" in reasons(report)
    assert "Enter it again." in reasons(report)
    assert (AppRepository.objects.get().github_token, report["failed"]) == ("", True)


def test_invalid_records_are_listed_up_to_a_limit(existing: ExistingService, monkeypatch) -> None:
    app, repository = existing.app(BASE), existing.repository(f"{GIT}/docs")
    existing.watch(app, repository, FILES)
    odd = {".git/hooks/x": "a" * 64, "A" + "ä" * 1000: "a" * 64, "no-sha": "?", "capitals": "A" * 64}
    existing.deliver(app, repository, odd.items())
    existing.deliver(app, repository, [(f"zz/../{number:03}", "a" * 64) for number in range(300)])
    report = run(existing, monkeypatch)
    assert progress_of(report)["files"] == (4, 0, 303)
    assert (report["problem_count"], len(report["problems"])) == (303, 200)
    assert Delivery.objects.get(path="capitals").sha == "a" * 64
    assert "Its record has no SHA-256" in reasons(report)
    assert "Paths longer than 1024 bytes are not sent" in reasons(report)


def test_many_invalid_records_do_not_hide_the_problem_of_a_watch(existing: ExistingService, monkeypatch) -> None:
    app, first, second = existing.app(BASE), existing.repository(f"{GIT}/docs"), existing.repository(f"{GIT}/site")
    existing.watch(app, first)
    existing.deliver(app, first, [(f".git/{number:03}", "a" * 64) for number in range(300)])
    existing.watch(app, second, created_at=LONG_AGO + timedelta(days=1), github_token_encrypted="not encrypted")
    report = run(existing, monkeypatch)
    assert f"watch {GIT}/site of Portal: Its token cannot be decrypted and was left out. Enter it again." in reasons(
        report
    )
    assert (report["problem_count"], len(report["problems"])) == (301, 201)


def test_rows_with_dangling_references(existing: ExistingService, monkeypatch) -> None:
    app, repository, gone = (existing.app(BASE), existing.repository(f"{GIT}/docs"), existing.repository(f"{GIT}/gone"))
    existing.watch(app, repository, FILES)
    existing.watch(app, gone, FILES)
    existing.deliver(app, existing.repository(f"{GIT}/unwatched"), [("a", "a" * 64)])
    existing.connection.execute("DELETE FROM repositories WHERE id = %s", [gone.id])
    report = run(existing, monkeypatch)
    assert progress_of(report) == {
        "apps": (1, 0, 0),
        "repositories": (2, 0, 0),
        "watches": (1, 0, 1),
        "files": (3, 0, 4),
    }
    assert "Its repository was not imported" in reasons(report)
    assert "4 records: Left out, because they belong to no imported watch" in reasons(report, "remarks")


@pytest.mark.parametrize(
    ("table", "column", "kind", "sentence"),
    [
        ("apps", "app_id", "app", "Its id may contain only"),
        ("apps", "base_url", "app", "Notifications cannot be sent until its base URL or the settings change."),
        ("repositories", "repository_id", "repository", "Its id may contain only"),
        ("repositories", "github_url", "repository", "The repository URL must look like"),
        ("app_repositories", "app_id", "watch", "Its app was not imported."),
        ("app_delivered_files", "file_path", "file", "The app keeps its copy."),
    ],
)
def test_row_with_a_null_is_reported(
    existing: ExistingService, monkeypatch, table: str, column: str, kind: str, sentence: str
) -> None:
    existing.connection.execute("ALTER TABLE app_delivered_files DROP CONSTRAINT app_delivered_files_pkey")
    app = existing.app(BASE)
    existing.watch(app, existing.repository(f"{GIT}/docs"), {"a": b"a"})
    existing.connection.execute(f"ALTER TABLE {table} ALTER {column} DROP NOT NULL")
    existing.connection.execute(f"UPDATE {table} SET {column} = NULL")
    existing.watch(existing.app(BASE, "Other"), existing.repository(f"{GIT}/site"), {"b": b"b"})
    report = run(existing, monkeypatch)
    told = [item for item in report["problems"] + report["remarks"] if item["what"] == kind]
    assert sentence in told[0]["reason"]
    assert AppRepository.objects.filter(app__name="Other").exists()


def test_source_that_disconnects_during_the_import(existing: ExistingService, monkeypatch) -> None:
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", existing.key)
    existing.app(BASE)
    original = Source.repositories

    def cut(source: Source):
        with psycopg.connect(existing.server.url_of("postgres"), autocommit=True) as connection:
            ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> %s"
            connection.execute(ending, [existing.connection.info.dbname, existing.connection.info.backend_pid])
        return original(source)

    monkeypatch.setattr(Source, "repositories", cut)
    message = refusal(existing.url)
    assert message.startswith("The connection to the existing service's database failed: ")
    assert message.endswith(". Nothing is lost. Run the command again to continue.")


@pytest.mark.parametrize("time", ["infinity", "-infinity", "0044-03-15 BC", "20000-01-01", "9999-12-31 23:59:59"])
def test_time_that_cannot_be_represented_is_unknown(existing: ExistingService, monkeypatch, time: str) -> None:
    app, repository = existing.app(BASE, created_at=time), existing.repository(f"{GIT}/docs", created_at=time)
    existing.watch(app, repository, FILES, created_at=time, last_scanned_at=time)
    existing.connection.execute("UPDATE app_delivered_files SET delivered_at = %s", [time])
    before = timezone.now()
    assert progress_of(run(existing, monkeypatch))["files"] == (3, 0, 0)
    watch = AppRepository.objects.select_related("app", "repository").get()
    assert watch.last_scanned_at is None
    times = [watch.created_at, watch.app.created_at, watch.repository.created_at]
    times += watch.deliveries.values_list("updated_at", flat=True)
    assert all(before <= time <= timezone.now() for time in times)


def test_value_that_cannot_be_read(existing: ExistingService, monkeypatch) -> None:
    """Running the command again would not help."""
    existing.watch(existing.app(BASE), existing.repository(f"{GIT}/docs"), last_scanned_at="infinity")
    existing.connection.execute("ALTER TABLE app_repositories ALTER last_scanned_at TYPE date")
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", existing.key)
    message = refusal(existing.url)
    assert message.startswith("The existing service's database cannot be read: date too large")
    assert "Run the command again" not in message


@pytest.mark.parametrize(
    ("table", "column", "row"),
    [
        ("apps", "description", r"id {app.id}, app_id {app.app_id}, app_name Portal"),
        ("app_delivered_files", "file_path", r"app_id {app.id}, repository_id {repository.id}, file_path caf\xe9.txt"),
    ],
)
def test_text_that_is_not_utf8_is_named(
    existing: ExistingService, monkeypatch, table: str, column: str, row: str
) -> None:
    app, repository = existing.app(BASE), existing.repository(f"{GIT}/docs")
    existing.watch(app, repository, {"b.txt": b"b"})
    execute = existing.connection.execute
    set_encoding = "UPDATE pg_database SET (encoding, datlocprovider) = (%s, %s) WHERE datname = current_database()"
    before = execute("SELECT encoding, datlocprovider FROM pg_database WHERE datname = current_database()").fetchone()
    execute(set_encoding, [0, "c"])  # SQL_ASCII with the C library's locale
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", existing.key)
    try:
        with psycopg.connect(existing.url) as other:
            other.execute(f"UPDATE {table} SET {column} = E'caf\\351.txt'")
        message = refusal(existing.url)
    finally:
        execute(set_encoding, before)
    assert message == (
        f"The table {table} has text that is not UTF-8, in the column {column} of the row with "
        f"{row.format(app=app, repository=repository)}. Correct it there, and run the command again."
    )
