import contextlib
import os
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.core.management.commands import migrate
from django.db import DatabaseError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.sqlite3.base import DatabaseWrapper as SqliteWrapper

from docora import file_locks
from docora.db import schema
from docora.db.connection import sqlstate

_LOCK = int.from_bytes(b"docora")  # the key of a PostgreSQL advisory lock
_POLL_SECONDS = 0.2
_LOCK_SECONDS, _PAUSE_SECONDS = 2, 5
_IN_USE = {"55P03", "40P01"}  # no lock within the timeout; a deadlock, which PostgreSQL ended here


class Command(migrate.Command):
    """Django's command with a lock. If replicas start together, the first one migrates and the others wait for it."""

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--wait",
            type=float,
            default=0.0,
            metavar="SECONDS",
            help="how long to wait for a database that is not up yet (default: 0)",
        )

    def handle(self, *args: Any, wait: float = 0.0, **options: Any) -> None:
        connection = connections[options["database"]]
        _connect(connection, wait)
        report_once = cache(lambda: self.stderr.write("Waiting: another process is migrating this database."))
        with _exclusive(connection, report_once):
            if problem := schema.upgrade_problem(connection):
                raise CommandError(problem)
            self._migrate(connection, *args, **options)

    def _migrate(self, connection: BaseDatabaseWrapper, *args: Any, **options: Any) -> None:
        """Migrate, and try again while other sessions use the tables that a migration alters.

        On PostgreSQL, all sessions that need a table wait behind a migration that waits for it, and a backup may use all
        tables for an hour. So each attempt waits only briefly for a lock. Each migration is one transaction, so the next
        attempt continues.
        """
        report_once = cache(lambda: self.stderr.write("Waiting: other sessions, such as a backup, use the tables."))
        while True:
            try:
                with _short_waits(connection):
                    super().handle(*args, **options)
                return
            except OperationalError as error:
                if sqlstate(error) not in _IN_USE:
                    raise
            report_once()
            time.sleep(_PAUSE_SECONDS)


def _connect(connection: BaseDatabaseWrapper, wait: float) -> None:
    """Connect, and keep trying for `wait` seconds. Raises OperationalError."""
    deadline = time.monotonic() + wait
    while True:
        try:
            connection.ensure_connection()
            return
        except OperationalError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _short_waits(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Let statements wait at most `_LOCK_SECONDS` for a lock, and then take any time. SQLite has a timeout of its own.

    A `statement_timeout` of the role or the database would end each attempt to create an index of a large table.
    """
    if connection.vendor != "postgresql":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", [f"{_LOCK_SECONDS}s"])
        cursor.execute("SET statement_timeout = 0")
    try:
        yield
    finally:
        with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")
            cursor.execute("RESET statement_timeout")


@contextlib.contextmanager
def _exclusive(connection: BaseDatabaseWrapper, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold this database's migration lock. Call `waiting` repeatedly while another process holds it."""
    if isinstance(connection, SqliteWrapper):
        file = Path(str(connection.settings_dict["NAME"]))
        lock = Path(os.devnull) if connection.is_in_memory_db() else file.with_name(f"{file.name}-migrate.lock")
        with file_locks.hold(lock, shared=False, tick=waiting):
            yield
        return
    with connection.cursor() as cursor:
        # Poll: a blocked statement would hold a snapshot, and CREATE INDEX CONCURRENTLY in the other process would wait
        # for it.
        while not _try_lock(cursor):
            waiting()
            time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])


def _try_lock(cursor: Any) -> bool:
    cursor.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK])
    return bool(cursor.fetchone()[0])
