import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.core.management.commands import migrate
from django.db import DatabaseError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.sqlite3.base import DatabaseWrapper as SqliteWrapper

from docora import file_locks
from docora.db import schema
from docora.db.connection import reason

_LOCK = int.from_bytes(b"docora")  # among the advisory locks of one database
_POLL_SECONDS = 0.2


class Command(migrate.Command):
    """Django's own, one at a time: replicas that start together all call it, and the later ones find nothing to do."""

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--wait",
            type=float,
            default=0.0,
            metavar="SECONDS",
            help="how long to wait for a database that does not answer yet (0)",
        )

    def handle(self, *args: Any, wait: float = 0.0, **options: Any) -> None:
        connection = connections[options["database"]]
        _connect(connection, wait)
        with _alone(connection, self._say_once("Another process migrates this database; waiting for it.")):
            if problem := schema.upgrade_problem(connection):
                raise CommandError(problem)
            super().handle(*args, **options)

    def _say_once(self, words: str) -> Callable[[], None]:
        told: list[str] = []

        def say() -> None:
            if not told:
                told.append(words)
                self.stderr.write(words)

        return say


def _connect(connection: BaseDatabaseWrapper, wait: float) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            connection.ensure_connection()
            return
        except OperationalError as error:
            if time.monotonic() >= deadline:
                raise CommandError(f"The database cannot be used: {reason(error)}. Check DATABASE_URL.") from None
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _alone(connection: BaseDatabaseWrapper, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of this database; `waiting` is called again and again while somebody else does."""
    if isinstance(connection, SqliteWrapper):
        file = Path(str(connection.settings_dict["NAME"]))
        lock = Path(os.devnull) if connection.is_in_memory_db() else file.with_name(f"{file.name}-migrate.lock")
        with file_locks.hold(lock, shared=False, tick=waiting):
            yield
        return
    with connection.cursor() as cursor:
        # Asked again and again: a statement that waited would keep a snapshot, and an index that the other one builds
        # concurrently would wait for that.
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
