"""Whether the database has what this version of the code works with, and waiting for it.

A newer database is as good: a migration keeps the version before it working, so that old processes go on while it runs.
"""

import time
from collections.abc import Callable
from functools import cache

from django.db import DatabaseError, InterfaceError, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from docora.conf.installation import program
from docora.db.connection import reason

_LOOK_SECONDS = 1.0


@cache
def _latest() -> set[tuple[str, str]]:
    """The last migration of every app, as this version of the code has them."""
    return set(MigrationLoader(None).graph.leaf_nodes())


def not_migrated() -> str:
    return f"the database is not migrated: run {program()} migrate"


def is_migrated() -> bool:
    """Raises DatabaseError or InterfaceError where the database does not answer."""
    return _latest() <= MigrationRecorder(connection).applied_migrations().keys()


def upgrade_problem(database: BaseDatabaseWrapper) -> str:
    """Return why this version cannot migrate the database, or an empty string.

    A squashed migration replaces others, whose files are gone. If only some of those are applied, Django passes over the
    squashed one without an error, and the schema stays old.
    """
    applied = MigrationRecorder(database).applied_migrations().keys()
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


def wait_until_migrated(say: Callable[[str], object], *, while_away: bool = True) -> None:
    """Return once this process can work, and say in a sentence what it waits for until then.

    `while_away=False`: not for a database that does not answer. Leaves no connection open, so that the process may fork.
    """
    said = ""
    while words := _trouble(while_away):
        if words != said:
            say(words)
            said = words
        time.sleep(_LOOK_SECONDS)


def _trouble(while_away: bool) -> str:
    """What keeps this process from working, in words; empty if nothing does."""
    try:
        return "" if is_migrated() else f"Waiting: {not_migrated()}."
    except (DatabaseError, InterfaceError) as error:
        return f"Waiting for the database: {reason(error)}. Check DATABASE_URL." if while_away else ""
    finally:
        connection.close()
