"""`manage.py doctor` and the servers: what it says of a database, a Redis, workers and endpoints that are not well."""

import time
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.core.management import CommandError
from django.db import connection
from django.db.backends.base import base
from django.db.utils import ConnectionHandler
from django.utils import timezone
from redis import Redis

from deliveries_app.models import App, AppRepository, SyncPause
from deliveries_app.monitoring.doctor import database, delivery, outbound, redis_server, work
from deliveries_app.receiver import Answer
from docora.http.client import HttpClient
from docora.security import crypto
from tests.support.doctor import doctor, fines, problems, start_worker, warnings
from tests.support.postgres import PostgresServer
from tests.support.staff import make_app, make_watch
from tests.support.valkey import ValkeyServer
from tests.support.world import World

# --- The database -------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_is_a_problem_and_what_needs_it_is_not_examined(
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
    assert "PROBLEM  database: The database does not answer. Check DATABASE_URL and the database server." in said
    assert "WARNING  secrets: Not examined, because of the problem of database." in said
    assert "fine     delivery: " in said
    assert "Traceback" not in said


def test_a_database_that_is_not_migrated_is_a_problem(db) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'auth'")
    assert "The database is not migrated. Run manage.py migrate." in problems(database.answers())


@pytest.mark.django_db(transaction=True)
def test_a_database_server_that_is_too_old_is_a_problem(postgres_server: PostgresServer, monkeypatch) -> None:
    monkeypatch.setattr(connection.features, "minimum_database_version", (99,))
    monkeypatch.setattr(base, "RAN_DB_VERSION_CHECK", set())
    connection.close()
    try:
        said = problems(database.answers())
    finally:
        connection.close()
    assert "PostgreSQL 99 or later is required (found 18." in said
    assert "Upgrade the database server." in said


def test_clocks_that_go_together_are_fine(db) -> None:
    assert "0.0" in fines(database.clock())


@pytest.mark.parametrize(
    ("seconds", "told", "words"),
    [
        (-3, warnings, "The database's is ahead of the machine's. Run NTP"),
        (3, warnings, "The machine's is ahead of the database's. Run NTP"),
        (6, problems, "The machine's is ahead of the database's. Run NTP"),  # more than LEASE_SECONDS / 6
    ],
)
def test_a_clock_that_is_off_is_told(db, monkeypatch, seconds: float, told, words: str) -> None:
    monkeypatch.setattr(database, "time", SimpleNamespace(time=lambda: time.time() + seconds))
    assert words in told(database.clock())


@pytest.fixture
def sqlite(db, tmp_path: Path, monkeypatch) -> Iterator[None]:
    """A SQLite file that nobody has given a write-ahead log."""
    handler = ConnectionHandler(
        {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "docora.sqlite3")}}
    )
    monkeypatch.setattr(database, "connection", handler["default"])
    yield
    handler["default"].close()


def test_sqlite_without_a_write_ahead_log_is_a_problem(sqlite) -> None:
    assert "SQLite's journal mode is delete and not wal" in problems(database.sqlite())
    with database.connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode=WAL")
    assert "SQLite keeps a write-ahead log" in fines(database.sqlite())


def test_sqlite_is_for_one_machine_and_few_workers(sqlite, redis_client: Redis) -> None:
    for number in range(4):
        start_worker(redis_client, f"worker-{number}")
    assert warnings(database.sqlite()) == ""
    start_worker(redis_client, "far", host="other.example")
    assert "5 workers share SQLite, where one writes at a time" in warnings(database.sqlite())
    said = problems(database.sqlite())
    assert "Workers run on other machines too (other.example)" in said
    assert "Move to PostgreSQL (DATABASE_URL)." in said


def test_postgresql_is_not_told_about_sqlite(db) -> None:
    assert list(database.sqlite()) == []


# --- Redis --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def configured(redis_client: Redis) -> Iterator[Redis]:
    """A Redis whose configuration a test may change."""
    names = ("maxmemory", "maxmemory-policy")
    before = redis_client.config_get(*names)
    yield redis_client
    for name in names:
        redis_client.config_set(name, before[name])


def test_a_redis_that_is_away_is_a_problem(valkey_server: ValkeyServer, settings) -> None:
    valkey_server.stop()
    assert "Redis does not answer. Check REDIS_URL and the Redis server." in problems(redis_server.answers())
    settings.DATA_DIR = valkey_server.folder
    settings.REDIS_URL = f"unix://{valkey_server.folder}/valkey.sock?db=0"
    assert "The embedded Valkey does not answer. Start manage.py up" in problems(redis_server.answers())


def test_a_redis_that_evicts_is_a_problem(configured: Redis) -> None:
    configured.config_set("maxmemory-policy", "allkeys-lru")
    said = warnings(redis_server.server())
    assert "maxmemory-policy is allkeys-lru: when memory runs short, waiting jobs and counters vanish unseen." in said
    assert "No maxmemory is set, so it does not yet. Set maxmemory-policy noeviction" in said
    configured.config_set("maxmemory", 1_000_000_000)
    assert "Redis' maxmemory-policy is allkeys-lru" in problems(redis_server.server())
    configured.config_set("maxmemory-policy", "noeviction")
    assert problems(redis_server.server()) == ""


def test_a_redis_that_is_full_is_a_problem_and_one_that_fills_up_a_warning(configured: Redis) -> None:
    used = configured.info("memory")["used_memory"]
    configured.config_set("maxmemory", int(used / 0.88))
    assert "A full Redis refuses writes" in warnings(redis_server.server())
    configured.config_set("maxmemory", 1)
    assert "A full Redis refuses writes" in problems(redis_server.server())
    assert "Redis answers, but takes no writes: command not allowed" in problems(redis_server.answers())


def test_what_is_lost_with_redis_is_told_and_is_fine(redis_client: Redis) -> None:
    said = fines(redis_server.server())
    assert "What is lost with it: live counters of progress bars" in said
    assert "waiting jobs, which the sweep enqueues again within seconds" in said
    assert "Valkey 9." in said


def test_a_redis_that_is_too_old_is_a_problem() -> None:
    said = redis_server._version({"redis_version": "6.2.14"})
    assert said.words == "Redis 6.2.14 is too old: Docora needs Redis 7.0 or newer, or Valkey."
    assert redis_server._version({"redis_version": "7.0.0"}).words == "Redis 7.0.0 is new enough."


# --- Workers, sweep, what waits -----------------------------------------------------------------------------------------


def test_without_workers_nothing_is_sent(redis_client: Redis) -> None:
    assert "No sync worker is running: nothing is sent." in problems(work.workers())
    start_worker(redis_client, host="a.example")
    start_worker(redis_client, host="b.example")
    assert "2 workers are alive, on a.example, b.example." in fines(work.workers())


def test_a_late_sweep_is_a_problem(redis_client: Redis) -> None:
    redis_client.set("docora:heartbeat:sweep", time.time() - 600)
    assert "The sweep looked 10 min ago for the last time: nothing begins by itself." in problems(work.sweep())


def test_repositories_that_nobody_takes_are_a_problem_and_busy_workers_a_warning(db, redis_client: Redis) -> None:
    make_watch(make_app("Portal"), "docs", next_sync_at=timezone.now() - timedelta(seconds=30))
    assert "No repository has been waiting" in fines(work.backlog())
    make_watch(App.objects.get(), "site", next_sync_at=timezone.now() - timedelta(minutes=10))
    start_worker(redis_client)
    said = problems(work.backlog())
    assert "1 repository has been due for more than 1 min, the longest for 10 min, though workers are idle." in said
    assert "all processes have the same REDIS_URL" in said
    redis_client.zadd("rq:wip:default", {"job-1:x": time.time() + 60})
    said = warnings(work.backlog())
    assert ": workers do not keep up, or there are none. Run more of them" in said
    assert "up --workers N" in said


def test_watches_that_wait_for_the_rest_of_their_import_are_a_warning(db) -> None:
    app = make_app("Portal")
    first, second = make_watch(app, "docs"), make_watch(app, "site")
    for watch, words in ((first, "1 watch waits"), (second, "2 watches wait")):
        AppRepository.objects.filter(pk=watch.pk).update(arriving=True)
        said = warnings(work.pauses())
        assert f"{words} for the rest of the import: nothing is checked or sent before that." in said
        assert "run manage.py import_docora again." in said
        assert fines(work.pauses()) == ""
    AppRepository.objects.update(ended_at=timezone.now())
    assert "Nothing is paused." in fines(work.pauses())


def test_pauses_are_warnings(db) -> None:
    app = make_app("Portal")
    assert "Nothing is paused." in fines(work.pauses())
    App.objects.filter(pk=app.pk).update(paused=True)
    SyncPause.objects.create(paused_by="anna", since=timezone.now() - timedelta(hours=2))
    said = warnings(work.pauses())
    assert "All syncing was paused by anna, 2 h ago. Resume it on the queue page." in said
    assert "Nothing is sent to the paused apps: Portal." in said


# --- The way out --------------------------------------------------------------------------------------------------------


def test_every_way_to_write_a_private_address_is_tried(settings) -> None:
    settings.ALLOWED_PRIVATE_NETWORKS = []
    said = fines(outbound.addresses())
    assert "refuses 127.0.0.1, 2130706433, localhost, [::1], [::ffff:127.0.0.1], 10.0.0.1, 169.254.1.1" in said


def test_a_client_that_dials_what_nobody_allowed_is_a_problem(settings, monkeypatch) -> None:
    """As if the rules had been lost on the way from the settings to the client."""
    settings.ALLOWED_PRIVATE_NETWORKS = []
    lenient = [ip_network("127.0.0.0/8")]
    monkeypatch.setattr(outbound, "new_client", lambda max_connections: HttpClient(lenient))
    said = problems(outbound.addresses())
    assert "does not refuse 127.0.0.1, 2130706433, localhost, [::ffff:127.0.0.1]: whoever registers an app" in said


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("no-such-host.invalid", "The name no-such-host.invalid could not be resolved"),
        ("10.0.0.1", "The git host 10.0.0.1 cannot be reached. 10.0.0.1 is a private address"),
        ("127.0.0.1:1", "No connection to 127.0.0.1:1: Connection refused. Check the firewall"),
        ("::1", "The git host [::1] cannot be reached. ::1 is a loopback address"),
    ],
)
def test_a_git_host_that_cannot_be_reached_is_a_problem(settings, host: str, words: str) -> None:
    settings.ALLOWED_GIT_HOSTS = [host, "github.com"]
    assert words in problems(outbound.git_host())


# --- Deliveries ---------------------------------------------------------------------------------------------------------


def test_the_dry_delivery_fails_when_the_signature_does(monkeypatch) -> None:
    assert "one signed with another key was refused" in fines(delivery.on_this_machine())
    monkeypatch.setattr("deliveries_app.webhooks.signing.docora_signature", lambda *_: "sha256=0")
    said = problems(delivery.on_this_machine())
    assert "A signed ping did not reach a receiver on this machine. The server answered 401." in said
    assert "X-Docora-Signature does not match." in said


@pytest.fixture
def world(transactional_db, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def test_an_app_is_pinged_on_request(world: World) -> None:
    code, said = doctor("--app", world.app.app_id)
    assert "fine     app: Portal: The app accepted the ping: it answered 200." in said
    assert [record.kind for record in world.requests()] == ["ping"]
    world.answer(lambda _: Answer(401))
    code, said = doctor("--app", world.app.app_id)
    assert code == 1
    assert "PROBLEM  app: Portal: The app answered 401. The app refused the signature" in said


def test_an_app_that_does_not_exist_or_whose_key_is_lost_is_told(world: World, settings) -> None:
    assert "There is no app app_x." in problems(delivery.to_app("app_x"))
    settings.ENCRYPTION_KEYS = ["another-key-of-enough-letters"]
    assert str(crypto.DecryptionError()) in problems(delivery.to_app(world.app.app_id))
    with pytest.raises(CommandError, match="exclude each other"):
        doctor("--offline", "--app", world.app.app_id)
