"""PostgreSQL connection options: neither side waits for a peer that will never answer."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.db.models.signals import pre_migrate

from docora.conf.env import database
from tests.support.postgres import PostgresServer

PROJECT = Path(__file__).resolve().parents[2]

# A web process that prints, for each line of input, what a request would see. "many" first fills its pool.
QUERY_PER_LINE = """
import sys
from django.core.signals import request_finished, request_started
from django.db import OperationalError, connection

for line in sys.stdin:
    if line.strip() == "many":
        opened = [connection.pool.getconn() for _ in range(8)]
        for session in opened:
            connection.pool.putconn(session)
    request_started.send(None)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SHOW jit")
            assert cursor.fetchone() == ("off",)
            cursor.execute("SHOW idle_in_transaction_session_timeout")
            print(cursor.fetchone()[0], connection.settings_dict["OPTIONS"]["pool"]["max_size"], flush=True)
    except OperationalError:
        print("unavailable", flush=True)
    request_finished.send(None)
"""


def output_of(code: str, url: str, **environment: str) -> str:
    """Return what a new process with this DATABASE_URL prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "docora.settings", "DATABASE_URL": url} | environment,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def options_of(url: str, **environment: str) -> dict[str, object]:
    """Return the connection options that a new process uses."""
    code = "import json; from django.conf import settings; print(json.dumps(settings.DATABASES['default']['OPTIONS'], default=str))"
    options: dict[str, object] = json.loads(output_of(code, url, **environment))
    return options


def session_of(options: Mapping[str, object]) -> list[str]:
    return str(options["options"]).split()


def test_idle_transaction_ends_after_a_lease(postgres_server: PostgresServer, transactional_db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW idle_in_transaction_session_timeout")
        assert cursor.fetchone() == (f"{settings.LEASE_SECONDS:.0f}s",)
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("1min",)  # twice as long
    used = connection.connection.info.get_parameters()
    assert (used["connect_timeout"], used["tcp_user_timeout"]) == ("10", "30000")
    assert [used[f"keepalives_{name}"] for name in ("idle", "interval", "count")] == ["10", "5", "3"]


def test_timeouts_follow_the_lease() -> None:
    options = options_of("postgres://docora@db.example/docora", LEASE_SECONDS="7.5")
    assert session_of(options)[:4] == ["-c", "idle_in_transaction_session_timeout=7500", "-c", "tcp_user_timeout=7500"]


def test_options_in_database_url_take_precedence() -> None:
    own = quote("-c idle_in_transaction_session_timeout=0 -c search_path=docora")
    options = options_of(f"postgres://docora@db.example/docora?connect_timeout=3&keepalives_idle=77&options={own}")
    assert (options["connect_timeout"], options["keepalives_idle"], options["keepalives_count"]) == (3, 77, 3)
    assert session_of(options)[-4:] == ["-c", "idle_in_transaction_session_timeout=0", "-c", "search_path=docora"]


def test_folder_of_a_socket_is_written_as_libpq_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://docora@%2Frun%2Fpostgresql:5433/docora")
    found = database("DATABASE_URL", "")
    assert (found["HOST"], found["PORT"]) == ("/run/postgresql", 5433)


def test_last_of_two_equal_parameters_counts(postgres_server: PostgresServer) -> None:
    options = "-c idle_in_transaction_session_timeout=30000 -c idle_in_transaction_session_timeout=0"
    with psycopg.connect(postgres_server.url, options=options) as session:
        assert session.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("0",)


def test_defaults_of_the_database_do_not_matter(postgres_server: PostgresServer) -> None:
    url = postgres_server.create_database("defaults")
    defaults = {
        "default_transaction_isolation": "serializable",
        "timezone": "America/St_Johns",
        "datestyle": "German, DMY",
        "intervalstyle": "sql_standard",
    }
    with psycopg.connect(postgres_server.url, autocommit=True) as session:
        for name, value in defaults.items():
            session.execute(f"ALTER DATABASE defaults SET {name} = '{value}'")
    code = f"""
from django.db import connection

with connection.cursor() as cursor:
    for name in {[*defaults, "transaction_isolation"]}:
        cursor.execute(f"SHOW {{name}}")
        print(*cursor.fetchone())
"""
    of_libpq = {"PGDATESTYLE": "German", "PGTZ": "Asia/Kolkata"}
    for process in ("sweep", "web"):
        for environment in ({}, of_libpq):
            shown = output_of(code, url, DOCORA_PROCESS=process, **environment).splitlines()
            assert shown == ["read committed", "UTC", "ISO, MDY", "postgres", "read committed"]


def test_migration_takes_longer_than_the_statement_timeout(postgres_server: PostgresServer, db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = '2s'")

        def migrating(**_: object) -> None:
            cursor.execute("SELECT pg_sleep(2.1)")

        sender = apps.get_app_config("deliveries_app")
        pre_migrate.connect(migrating, sender)
        try:
            call_command("migrate", verbosity=0)
        finally:
            pre_migrate.disconnect(migrating, sender)


def test_connections_have_the_age_in_database_url(postgres_server: PostgresServer) -> None:
    code = "from django.db import connection; connection.ensure_connection(); print(connection.settings_dict['CONN_MAX_AGE'])"
    url = f"{postgres_server.url}&pool=true&conn_max_age=60"
    for process, found in (("sweep", "60"), ("web", "0")):  # the web process has a pool
        assert output_of(code, url, DOCORA_PROCESS=process).strip() == found


def test_sqlite_has_no_such_options() -> None:
    assert "connect_timeout" not in options_of("sqlite:///docora.sqlite3")


def test_connect_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        port = silent_server.getsockname()[1]
        options = options_of(f"postgres://docora@127.0.0.1:{port}/docora?connect_timeout=2")
        started = time.monotonic()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(host="127.0.0.1", port=port, dbname="docora", user="docora", **options)
        assert time.monotonic() - started < 10


type Ask = Callable[..., list[str]]


@pytest.fixture
def ask_web_process(postgres_server: PostgresServer, instance_environment: dict[str, str]) -> Iterator[Ask]:
    """Return a function that sends one request to a web process and returns the words of its response."""
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "manage.py"), "shell", "--no-imports", "-c", QUERY_PER_LINE],
        env=instance_environment | {"DOCORA_PROCESS": "web", "LEASE_SECONDS": "7"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdin
    assert process.stdout
    asked, answers = process.stdin, process.stdout

    def ask(line: str = "") -> list[str]:
        asked.write(f"{line}\n")
        return answers.readline().split()

    try:
        assert ask() == ["7s", str(settings.WEB_CONNECTIONS)]
        connection.close()
        yield ask
    finally:
        process.kill()
        process.wait(10)


def test_web_process_reconnects_after_a_database_restart(postgres_server: PostgresServer, ask_web_process: Ask) -> None:
    """The pool's connections are dead then, and it would wait longer after each one that it tries."""
    assert ask_web_process("many") == ["7s", str(settings.WEB_CONNECTIONS)]
    postgres_server.restart()
    assert ask_web_process() == ["7s", str(settings.WEB_CONNECTIONS)]


@pytest.mark.early(5)
def test_web_process_reconnects_soon_after_an_outage(postgres_server: PostgresServer, ask_web_process: Ask) -> None:
    """The delay between attempts to connect doesn't grow with the length of the outage."""
    postgres_server.stop()
    try:
        gone_at = time.monotonic()
        while time.monotonic() < gone_at + 16:
            assert ask_web_process() == ["unavailable"]
    finally:
        postgres_server.start()  # other tests need it
    back_at = time.monotonic()
    while ask_web_process() == ["unavailable"]:
        assert time.monotonic() < back_at + 30
    assert time.monotonic() < back_at + 10  # without the limit, it would be up to twice as long as the outage
