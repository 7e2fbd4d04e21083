"""`migrate` upgrades a database of an earlier version, and Docora continues with its rows."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deliveries_app.receiver import Receiver
from tests.support import commands
from tests.support.environment import TEST_DATABASE
from tests.support.git import GitFixture
from tests.support.histories import shas
from tests.support.postgres import PostgresServer
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.valkey import ValkeyServer
from tests.upgrade import make_dumps
from tests.upgrade.databases import Database, Postgresql, Sqlite

AUDIT_LOG = "deliveries_app_auditentry"
APP_ID = f"app_{1:024}"
REPOSITORY_IDS = [f"repo_{1:024}", f"repo_{2:024}"]

READ_EVERYTHING = """
import json
from django.apps import apps
from deliveries_app.models import App, AppRepository
models = [model for model in apps.get_models() if model._meta.managed and not model._meta.proxy]
print(json.dumps({
    "rows": {model._meta.db_table: len(list(model._base_manager.all())) for model in models},
    "keys": [app.client_auth_key for app in App.objects.order_by("pk")],
    "new_keys": [app.new_auth_key for app in App.objects.order_by("pk")],
    "watches": [[w.status, w.github_token, w.push_secret] for w in AppRepository.objects.order_by("pk")],
}))
"""
POINT_AT_TEST_SERVERS = """
import os
from deliveries_app.models import App, AppRepository
from repositories_app.models import Repository
App.objects.filter(pk=1).update(base_url=os.environ["RECEIVER"])
for pk, name in ((1, "widgets"), (2, "private")):
    url = f"{os.environ['GIT']}/acme/{name}"
    Repository.objects.filter(pk=pk).update(canonical_url=url)
    AppRepository.objects.filter(repository=pk).update(github_url=url)
"""


def environment_of(database: Database, directory: Path) -> dict[str, str]:
    keys = {"SECRET_KEY": "a-key-that-only-the-tests-of-upgrades-use", "ENCRYPTION_KEYS": make_dumps.ENCRYPTION_KEY}
    return os.environ | {"DATABASE_URL": database.url, "DATA_DIR": str(directory), "REPOS_DIR": str(directory)} | keys


def manage(database: Database, directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a `manage.py` command on the database."""
    return commands.manage(*arguments, environment=environment_of(database, directory) | variables, timeout=120)


def succeed(*arguments: Any, **variables: str) -> str:
    done = manage(*arguments, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upgrade")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, directory: Path) -> Database:
    if request.param == "sqlite":
        return Sqlite(directory / "empty.sqlite3")
    return Postgresql(request.getfixturevalue("postgres_server"))


@pytest.fixture(scope="module")
def old(empty: Database) -> Database:
    """A database as the earlier version left it."""
    old = empty.new()
    old.load()
    return old


@pytest.fixture(scope="module")
def upgraded(old: Database, directory: Path) -> Database:
    upgraded = old.copy()
    succeed(upgraded, directory, "migrate", "--no-input")
    return upgraded


@pytest.fixture(scope="module")
def fresh(empty: Database, migrated_sqlite: Path, migrated_postgres: Path) -> Iterator[Database]:
    """A new installation, as `manage.py migrate` creates it."""
    if isinstance(empty, Sqlite):
        yield Sqlite(migrated_sqlite)
        return
    server = PostgresServer()  # another one, because Django is connected to the database that is copied
    server.template = migrated_postgres
    with server:
        yield Postgresql(server, TEST_DATABASE)


def test_dump_has_rows_in_every_table(old: Database) -> None:
    never_filled = "axes_accessattemptexpiration"  # Docora does not use this feature of axes
    assert [table for table, rows in old.count_rows().items() if rows == 0] == [never_filled]


def test_schema_equals_that_of_a_fresh_database(upgraded: Database, fresh: Database) -> None:
    assert upgraded.schema() - fresh.schema() == set()
    assert fresh.schema() - upgraded.schema() == set()
    assert len(fresh.schema()) > 300


def test_migrations_recorded_as_in_a_fresh_database(upgraded: Database, fresh: Database) -> None:
    """Fresh databases record the replaced migrations too, because processes of the previous version look for them."""
    recorded = "SELECT app, name FROM django_migrations ORDER BY app, name"
    assert upgraded.execute(recorded) == fresh.execute(recorded)
    assert ("deliveries_app", "0012_imported") in fresh.execute(recorded)


def test_nothing_is_left_to_migrate(upgraded: Database, directory: Path) -> None:
    assert "[ ]" not in succeed(upgraded, directory, "showmigrations")
    succeed(upgraded, directory, "makemigrations", "--check", "--dry-run")


def test_index_whose_building_was_interrupted_is_built_again(
    old: Database, upgraded: Database, directory: Path
) -> None:
    if isinstance(old, Sqlite):
        pytest.skip("SQLite builds an index in a transaction.")
    database = old.copy()
    database.execute("CREATE INDEX run_last ON deliveries_app_syncrun (id)")
    database.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'run_last'::regclass")
    succeed(database, directory, "migrate", "--no-input")
    assert database.schema() == upgraded.schema()


def test_every_row_is_read_and_every_secret_decrypted(old: Database, upgraded: Database, directory: Path) -> None:
    read = json.loads(succeed(upgraded, directory, "shell", "--verbosity", "0", "-c", READ_EVERYTHING))
    before = old.count_rows()
    tables = read["rows"].keys()
    assert {"deliveries_app_delivery", "repositories_app_repository", "auth_user", "django_session"} <= tables
    from_migrations = {"auth_group", "auth_permission", "django_content_type"}
    assert {table: read["rows"][table] for table in tables - from_migrations} == {
        table: before["django_admin_log"] if table == AUDIT_LOG else before.get(table, 0)  # a new table is empty
        for table in tables - from_migrations
    }
    assert read["keys"] == [make_dumps.SIGNING_KEY] * 2
    assert read["new_keys"] == ["", make_dumps.SIGNING_KEY]
    assert read["watches"] == [
        ["synced", "", "a-push-secret"],
        ["failed", make_dumps.GITHUB_TOKEN, ""],
        ["pending_snapshot", "", ""],
        ["scanning", "", ""],
        ["pending_snapshot", "", ""],
    ]


def test_old_secrets_move_to_a_new_key(upgraded: Database, directory: Path) -> None:
    database, new = upgraded.copy(), "a-newer-key-of-the-upgrade-tests"
    both = f"{new},{make_dumps.ENCRYPTION_KEY}"
    assert "You can remove the older keys." in succeed(
        database, directory, "rotate_encryption_keys", ENCRYPTION_KEYS=both
    )
    read = succeed(database, directory, "shell", "--verbosity", "0", "-c", READ_EVERYTHING, ENCRYPTION_KEYS=new)
    assert json.loads(read)["keys"] == [make_dumps.SIGNING_KEY] * 2
    assert json.loads(read)["watches"][1] == ["failed", make_dumps.GITHUB_TOKEN, ""]
    with_old_key = succeed(database, directory, "shell", "--verbosity", "0", "-c", READ_EVERYTHING)
    assert make_dumps.SIGNING_KEY not in with_old_key


def test_old_log_entries_are_in_the_audit_log(old: Database, upgraded: Database) -> None:
    joined = "FROM django_admin_log l JOIN auth_user u ON u.id = l.user_id ORDER BY l.id"
    expected = old.execute(f"SELECT u.username, l.object_id, l.object_repr {joined}")
    copied = f"SELECT actor, subject_id, subject, message, app_id FROM {AUDIT_LOG} ORDER BY id"
    entries = upgraded.execute(copied)
    assert [entry[:3] for entry in entries] == expected
    assert all(message for *_, message, _ in entries)
    assert APP_ID in {app_id for *_, app_id in entries}


def test_audit_log_is_append_only_again_after_migrating_back(upgraded: Database, directory: Path) -> None:
    database = upgraded.copy()
    schema = database.schema()
    succeed(database, directory, "migrate", "deliveries_app", "0019")
    assert AUDIT_LOG not in database.count_rows()
    assert not [table for table in database.count_rows() if "guard" in table]
    succeed(database, directory, "migrate", "--no-input")
    assert database.schema() == schema
    with pytest.raises(Exception, match="append-only"):
        database.execute(f"DELETE FROM {AUDIT_LOG}")
    trigger = f"{AUDIT_LOG}_no_delete" if isinstance(database, Sqlite) else f"append_only_rows ON {AUDIT_LOG}"
    database.execute(f"DROP TRIGGER {trigger}")
    assert "triggers that protect the audit log are gone" in manage(database, directory, "doctor", "--offline").stdout
    succeed(database, directory, "migrate", "--no-input")
    with pytest.raises(Exception, match="append-only"):
        database.execute(f"DELETE FROM {AUDIT_LOG}")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """The client app, with the copy that the dump says it has."""
    for repository_id, files in zip(REPOSITORY_IDS, (make_dumps.WIDGETS, make_dumps.PRIVATE), strict=True):
        for path, content in files.items():
            file = tmp_path / "copies" / APP_ID / repository_id / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    with Receiver(tmp_path / "copies", make_dumps.SIGNING_KEY) as receiver:
        yield receiver


def test_syncs_continue_from_the_old_rows(
    upgraded: Database, receiver: Receiver, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    """Acknowledged files are not sent again, not even imported ones. A notification in doubt is repeated with its
    sequence."""
    database = upgraded.copy()
    widgets = make_dumps.WIDGETS | {make_dumps.IN_DOUBT: make_dumps.IN_DOUBT_CONTENT, "src/changed.py": b"after = 2\n"}
    del widgets["src/removed.py"]
    private = make_dumps.PRIVATE | {"new.md": b"New.\n"}
    with GitFixture(tmp_path / "git") as git:
        git.repo("acme/widgets", widgets)
        git.repo("acme/private", private, token=make_dumps.GITHUB_TOKEN)
        servers = {"GIT": git.url, "RECEIVER": receiver.url}
        succeed(database, tmp_path, "shell", "--verbosity", "0", "-c", POINT_AT_TEST_SERVERS, **servers)
        succeed(database, tmp_path, "resume_syncing")
        quick = {"SWEEP_INTERVAL_SECONDS": "0.5", "REDIS_URL": valkey_server.url}
        daemons = Daemons(tmp_path, environment_of(database, tmp_path) | quick)
        try:
            daemons.sweep(), daemons.worker()
            wait_for(
                lambda: (
                    [receiver.copy(APP_ID, repository_id) for repository_id in REPOSITORY_IDS]
                    == [shas(widgets), shas(private)]
                ),
                60,
                0.1,
            )
            # The last watch had ended, so it is removed.
            wait_for(
                lambda: statuses(database) == ["synced", "synced", "pending_snapshot", "pending_snapshot"], 60, 0.1
            )
        finally:
            logs = daemons.logs()
            daemons.close()
    assert "Traceback" not in logs
    sent = {(record.kind, record.repository, record.path): record for record in receiver.log}
    assert sent.keys() == {
        ("delete", "acme/widgets", "src/removed.py"),
        ("create", "acme/widgets", make_dumps.IN_DOUBT),
        ("update", "acme/widgets", "src/changed.py"),
        ("sync_failed", "acme/private", ""),
        ("create", "acme/private", "new.md"),
    }
    assert all(record.verified and record.status == 200 for record in receiver.log)
    in_doubt = sent["create", "acme/widgets", make_dumps.IN_DOUBT]
    assert in_doubt.sequence == make_dumps.IN_DOUBT_SEQUENCE


def statuses(database: Database) -> list[str]:
    return [status for (status,) in database.execute("SELECT status FROM deliveries_app_apprepository ORDER BY id")]


def test_database_that_lacks_a_squashed_migration_is_refused(empty: Database, directory: Path) -> None:
    """Django would skip the squashed migration and report success."""
    older = empty.new()
    older.load()
    older.execute("DELETE FROM django_migrations WHERE name = '0012_imported'")
    before = older.schema()
    done = manage(older, directory, "migrate", "--no-input")
    assert (done.returncode, done.stderr) == (
        1,
        "CommandError: The database is too old for this version of Docora: it lacks migration "
        "deliveries_app.0012_imported. First run migrate with a version that still has this migration, then with this "
        "one.\n",
    )
    assert older.schema() == before
