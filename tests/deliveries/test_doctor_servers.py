"""`manage.py doctor`: the database, Redis, workers and the sweep."""

import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from django.db import connection
from django.db.backends.base import base
from django.db.utils import ConnectionHandler
from django.utils import timezone
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from deliveries_app.models import App, AppRepository, SyncPause
from deliveries_app.monitoring import instance_checks, server_checks
from docora.db import schema
from docora.redis.connection import connection as redis_connection
from tests.support.doctor import doctor, infos, problems, start_worker, warnings
from tests.support.postgres import PostgresServer
from tests.support.staff import make_app, make_watch
from tests.support.valkey import ValkeyServer

# --- The database -------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_unreachable_database(
    postgres_server: PostgresServer,
) -> None:
    connection.close()
    postgres_server.stop()
    try:
        code, said = doctor("--offline")
    finally:
        postgres_server.start()
        connection.close()
    assert code == 1
    found = re.search(
        r"PROBLEM  database: The database is not responding: (.+)\. Check DATABASE_URL and the database server\.", said
    )
    assert found is not None, said
    assert found[1].endswith("No such file or directory")
    for check in ("secrets", "sweep"):
        assert f"WARNING  {check}: Not checked, because the database check found a problem." in said
    assert "fine     delivery: " in said
    assert "Traceback" not in said


def test_full_database_disk_is_a_problem(db, postgres_server: PostgresServer) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION fail() RETURNS event_trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
        )
        cursor.execute("CREATE EVENT TRIGGER full_disk ON ddl_command_end EXECUTE FUNCTION fail()")
    said = problems(server_checks.check_database())
    assert "The database's disk is full: could not extend file: No space left on device." in said
    assert "Free up space on the disk of the database server." in said


def test_doctor_leaves_no_table(db, postgres_server: PostgresServer) -> None:
    assert "is fully migrated" in infos(server_checks.check_database())
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('docora_probe')")
        assert cursor.fetchone() == (None,)


def test_unmigrated_database_is_a_problem(db) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'auth'")
    assert "The database is not migrated. Run manage.py migrate." in problems(server_checks.check_database())


def test_other_encoding_is_a_problem(db, postgres_server: PostgresServer, monkeypatch) -> None:
    with psycopg.connect(postgres_server.url, autocommit=True) as server:
        server.execute("CREATE DATABASE ascii ENCODING SQL_ASCII LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0")
    ascii_database = connection.copy()
    ascii_database.settings_dict["NAME"] = "ascii"
    monkeypatch.setattr(server_checks, "connection", ascii_database)
    try:
        said = problems(server_checks.check_database())
        refusal = schema.upgrade_problem(ascii_database)
    finally:
        ascii_database.close()
    assert said.startswith(
        "The database's encoding is SQL_ASCII, so Docora can't store every text in it. Use a database"
    )
    assert refusal.startswith(
        "The database's encoding is SQL_ASCII, so Docora can't store every text in it: use a database"
    )


@pytest.mark.django_db(transaction=True)
def test_old_database_server_is_a_problem(postgres_server: PostgresServer, monkeypatch) -> None:
    monkeypatch.setattr(connection.features, "minimum_database_version", (99,))
    monkeypatch.setattr(base, "RAN_DB_VERSION_CHECK", set())
    version = connection.pg_version // 10_000
    connection.close()
    try:
        said = problems(server_checks.check_database())
    finally:
        connection.close()
    assert f"PostgreSQL 99 or later is required (found {version}." in said
    assert "Upgrade the database server." in said


def test_synchronised_clocks_are_fine(db, postgres_server) -> None:
    assert "0.0" in infos(server_checks.check_clock())


@pytest.mark.parametrize(
    ("seconds", "of_level", "text"),
    [
        (-3, warnings, "The database's clock is ahead. Run NTP"),
        (3, warnings, "The server's clock is ahead. Run NTP"),
        (6, problems, "The server's clock is ahead. Run NTP"),  # more than LEASE_SECONDS / 6
    ],
)
def test_skewed_clock_is_found(db, postgres_server, monkeypatch, seconds: float, of_level, text: str) -> None:
    monkeypatch.setattr(server_checks, "time", SimpleNamespace(time=lambda: time.time() + seconds))
    assert text in of_level(server_checks.check_clock())


@pytest.fixture
def sqlite(db, tmp_path: Path, monkeypatch) -> Iterator[None]:
    """A SQLite file without a write-ahead log."""
    handler = ConnectionHandler(
        {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "docora.sqlite3")}}
    )
    monkeypatch.setattr(server_checks, "connection", handler["default"])
    yield
    handler["default"].close()


def test_sqlite_without_wal_is_a_problem(sqlite) -> None:
    assert "SQLite's journal mode is delete, not wal" in problems(server_checks.check_sqlite())
    with server_checks.connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode=WAL")
    assert "SQLite uses a write-ahead log" in infos(server_checks.check_sqlite())


def test_sqlite_is_for_one_machine_and_few_workers(sqlite, redis_client: Redis) -> None:
    for number in range(4):
        start_worker(redis_client, f"worker-{number}")
    assert warnings(server_checks.check_sqlite()) == ""
    start_worker(redis_client, "far", host="other.example")
    assert "5 workers share SQLite, which allows one writer at a time" in warnings(server_checks.check_sqlite())
    said = problems(server_checks.check_sqlite())
    assert "Workers also run on other servers (other.example)" in said
    assert "Move to PostgreSQL (DATABASE_URL)." in said


def test_connections_suffice_for_all_workers(db, postgres_server, redis_client: Redis, settings) -> None:
    settings.WEB_CONNECTIONS, settings.SYNCS_PER_WORKER = 16, 16
    for number in range(2):
        start_worker(redis_client, f"worker-{number}")
    assert "PostgreSQL allows 97 connections. Docora needs up to 50" in infos(server_checks.check_connections())
    settings.SYNCS_PER_WORKER = 60
    start_worker(redis_client, "worker-2")
    said = warnings(server_checks.check_connections())
    assert "Docora needs up to 110: 16 for the web process, 92 for 3 workers, and 2 for the sweep." in said
    assert (
        "Raise PostgreSQL's max_connections and the role's or database's own limit, or lower SYNCS_PER_WORKER." in said
    )


def test_limits_of_role_and_database_count(db, postgres_server, redis_client: Redis) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE {connection.settings_dict['NAME']} CONNECTION LIMIT 20")
        assert "PostgreSQL allows 20 connections." in warnings(server_checks.check_connections())
        cursor.execute("ALTER ROLE CURRENT_USER CONNECTION LIMIT 10")
        assert "PostgreSQL allows 10 connections." in warnings(server_checks.check_connections())


def test_session_without_timeout_is_a_warning(db, postgres_server, redis_client: Redis) -> None:
    assert warnings(server_checks.check_connections()) == ""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")  # PgBouncer ignores startup parameters
    assert "so a frozen worker can block all others for hours. If a pooler" in warnings(
        server_checks.check_connections()
    )


def test_sqlite_has_no_connection_limit(sqlite) -> None:
    assert list(server_checks.check_connections()) == []


def test_postgresql_has_no_messages_about_sqlite(db, postgres_server) -> None:
    assert list(server_checks.check_sqlite()) == []


# --- Redis --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def configured(redis_client: Redis) -> Iterator[Redis]:
    """A Redis whose configuration a test can change."""
    names = ("maxmemory", "maxmemory-policy")
    before = redis_client.config_get(*names)
    yield redis_client
    for name in names:
        redis_client.config_set(name, before[name])


def test_unreachable_redis_is_a_problem(valkey_server: ValkeyServer, settings) -> None:
    valkey_server.stop()
    said = problems(server_checks.check_redis())
    assert re.search(r"Redis does not respond: .+\. Check REDIS_URL, and that Redis is running\.", said)
    settings.DATA_DIR = valkey_server.folder
    settings.REDIS_URL = f"unix://{valkey_server.folder}/valkey.sock?db=0"
    hint = "Start manage.py up, which runs it, or restart it if it is running."
    said = problems(server_checks.check_redis())
    assert re.search(rf"The embedded Valkey does not respond: .+\. {hint}", said)


def test_wrong_password_for_redis_is_named(configured: Redis) -> None:
    configured.config_set("requirepass", "Right1Password")
    redis_connection().connection_pool.disconnect()
    try:
        said = problems(server_checks.check_redis())
    finally:
        configured.config_set("requirepass", "")
    assert "Redis refuses the user name and password in REDIS_URL, or requires a password. Write it as" in said


def test_redis_user_without_rights_to_keys_of_rq(configured: Redis, valkey_server: ValkeyServer) -> None:
    """Redis was fine, and the workers and the sweep unknown without it."""
    configured.execute_command("ACL", "SETUSER", "default", "resetkeys", "~docora:*")
    try:
        said = problems(server_checks.check_redis())
        with pytest.raises(NoPermissionError, match=r"permissions to access .*key") as refused:
            configured.get("rq:workers")
    finally:
        configured.execute_command("ACL", "SETUSER", "default", "~*")
    assert f"Redis refuses: {refused.value}. Check the database number in REDIS_URL and the user's" in said


def test_redis_that_cannot_save_to_its_disk_is_not_taken_for_one_that_is_down(
    valkey_server: ValkeyServer, settings
) -> None:
    settings.DATA_DIR = valkey_server.folder
    with valkey_server.unable_to_save(), valkey_server.client() as client:
        with pytest.raises(ResponseError, match=r"^MISCONF .*RDB") as refused:
            client.ping()
        reason = str(refused.value).removeprefix("MISCONF ")
        for settings.REDIS_URL in (valkey_server.url, f"unix://{valkey_server.folder}/valkey.sock?db=0"):
            said = problems(server_checks.check_redis())
            assert f"cannot be written, so Redis refuses every write: {reason} Check free space" in said
            assert "Check free space and permissions there; then syncing continues." in said


def test_redis_that_evicts_is_a_problem(configured: Redis) -> None:
    configured.config_set("maxmemory-policy", "allkeys-lru")
    said = warnings(server_checks.check_redis_server())
    assert (
        "The maxmemory-policy of Redis is allkeys-lru. When memory runs out, queued jobs and counters are lost silently."
        in said
    )
    assert "This has no effect until maxmemory is set. Set maxmemory-policy to noeviction" in said
    configured.config_set("maxmemory", 1_000_000_000)
    assert "The maxmemory-policy of Redis is allkeys-lru" in problems(server_checks.check_redis_server())
    configured.config_set("maxmemory-policy", "noeviction")
    assert problems(server_checks.check_redis_server()) == ""


def test_full_and_nearly_full_redis(configured: Redis) -> None:
    used = configured.info("memory")["used_memory"]
    configured.config_set("maxmemory", int(used / 0.88))
    assert "When Redis is full, it rejects writes" in warnings(server_checks.check_redis_server())
    configured.config_set("maxmemory", 1)
    assert "When Redis is full, it rejects writes" in problems(server_checks.check_redis_server())
    said = problems(server_checks.check_redis())
    assert "Redis refuses: command not allowed" in said
    assert "REDIS_URL must point to a primary with free memory." in said


def test_redis_that_has_lost_its_replicas(redis_client: Redis, valkey_server: ValkeyServer) -> None:
    """The advice was to check the database number in REDIS_URL and the user's permissions."""
    with valkey_server.refusing_writes():
        said = problems(server_checks.check_redis())
    assert "Redis refuses: NOREPLICAS Not enough good replicas to write." in said
    assert "Start its replicas, or lower its min-replicas-to-write." in said


def test_healthy_redis(redis_client: Redis) -> None:
    messages = server_checks.check_redis_server()
    server = redis_client.info("server")
    is_valkey = server.get("server_name") == "valkey"
    version = f"Valkey {server['valkey_version']}" if is_valkey else f"Redis {server['redis_version']}"
    assert f"{version} is supported." in infos(messages)
    assert "Redis doesn't evict keys" in infos(messages)
    assert "no maxmemory is set" in infos(messages)
    assert warnings(messages) == problems(messages) == ""


def test_redis_that_refuses_info_is_a_warning(redis_client: Redis) -> None:
    redis_client.execute_command("ACL", "SETUSER", "default", "-info")
    try:
        messages = server_checks.check_redis_server()
    finally:
        redis_client.execute_command("ACL", "SETUSER", "default", "+info")
    assert "Redis refuses INFO, so version, eviction and memory aren't checked: " in warnings(messages)
    assert problems(messages) == ""


def test_redis_that_refuses_scripts_is_a_problem(redis_client: Redis) -> None:
    """Jobs are queued by scripts."""
    redis_client.execute_command("ACL", "SETUSER", "default", "-@scripting")
    try:
        said = problems(server_checks.check_redis())
        with pytest.raises(NoPermissionError, match="has no permissions to run the 'evalsha' command") as refused:
            redis_client.evalsha("0" * 40, 0)
    finally:
        redis_client.execute_command("ACL", "SETUSER", "default", "+@all")
    assert f"Redis refuses: {refused.value}." in said
    assert "the user's permissions" in said


def test_redis_cluster_is_a_problem(redis_client: Redis, monkeypatch) -> None:
    in_cluster = redis_client.info() | {"cluster_enabled": 1}
    monkeypatch.setattr(server_checks, "redis_connection", lambda: SimpleNamespace(info=lambda: in_cluster))
    assert "REDIS_URL leads to a Redis Cluster, which Docora can't use." in problems(server_checks.check_redis_server())


def test_old_redis_is_a_problem() -> None:
    said = server_checks._check_version({"redis_version": "6.2.14"})
    assert said.msg == "Redis 6.2.14 is too old. Docora needs Valkey, or Redis 7.0 or newer."
    assert server_checks._check_version({"redis_version": "7.0.0"}).msg == "Redis 7.0.0 is supported."


# --- Workers, sweep and backlog -----------------------------------------------------------------------------------------


def test_without_workers_nothing_is_sent(redis_client: Redis) -> None:
    assert (
        "No worker is running, so nothing is synced. Check the service that runs the workers (systemd: docora-worker@1; "
        "containers: worker), or start manage.py up or manage.py rqworker high default low."
        in problems(instance_checks.check_workers())
    )
    start_worker(redis_client, host="a.example")
    start_worker(redis_client, host="b.example")
    assert "2 workers are running on a.example, b.example." in infos(instance_checks.check_workers())


def test_late_sweep_is_a_problem(redis_client: Redis) -> None:
    redis_client.set("docora:heartbeat:sweep", time.time() - 7200)
    assert (
        "The sweep last ran 2 h ago. Check the service that runs the sweep (systemd: docora-sweep; containers: sweep) "
        "and its log." in problems(instance_checks.check_sweep())
    )


def test_overdue_repositories_with_idle_or_busy_workers(db, redis_client: Redis) -> None:
    make_watch(make_app("Portal"), "docs", next_sync_at=timezone.now() - timedelta(seconds=1))
    assert "No repository has been due for more than 1 min." in infos(instance_checks.check_backlog())
    make_watch(App.objects.get(), "site", next_sync_at=timezone.now() - timedelta(hours=2))
    start_worker(redis_client, "worker")
    said = problems(instance_checks.check_backlog())
    assert "1 repository has been due for more than 1 min, the longest for 2 h, although workers are idle." in said
    assert "all processes use the same REDIS_URL" in said
    redis_client.hset("rq:worker:worker", "state", "busy")
    said = warnings(instance_checks.check_backlog())
    assert ": the workers can't keep up, or none is running. Run more workers" in said
    assert "up --workers N" in said


def test_incomplete_imports_are_a_warning(db) -> None:
    app = make_app("Portal")
    first, second = make_watch(app, "docs"), make_watch(app, "site")
    for watch, number in ((first, "1 watched repository is"), (second, "2 watched repositories are")):
        AppRepository.objects.filter(pk=watch.pk).update(arriving=True)
        said = warnings(instance_checks.check_pauses())
        assert f"{number} not fully imported. Nothing is checked or sent until the import is complete." in said
        assert "run manage.py import_docora again." in said
        assert infos(instance_checks.check_pauses()) == ""
    AppRepository.objects.update(ended_at=timezone.now())
    assert "Nothing is paused." in infos(instance_checks.check_pauses())


def test_pauses_are_warnings(db) -> None:
    app = make_app("Portal")
    assert "Nothing is paused." in infos(instance_checks.check_pauses())
    make_watch(app, "docs", paused_at=timezone.now())
    assert "1 watched repository is paused." in warnings(instance_checks.check_pauses())
    App.objects.filter(pk=app.pk).update(paused=True)
    SyncPause.objects.create(paused_by="anna", since=timezone.now() - timedelta(hours=2))
    said = warnings(instance_checks.check_pauses())
    assert "anna paused all syncing 2 h ago. Resume syncing on the Queue page." in said
    assert "Nothing is sent to paused apps: Portal." in said
