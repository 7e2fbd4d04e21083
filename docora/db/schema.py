"""Check that the database schema fits this version of the code, and wait until it does.

A newer schema is accepted: each migration keeps the previous version of the code working, so old processes can still run.
"""

import time
from collections.abc import Callable
from functools import cache

from django.db import DatabaseError, InterfaceError, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from docora.conf.installation import program
from docora.db.connection import is_locked
from docora.db.connection import is_read_only as is_read_only_error
from docora.text import first_line

_POLL_SECONDS = 1.0


@cache
def _latest() -> set[tuple[str, str]]:
    """Return each app's last migration in this version of the code."""
    return set(MigrationLoader(None).graph.leaf_nodes())


def not_migrated() -> str:
    return f"the database is not migrated: run {program()} migrate"


def is_migrated() -> bool:
    """Return whether all migrations are applied. Raises DatabaseError or InterfaceError if the database is down."""
    return _latest() <= MigrationRecorder(connection).applied_migrations().keys()


def is_read_only() -> bool:
    """Return whether the database accepts no writes. Raises DatabaseError or InterfaceError if it is down."""
    if connection.vendor == "sqlite":
        return _file_is_read_only()
    with connection.cursor() as cursor:
        cursor.execute("SHOW transaction_read_only")
        return bool(cursor.fetchone() == ("on",))


def _file_is_read_only() -> bool:
    """Try a write that changes nothing: SQLite also opens and reads a file that it can't write.

    A connection of its own doesn't wait for another writer, who proves that the file can be written.
    """
    new = connection.copy()
    new.settings_dict["OPTIONS"]["timeout"] = 0
    try:
        with new.cursor() as cursor:
            cursor.execute("DELETE FROM django_migrations WHERE 0")
    except DatabaseError as error:
        if is_read_only_error(error):
            return True
        if not is_locked(error):
            raise
    finally:
        new.close()
    return False


def accepts_connections() -> bool:
    """Return whether PostgreSQL accepts a new connection. If its password was changed, only existing ones still work."""
    if connection.vendor != "postgresql":
        return True
    new = connection.copy()
    new.settings_dict["OPTIONS"].pop("pool", None)
    try:
        new.ensure_connection()
    except DatabaseError:
        return False
    finally:
        new.close()
    return True


def encoding_problem(database: BaseDatabaseWrapper) -> str:
    """Return "problem: what to do" if PostgreSQL can't store every text, or an empty string.

    Without a locale, `initdb` chooses SQL_ASCII, in which texts are limited by their bytes.
    """
    if database.vendor != "postgresql":
        return ""
    with database.cursor() as cursor:
        cursor.execute("SHOW server_encoding")
        [encoding] = cursor.fetchone()
    if encoding == "UTF8":
        return ""
    return (
        f"The database's encoding is {encoding}, so Docora can't store every text in it: use a database that was created with "
        "ENCODING 'UTF8' TEMPLATE template0"
    )


def upgrade_problem(database: BaseDatabaseWrapper) -> str:
    """Return why this version cannot migrate the database, or an empty string.

    A squashed migration replaces others whose files no longer exist. If only some of those are applied, Django silently
    skips the squashed migration and the schema stays old.
    """
    applied = MigrationRecorder(database).applied_migrations().keys()
    if not applied and (problem := encoding_problem(database)):
        return f"{problem}."
    loader = MigrationLoader(None)
    for migration in loader.replacements.values():
        gone = [key for key in migration.replaces if key not in loader.disk_migrations]
        missing = [key for key in gone if key not in applied]
        if 0 < len(missing) < len(gone):
            return (
                f"The database is too old for this version of Docora: it lacks migration {'.'.join(missing[-1])}. "
                "First run migrate with a version that still has this migration, then with this one."
            )
    return ""


def wait_until_migrated(report: Callable[[str], object], *, wait_for_database: bool = True) -> None:
    """Wait until the database is migrated. Call `report` with a sentence that says what it waits for.

    With `wait_for_database=False`, return if the database is down. Leaves no connection open, so the process may fork.
    """
    reported = ""
    while message := _waiting_for(wait_for_database):
        if message != reported:
            report(message)
            reported = message
        time.sleep(_POLL_SECONDS)


def _waiting_for(wait_for_database: bool) -> str:
    """Return what to wait for as a sentence, or an empty string if the database is ready."""
    try:
        return "" if is_migrated() else f"Waiting: {not_migrated()}."
    except (DatabaseError, InterfaceError) as error:
        return f"Waiting for the database: {first_line(error)}. Check DATABASE_URL." if wait_for_database else ""
    finally:
        connection.close()
