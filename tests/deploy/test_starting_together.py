"""Replicas that start together before, during and after the migration of the database."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from deliveries_app.monitoring import health
from docora.db import schema
from docora.management.commands.migrate import _LOCK
from tests.deploy.test_compose import readiness
from tests.support.environment import TEST_DATABASE
from tests.support.instance import free_port
from tests.support.postgres import PostgresServer
from tests.support.processes import Daemon, Daemons, children
from tests.support.receiver import wait_for

ADMINISTRATOR = {"ADMIN_USERNAME": "anna", "ADMIN_PASSWORD": "a-password-of-the-tests"}


@pytest.fixture
def replicas(tmp_path: Path, addresses: dict[str, str], instance_environment: dict[str, str]) -> Iterator[Daemons]:
    """Replicas on one database without tables."""
    daemons = Daemons(tmp_path, instance_environment | addresses | ADMINISTRATOR)
    yield daemons
    daemons.close()


def start_elsewhere(replicas: Daemons, directory: Path, *options: str) -> tuple[Daemon, str]:
    """Start `up` as on another machine, with its own data directory and port. Return it and its readiness URL."""
    port = free_port()
    replicas.environment |= {"SECRET_KEY": "a-key-that-only-the-tests-of-replicas-use", "ENCRYPTION_KEYS": "y" * 32}
    daemon = replicas.start("up", "--workers", "1", "--data", str(directory), "--port", str(port), *options)
    return daemon, f"http://127.0.0.1:{port}/health/ready"


def test_two_up_and_a_migrate_on_a_fresh_database(replicas: Daemons, tmp_path: Path) -> None:
    ups = [start_elsewhere(replicas, tmp_path / name) for name in ("one", "two")]
    migrate = replicas.start("migrate", "--no-input")
    assert migrate.process.wait(90) == 0, replicas.logs()
    for daemon, address in ups:
        assert wait_for(lambda address=address: readiness(address).get("ready"), 90, 0.3), replicas.logs()
        assert daemon.running
    with psycopg.connect(replicas.environment["DATABASE_URL"]) as database:
        assert database.execute("SELECT username FROM auth_user").fetchall() == [("anna",)]
    assert "Traceback" not in replicas.logs()


def test_three_concurrent_migrate_on_sqlite(tmp_path: Path, instance_environment: dict[str, str]) -> None:
    file = tmp_path / "docora.sqlite3"
    daemons = Daemons(tmp_path, instance_environment | {"DATABASE_URL": f"sqlite:///{file}"})
    try:
        three = [daemons.start("migrate", "--no-input") for _ in range(3)]
        assert [daemon.process.wait(90) for daemon in three] == [0, 0, 0], daemons.logs()
    finally:
        daemons.close()
    assert "another process is migrating" in daemons.logs()
    with sqlite3.connect(file) as database:
        [(applied, different)] = database.execute(
            "SELECT count(*), count(DISTINCT app || name) FROM django_migrations"
        ).fetchall()
    assert applied == different > 20


def test_migrate_waits_for_another_migrate(replicas: Daemons, instance_environment: dict[str, str]) -> None:
    replicas.environment["DATABASE_URL"] = instance_environment["DATABASE_URL"]  # with nothing left to migrate
    with psycopg.connect(replicas.environment["DATABASE_URL"], autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        waiting = replicas.start("migrate", "--no-input")
        wait_for(lambda: "Waiting: another process is migrating this database." in waiting.log.read_text(), 30)
        assert waiting.running
    assert waiting.process.wait(60) == 0


def test_migrate_blocks_no_query_while_it_waits_for_a_backup(replicas: Daemons) -> None:
    """In PostgreSQL, no other session can read a table while a migration waits for a backup that reads it."""
    assert replicas.start("migrate", "--no-input").process.wait(60) == 0
    assert replicas.start("migrate", "deliveries_app", "0026", "--no-input").process.wait(60) == 0
    address, table = replicas.environment["DATABASE_URL"], "deliveries_app_syncrun"
    with psycopg.connect(address) as backup, psycopg.connect(address, autocommit=True) as page:
        backup.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
        migrate = replicas.start("migrate", "--no-input")
        wait_for(lambda: "Waiting: other sessions, such as a backup, use the tables." in migrate.log.read_text(), 40)
        page.execute("SET statement_timeout = '4s'")
        for _ in range(20):
            page.execute(f"SELECT count(*) FROM {table}")
            time.sleep(0.1)
        assert migrate.running
    assert migrate.process.wait(60) == 0
    assert "Traceback" not in replicas.logs()


def test_processes_wait_for_the_migrations(replicas: Daemons, tmp_path: Path) -> None:
    up, address = start_elsewhere(replicas, tmp_path / "one", "--no-migrate")
    early = [up, replicas.start("web"), replicas.worker(), replicas.sweep()]
    for daemon in early:
        wait_for(lambda daemon=daemon: "Waiting: the database is not migrated" in daemon.log.read_text(), 40, 0.1)
    assert replicas.start("sweep", "--once").process.wait(40) == 1
    assert replicas.start("migrate", "--no-input").process.wait(60) == 0
    assert wait_for(lambda: readiness(address).get("ready"), 60, 0.3)
    wait_for(lambda: readiness(f"http://127.0.0.1:{replicas.environment['PORT']}/health/ready").get("ready"), 40, 0.3)
    assert all(daemon.running for daemon in early)
    assert "Traceback" not in replicas.logs()


def test_migrate_waits_for_the_database(
    tmp_path: Path, instance_environment: dict[str, str], migrated_postgres: Path
) -> None:
    late = PostgresServer()
    late.template = migrated_postgres
    daemons = Daemons(tmp_path, instance_environment | {"DATABASE_URL": late.url_of(TEST_DATABASE)})
    try:
        impatient = daemons.start("migrate", "--no-input")
        patient = daemons.start("migrate", "--no-input", "--wait", "60")
        assert impatient.process.wait(40) == 1
        assert "The database cannot be used: " in impatient.log.read_text()
        assert patient.running
        late.start()
        assert patient.process.wait(60) == 0, daemons.logs()
        assert "Traceback" not in daemons.logs()
    finally:
        daemons.close()
        late.close()


def has_web_process(pid: int) -> bool:
    for child in children(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if b"docora.server.web_manager" in Path(f"/proc/{child}/cmdline").read_bytes():
                return True
    return False


@pytest.mark.early(3)
def test_up_survives_a_database_outage_while_it_starts(
    replicas: Daemons, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    for name in ADMINISTRATOR:  # so that `up` has to check whether there is one
        del replicas.environment[name]
    up, address = start_elsewhere(replicas, tmp_path / "one")
    wait_for(lambda: has_web_process(up.pid), 60)  # it starts once the database is migrated
    with psycopg.connect(replicas.environment["DATABASE_URL"]) as database:
        name = database.info.dbname
    with psycopg.connect(postgres_server.url_of("postgres"), autocommit=True) as server:
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        wait_for(lambda: "Docora is running." in up.log.read_text(), 120)
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert wait_for(lambda: readiness(address).get("ready"), 60, 0.3), replicas.logs()
    assert "Traceback" not in replicas.logs()


def test_only_worker_and_sweep_wait_for_the_database(replicas: Daemons, tmp_path: Path) -> None:
    replicas.environment["DATABASE_URL"] = f"postgresql:///docora?host={tmp_path}"
    waiting, web = [replicas.worker(), replicas.sweep()], replicas.start("web")
    for daemon in waiting:
        wait_for(lambda daemon=daemon: "Waiting for the database: " in daemon.log.read_text(), 40)
    answer = wait_for(lambda: readiness(f"http://127.0.0.1:{replicas.environment['PORT']}/health/ready"), 40, 0.3)
    assert answer["checks"]["database"].startswith("the database is not responding")
    assert web.running
    assert all(daemon.running and "Traceback" not in daemon.log.read_text() for daemon in waiting)


def test_newer_schema_is_accepted_and_an_older_one_is_not(db) -> None:
    recorder = MigrationRecorder(connection)
    recorder.record_applied("deliveries_app", "9999_of_a_later_version")
    assert (schema.is_migrated(), health.check_database()) == (True, health.OK)
    app, name = next(node for node in schema._latest() if node[0] == "deliveries_app")
    recorder.record_unapplied(app, name)
    assert (schema.is_migrated(), health.check_database()) == (False, schema.not_migrated())


def test_waiting_says_each_thing_once(db, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(["one", "one", "two", ""])
    monkeypatch.setattr(schema, "_waiting_for", lambda wait_for_database: next(states))
    monkeypatch.setattr(schema, "_POLL_SECONDS", 0.01)
    said: list[str] = []
    thread = threading.Thread(target=schema.wait_until_migrated, args=(said.append,))
    thread.start()
    thread.join(10)
    assert said == ["one", "two"]
