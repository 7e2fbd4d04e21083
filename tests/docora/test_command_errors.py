"""Commands report errors in one sentence on stderr, without a traceback or a secret and with nothing on stdout."""

import contextlib
import errno
import json
import os
import re
import runpy
import secrets
import socket
import subprocess
import sys
import threading
from pathlib import Path
from shutil import copy

import django
import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, InternalError, NotSupportedError, connection, transaction
from redis.exceptions import (
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from docora import __version__
from docora.cli import commands
from docora.cli.main import CommandLine, error_message
from docora.cli.output import INTERRUPTED
from tests.support.commands import PROJECT, manage, run_each
from tests.support.doctor import silent_host
from tests.support.instance import free_port
from tests.support.postgres import PostgresServer
from tests.support.processes import forked, reap
from tests.support.read_only import WITHOUT_OVERRIDE
from tests.support.small_disk import make_read_only, mount_small_disk, resize
from tests.support.tls import self_signed
from tests.support.valkey import ValkeyServer

COMMANDS = {
    "onboard_app": ["Portal", "https://portal.example/hooks", "ops@portal.example"],
    "list_apps": [],
    "ping_app": ["app_none"],
    "rotate_token": ["app_none"],
    "rotate_key": ["app_none"],
    "delete_app": ["app_none", "--yes"],
    "watch_repository": ["app_none", "https://github.com/acme/docs"],
    "list_watches": [],
    "replace_github_token": ["app_none", "repo_none"],
    "unwatch_repository": ["app_none", "repo_none", "--yes"],
    "status": [],
    "explain": ["app_none", "repo_none", "a.txt"],
    "resync": ["app_none", "repo_none", "--yes", "--wait"],
    "retry": ["--all", "--wait"],
    "cancel": ["bulk_none"],
    "continue_resync": ["bulk_none"],
    "drift": ["app_none"],
    "pause_syncing": [],
    "resume_syncing": [],
    "reset_circuit": ["repo_none"],
    "prune": [],
    "rotate_encryption_keys": [],
    "sign_in_link": ["none"],
    "sweep": ["--once"],
    "send_test_alert": [],
}
"""The commands tested here, with arguments whose ids do not exist."""

HAVE_OWN_TESTS = {"up", "web", "demo", "receiver", "doctor", "import_docora"}
NEED_NO_DATABASE = {"send_test_alert"}


def outcomes(lines: list[list[str]], **environment: str) -> list[tuple[int, str, str]]:
    return run_each(lines, os.environ | {"LOG_LEVEL": "critical"} | environment)


def test_examples_cover_every_operator_command() -> None:
    assert set(commands.own_commands()) - HAVE_OWN_TESTS <= set(COMMANDS), (
        "add an example of the new command to COMMANDS"
    )


@pytest.mark.parametrize(
    ("database", "name", "advice"),
    [
        (
            "postgres://docora:hunter2@127.0.0.1:{port}/docora",
            "The database",
            "Check DATABASE_URL, and that the database is running.",
        ),
        (
            "sqlite:////nowhere/at/all",
            "The database /nowhere/at/all",
            "Check its disk, and run commands as Docora's user.",
        ),
    ],
)
@pytest.mark.parametrize("option", [[], ["--json"]])
def test_commands_without_a_database_say_so(database: str, name: str, advice: str, option: list[str]) -> None:
    lines = [
        [command, *arguments, *option] for command, arguments in COMMANDS.items() if command not in NEED_NO_DATABASE
    ]
    for line, (code, out, err) in zip(
        lines, outcomes(lines, DATABASE_URL=database.format(port=free_port())), strict=True
    ):
        assert (code, out) == (1, ""), (line, err)
        assert err.startswith(f"{name} cannot be used: "), line
        assert err.endswith(advice), line
        assert err.count("\n") == 0, line
        assert "hunter2" not in err


def test_commands_without_tables_name_migrate(postgres_server: PostgresServer, tmp_path: Path) -> None:
    lines = [[name, *arguments] for name, arguments in COMMANDS.items() if name not in NEED_NO_DATABASE]
    empty = [f"sqlite:///{tmp_path / 'empty.sqlite3'}", postgres_server.url]
    for database in empty:
        for line, (code, out, err) in zip(lines, outcomes(lines, DATABASE_URL=database), strict=True):
            assert (code, out) == (1, ""), (line, err)
            assert err.startswith("The database does not match this version"), (line, err)
            assert err.endswith("Migrate it: manage.py migrate"), line


def test_missing_table_in_the_language_of_the_server(db, postgres_server: PostgresServer) -> None:
    message = "Relation »deliveries_app_app« existiert nicht"
    with pytest.raises(DatabaseError) as raised, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = 'undefined_table'; END $$")
    migrate = "Migrate it: manage.py migrate"
    assert error_message(raised.value) == f"The database does not match this version ({message}). {migrate}"


def test_parameter_of_another_driver_in_the_database_url() -> None:
    """Prisma's URLs end in `?schema=public`."""
    url = f"postgres://docora:hunter2@127.0.0.1:{free_port()}/docora?schema=public"
    for outcome in outcomes([["list_apps"], ["migrate"], ["sweep", "--once"]], DATABASE_URL=url):
        cause = 'invalid connection option "schema"'
        assert outcome == (1, "", f"The database cannot be used: {cause}. Remove it from DATABASE_URL.")


def test_user_without_rights_in_the_database(
    postgres_server: PostgresServer, instance_environment: dict[str, str]
) -> None:
    empty = postgres_server.create_database(f"refusing_{os.getpid()}")
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN")
    with psycopg.connect(instance_environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("GRANT USAGE ON SCHEMA public TO guest")  # another test may have restored it without
    for command, database, cause in (
        (["list_apps"], instance_environment["DATABASE_URL"], "permission denied for table deliveries_app_app"),
        (["migrate", "--verbosity", "0"], empty, "permission denied for schema public"),
        (
            ["migrate", "--verbosity", "0"],
            f"{empty}&options=-csearch_path%3Dmissing",
            "no schema has been selected to create in",
        ),
    ):
        [outcome] = outcomes([command], DATABASE_URL=database.replace("user=docora", "user=guest"))
        advice = "Check the rights of the user in DATABASE_URL, and the server's version."
        assert outcome == (1, "", f"The database refused: {cause}. {advice}")


def test_pgbouncer_without_the_setting_that_docora_needs(instance_environment: dict[str, str]) -> None:
    message = b"SFATAL\0C08P01\0Munsupported startup parameter in options: lock_timeout\0\0"
    with socket.create_server(("127.0.0.1", 0)) as pooler:
        url = f"postgres://docora@127.0.0.1:{pooler.getsockname()[1]}/docora?sslmode=disable"

        def refuse() -> None:
            session, _ = pooler.accept()
            with session:
                session.recv(1000)
                session.sendall(b"E%b%b" % ((len(message) + 4).to_bytes(4), message))

        thread = threading.Thread(target=refuse)
        thread.start()
        done = manage("list_apps", environment=instance_environment | {"DATABASE_URL": url})
        thread.join()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(
        "unsupported startup parameter in options: lock_timeout. "
        "Set ignore_startup_parameters in PgBouncer, as the handbook says under Connections.\n"
    )


def test_doctor_names_an_sqlite_file_that_cannot_be_used() -> None:
    """The advice was to check the database server, which SQLite doesn't have."""
    [(code, out, _)] = outcomes([["doctor", "--offline"]], DATABASE_URL="sqlite:////nowhere/at/all")
    assert code == 1
    problem = "The database file /nowhere/at/all cannot be used: unable to open database file."
    assert f"PROBLEM  database: {problem} Check its disk and its permissions." in out
    assert "server" not in re.findall("PROBLEM  database: .*", out)[0]


def test_doctor_names_an_sqlite_file_that_cannot_be_written(tmp_path: Path, migrated_sqlite: Path) -> None:
    """As after a command was run as another user. SQLite reads it all the same, so every check was fine."""
    file = tmp_path / "docora.sqlite3"
    copy(migrated_sqlite, file)
    file.chmod(0o400)
    command = [*WITHOUT_OVERRIDE, sys.executable, str(PROJECT / "manage.py"), "doctor", "--offline"]
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path), "DOCORA_ENV_FILE": os.devnull}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.findall("PROBLEM  database: .*", done.stdout) == [
        f"PROBLEM  database: The database file {file} is read-only. Check that Docora's user owns it, its folder, and the "
        "files beside it, and that its disk is mounted writable."
    ]


def test_statement_that_takes_longer_than_its_timeout(instance_environment: dict[str, str]) -> None:
    url = instance_environment["DATABASE_URL"]
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE deliveries_app_app")
        outcome = outcomes([["list_apps"]], DATABASE_URL=f"{url}&options=-cstatement_timeout%3D500")
    cause = "canceling statement due to statement timeout"
    message = f"The database cancelled a statement: {cause}. Check its log and its statement_timeout."
    assert outcome == [(1, "", message)]


def test_database_that_is_too_old_or_read_only() -> None:
    advice = "Check the rights of the user in DATABASE_URL, and the server's version."
    for error in (NotSupportedError("PostgreSQL 15 or later is required (found 13)."), InternalError("read-only")):
        cause = str(error).rstrip(".")
        assert error_message(error) == f"The database refused: {cause}. {advice}"


def test_read_only_database(postgres_server: PostgresServer) -> None:
    url = f"{postgres_server.create_database(f'read_only_{os.getpid()}')}&options=-cdefault_transaction_read_only%3Don"
    advice = "Check that DATABASE_URL points to the primary, and the server's disk."
    cause = "cannot execute CREATE TABLE in a read-only transaction"
    [outcome] = outcomes([["migrate", "--verbosity", "0"]], DATABASE_URL=url)
    assert outcome == (1, "", f"The database is read-only: {cause}. {advice}")


def test_full_database_disk(instance_environment: dict[str, str]) -> None:
    """The advice was to check DATABASE_URL, and that the database is running."""
    command = ["onboard_app", "Portal", "https://portal.example", "you@portal.example"]
    cause = "could not extend file: No space left on device"
    with psycopg.connect(instance_environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE '{cause}' USING ERRCODE = 'disk_full'; END $$"
        )
        connection.execute("CREATE TRIGGER full_disk BEFORE INSERT ON deliveries_app_app EXECUTE FUNCTION fail()")
        try:
            outcome = outcomes([command], **instance_environment)
        finally:
            connection.execute("DROP FUNCTION fail CASCADE")
    advice = "Free up space on the disk of the database server."
    assert outcome == [(1, "", f"The database's disk is full: {cause}. {advice}")]


def test_sqlite_on_a_disk_that_cannot_be_written(tmp_path: Path, migrated_sqlite: Path) -> None:
    """`unable to open database file`, of a disk that the kernel had made read-only, gave no hint of that."""
    disk, report = tmp_path / "disk", tmp_path / "report"
    file = disk / "docora.sqlite3"
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(disk), "DOCORA_ENV_FILE": os.devnull}

    def said(*command: str) -> str:  # not through the nursery, which does not see the disk
        line = [sys.executable, str(PROJECT / "manage.py"), *command]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return f"{done.returncode} {done.stdout}{done.stderr.strip()}"

    def work() -> None:
        try:
            mount_small_disk(disk, "size=300k")
        except OSError:
            report.write_text("null")
            return
        found = [said("migrate", "--verbosity", "0")]
        for left in disk.glob("docora.sqlite3*"):
            left.unlink()
        resize(disk, "size=10m")
        copy(migrated_sqlite, file)
        assert said("list_apps").startswith("0 ")
        make_read_only(disk)
        found += [said("list_apps"), said("up")]
        report.write_text(json.dumps(found))

    assert os.waitstatus_to_exitcode(reap(forked(work), 120)) == 0
    found = json.loads(report.read_text())
    if found is None:
        pytest.skip("this process may not mount a small disk, as root or in a user namespace")
    full = f"1 The database {file} cannot be used: database or disk is full. Free up space on its disk."
    read_only = f"1 The database {file} cannot be used: unable to open database file. Mount its disk writable."
    assert found == [full, read_only, read_only]


def test_unknown_id_says_where_to_find_ids(instance_environment: dict[str, str]) -> None:
    named = {name: arguments for name, arguments in COMMANDS.items() if any("none" in word for word in arguments)}
    lines = [[name, *(word.replace("none", other) for word in arguments)] for name, arguments in named.items()
             for other in ("none", "\udcff", "x" * 5000)]  # fmt: skip
    for line, (code, out, err) in zip(lines, outcomes(lines, **instance_environment), strict=True):
        assert (code, out) == (1, ""), (line, err)
        assert "There is no" in err, (line, err)
        assert "Traceback" not in err, line


def test_commands_without_redis_print_no_traceback(
    instance_environment: dict[str, str],
) -> None:
    lines = [[name, *arguments, "--json"] for name, arguments in COMMANDS.items()]
    environment = instance_environment | {"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    for line, (code, out, err) in zip(lines, outcomes(lines, **environment), strict=True):
        assert "Traceback" not in err, (line, err)
        assert code == 0 or (err.startswith("CommandError: ") and not out), (line, code, err)
        for printed in out.splitlines():
            assert isinstance(json.loads(printed), dict), line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_IN_FLIGHT", "many"),
        ("DATABASE_URL", "hunter2"),
        ("DATABASE_URL", "mysql://docora:hunter2@127.0.0.1/docora"),
        ("DATABASE_URL", "postgres://docora:hunter2@127.0.0.1:port/docora"),
        ("DATABASE_URL", "postgres://docora:p@hunter2/word@127.0.0.1/docora"),
        ("DATABASE_URL", "postgres://docora:p@hunter2#word@127.0.0.1/docora"),
        ("REDIS_URL", "hunter2"),
        ("REDIS_URL", "redis://:hunter2@127.0.0.1:port/0"),
    ],
)
def test_invalid_setting_is_named_by_every_command(name: str, value: str) -> None:
    lines = [[command, *arguments] for command, arguments in COMMANDS.items()]
    lines += [["up"], ["rqworker", "high"], ["doctor"], ["migrate"]]
    for line, (code, out, err) in zip(lines, outcomes(lines, **{name: value}), strict=True):
        assert (code, out) == (1, ""), (line, err)
        assert err.startswith(f"Docora cannot start: {name} must "), (line, err)
        assert "\n" not in err
        assert "hunter2" not in err


def test_redis_that_requires_a_password(valkey_server: ValkeyServer, instance_environment: dict[str, str]) -> None:
    with valkey_server.client() as client:
        client.config_set("requirepass", "sesame")
        try:
            environment = instance_environment | {"REDIS_URL": valkey_server.url}
            [(code, out, err)] = outcomes([["rqworker", "high", "--burst"]], **environment)
        finally:
            client.config_set("requirepass", "")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "Redis refuses the user name and password in REDIS_URL, or requires a password. Write it as "
        "redis://:password@host:6379/0, with special characters percent-encoded."
    )
    assert "Traceback" not in err


def test_worker_needs_no_channels_of_redis(valkey_server: ValkeyServer, instance_environment: dict[str, str]) -> None:
    """Redis gives a new user none. The thread that listened for RQ's commands ended with a traceback."""
    with valkey_server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "resetchannels")
        try:
            environment = instance_environment | {"REDIS_URL": valkey_server.url, "LOG_LEVEL": "info"}
            [(code, _, err)] = run_each([["rqworker", "high", "--burst"]], os.environ | environment)
        finally:
            client.execute_command("ACL", "SETUSER", "default", "allchannels")
    assert code == 0
    assert "Listening on high" in err
    assert "channel" not in err


def test_redis_with_and_without_tls(tmp_path: Path, instance_environment: dict[str, str]) -> None:
    """The advice was to check that Redis is running."""
    context, _ = self_signed(tmp_path)

    def refuse(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                session, _ = listener.accept()
                with contextlib.suppress(OSError), session:
                    context.wrap_socket(session, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener, silent_host() as plain:
        threading.Thread(target=refuse, args=(listener,), daemon=True).start()
        encrypted = f"127.0.0.1:{listener.getsockname()[1]}"
        urls = [f"redis://{encrypted}/0", f"rediss://{plain}/0", f"rediss://{encrypted}/0"]
        said = [outcomes([["rqworker", "high"]], **(instance_environment | {"REDIS_URL": url}))[0] for url in urls]
        listener.shutdown(socket.SHUT_RDWR)
    assert [(code, out) for code, out, _ in said] == [(1, "")] * 3
    advice = [
        "If the server uses TLS on this port, REDIS_URL must begin with rediss://. Otherwise, check that it is running.",
        "Check that the server uses TLS on this port. If it doesn't, REDIS_URL must begin with redis://.",
        "Name the authority that signed the server's certificate: add ?ssl_ca_certs=/path/of/ca.pem to REDIS_URL.",
    ]
    for (_, _, err), expected in zip(said, advice, strict=True):
        assert err.startswith("Redis does not respond: "), err
        assert err.endswith(f". {expected}"), err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BusyLoadingError("Redis is loading the dataset in memory"), "starting: .* Wait until it has loaded its data."),
        (
            ReadOnlyError("You can't write against a read only replica."),
            "refuses: .* REDIS_URL must point to a primary",
        ),
        (
            ResponseError(
                "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"
            ),
            "refuses: .* REDIS_URL must point to a primary",
        ),
        (OutOfMemoryError("command not allowed"), "refuses: .* must point to a primary with free memory."),
        (MasterDownError("Link with MASTER is down"), "refuses: .* REDIS_URL must point to a primary"),
        (NoPermissionError("User docora can't run 'set'"), "refuses: .* Check the database number .* permissions."),
    ],
)
def test_advice_fits_what_redis_answers(error: RedisError, message: str) -> None:
    assert re.fullmatch(f"Redis (is )?{message}.*", error_message(error))


@pytest.mark.parametrize(
    "error",
    [
        MovedError("14632 127.0.0.1:7186"),
        ClusterDownError("Hash slot not served"),
        ClusterCrossSlotError("Keys in request don't hash to the same slot"),
    ],
)
def test_redis_cluster_is_named(error: RedisError) -> None:
    assert error_message(error).startswith("REDIS_URL leads to a Redis Cluster, which Docora can't use. Use a server")


def test_redis_that_may_not_write_its_file_is_not_called_full() -> None:
    error = ResponseError("MISCONF Errors writing to the AOF file: Permission denied")
    assert error_message(error) == (
        "The disk of the Redis server cannot be written, so Redis refuses every write: Errors writing to the AOF file: "
        "Permission denied. Check free space and permissions there; then syncing continues."
    )


def test_createsuperuser_before_the_migration_names_this_program(tmp_path: Path) -> None:
    [(code, _, err)] = outcomes(
        [["createsuperuser", "--noinput", "--username", "anna", "--email", ""]],
        DATABASE_URL=f"sqlite:///{tmp_path / 'empty.sqlite3'}",
        DJANGO_SUPERUSER_PASSWORD="correct horse battery",
    )
    assert code == 1
    assert err.endswith("Migrate it: manage.py migrate")


def test_help_names_an_invalid_setting() -> None:
    done = manage("help", environment=os.environ | {"DATABASE_URL": "hunter2"})
    assert done.returncode == 0
    assert "error: DATABASE_URL must " in done.stdout
    assert "hunter2" not in done.stdout


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("help <&- >&- 2>&-", 0),
        ("help >/dev/null 2>&-", 0),
        ("send_test_alert >&-", 1),
        ("rotate_key app_x --client-auth-key-stdin <&-", 1),
        ("--version >&-", 0),
        ("--version >/dev/full", 1),
    ],
)
def test_closed_streams_and_a_full_disk(instance_environment: dict[str, str], line: str, code: int) -> None:
    command = ["sh", "-c", f"{sys.executable} {PROJECT / 'manage.py'} {line}"]
    done = subprocess.run(command, env=instance_environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == code


def test_ctrl_c_during_the_imports(monkeypatch) -> None:
    class Module:
        @property
        def main(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "docora.cli.main", Module())
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROJECT / "manage.py"), run_name="__main__")
    assert ended.value.code == INTERRUPTED


def test_version_of_a_command_is_that_of_docora() -> None:
    done = manage("status", "--version")
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")


def test_development_server_shows_the_version_of_django() -> None:
    assert CommandLine().fetch_command("runserver").get_version() == django.get_version()


def test_unknown_command_is_a_usage_error() -> None:
    done = manage("resynch")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean resync?" in done.stderr


def test_unknown_queue_is_a_usage_error(instance_environment: dict[str, str]) -> None:
    done = manage("rqworker", "high", "lwo", environment=instance_environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "CommandError: There is no queue 'lwo'. The queues are high, default, low.\n"


@pytest.mark.parametrize(
    ("line", "range_"),
    [
        (["up", "--workers", "0"], "1 to 1,000"),
        (["receiver", "--port", "-1"], "0 to 65,535"),
        (["receiver", "--port", "65536"], "0 to 65,535"),
    ],
)
def test_number_outside_its_range_is_a_usage_error(line: list[str], range_: str) -> None:
    done = manage(*line)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"argument {line[1]}: must be a number from {range_}\n" in done.stderr


def test_receiver_on_a_host_name_that_cannot_be_encoded(instance_environment: dict[str, str]) -> None:
    done = manage("receiver", "--host", "ä..x", environment=instance_environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "CommandError: Cannot listen on ä..x port 9000: encoding of hostname failed.\n"


def test_file_of_another_user() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/data/docora.sqlite3-migrate.lock")
    assert error_message(error) == (
        "/data/docora.sqlite3-migrate.lock cannot be used: Permission denied. "
        "Run commands as Docora's user, which must own it."
    )


def test_traceback_for_unexpected_errors_and_on_request() -> None:
    assert error_message(RuntimeError("odd")) == ""
    assert error_message(DatabaseError("syntax error")) == ""
    assert error_message(ImproperlyConfigured("X must be y.")) == "Docora cannot start: X must be y."
    done = manage("list_apps", "--traceback", environment=os.environ | {"DATABASE_URL": "sqlite:////nowhere/at/all"})
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("line", "has_keys"),
    [
        ([], False),
        (["help", "status"], False),
        (["status", "-h"], False),
        (["status", "--hel"], False),
        (["--help"], True),
    ],
)
def test_help_creates_no_data_directory(tmp_path: Path, line: list[str], has_keys: bool) -> None:
    keys = {name: secrets.token_urlsafe(50) if has_keys else "" for name in ("SECRET_KEY", "ENCRYPTION_KEYS")}
    data = tmp_path / "data"
    kept = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    done = manage(*line, environment=kept | keys | {"DATA_DIR": str(data)})
    assert (done.returncode, done.stderr, data.exists()) == (0, "", False)
    assert done.stdout
