"""Append-only tables. Triggers reject updates and deletes, on PostgreSQL and SQLite.

The one exception is for retention: within `deletes_before`, rows created before a given time can be deleted. This cannot be
left on by accident, because it ends with its transaction and never affects other connections. The table needs the columns
`id` and `created_at`.

Anyone who can run statements as Docora's database user can drop the triggers or use that exception. To protect the rows from
that, export them to another machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

_SETTING = "docora.delete_before"  # of a PostgreSQL transaction

_POSTGRESQL = """
CREATE OR REPLACE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.created_at < NULLIF(current_setting('{setting}', true), '')::timestamptz THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION '{table} is append-only: % is refused.', TG_OP USING ERRCODE = 'restrict_violation';
END $$;
DROP TRIGGER IF EXISTS append_only_rows ON {table};
CREATE TRIGGER append_only_rows BEFORE UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION {table}_append_only();
DROP TRIGGER IF EXISTS append_only_table ON {table};
CREATE TRIGGER append_only_table BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only();
"""

# INSERT OR REPLACE would remove a row without firing a delete trigger, so an existing key is refused as well.
_SQLITE = (
    "CREATE TABLE IF NOT EXISTS {table}_guard (delete_before text NOT NULL)",
    "DROP TRIGGER IF EXISTS {table}_no_update",
    "CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table}"
    " BEGIN SELECT RAISE(ABORT, '{table} is append-only: UPDATE is refused.'); END",
    "DROP TRIGGER IF EXISTS {table}_no_delete",
    "CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table}"
    " WHEN NOT EXISTS (SELECT 1 FROM {table}_guard WHERE OLD.created_at < delete_before)"
    " BEGIN SELECT RAISE(ABORT, '{table} is append-only: DELETE is refused.'); END",
    "DROP TRIGGER IF EXISTS {table}_no_replace",
    "CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id)"
    " BEGIN SELECT RAISE(ABORT, '{table} is append-only: REPLACE is refused.'); END",
)


def protect(connection: BaseDatabaseWrapper, table: str) -> None:
    """Create or recreate the triggers.

    Repeat this after every migration: to alter a table, Django's SQLite backend copies it and drops the old one, with its
    triggers.
    """
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(_POSTGRESQL.format(table=table, setting=_SETTING))
        else:
            for statement in _SQLITE:
                cursor.execute(statement.format(table=table))


def unprotect(connection: BaseDatabaseWrapper, table: str) -> None:
    """Remove the triggers, their function and the guard table. Call this before the table itself is dropped."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"DROP FUNCTION IF EXISTS {table}_append_only() CASCADE")
        else:
            for name in ("no_update", "no_delete", "no_replace"):
                cursor.execute(f"DROP TRIGGER IF EXISTS {table}_{name}")
            cursor.execute(f"DROP TABLE IF EXISTS {table}_guard")


def is_protected(connection: BaseDatabaseWrapper, table: str) -> bool:
    """Return whether all triggers exist and are enabled."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT count(*) FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND tgenabled <> 'D'"
                " AND tgname IN ('append_only_rows', 'append_only_table')",
                [table],
            )
            return bool(cursor.fetchone()[0] == 2)
        cursor.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND tbl_name = %s", [table])
        return bool(cursor.fetchone()[0] == 3)


@contextmanager
def deletes_before(connection: BaseDatabaseWrapper, table: str, moment: datetime) -> Iterator[None]:
    """Allow deleting the table's rows that were created before `moment`, in a transaction or savepoint of its own.

    An error rolls back both the deletes and the permission.
    """
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT set_config(%s, %s, true)", [_SETTING, moment.isoformat()])
        else:
            before = connection.ops.adapt_datetimefield_value(moment)
            cursor.execute(f"INSERT INTO {table}_guard VALUES (%s)", [before])  # noqa: S608
        yield
        if connection.vendor == "postgresql":
            cursor.execute("SELECT set_config(%s, '', true)", [_SETTING])
        else:
            cursor.execute(f"DELETE FROM {table}_guard")  # noqa: S608
