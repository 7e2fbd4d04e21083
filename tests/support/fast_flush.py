"""Delete the rows that a transactional test has committed, much faster than Django's `flush`.

`flush` truncates every table, which rewrites the files of every table and index, and then recreates the permissions that
migrations made, with one query each. Together that takes longer than most tests.

Django also closes the connection after each of these tests. A new one costs PostgreSQL a process, which has to read the
description of every table anew. The session's state is dropped instead.
"""

from datetime import UTC, datetime
from functools import cache

from django.db import connection, transaction
from django.test import TransactionTestCase

from docora.db import append_only, prepared

_FAR_FUTURE = datetime(9999, 1, 1, tzinfo=UTC)  # later than what any test has recorded
_MADE_BY_MIGRATIONS = {
    "auth_group", "auth_group_permissions", "auth_permission", "django_content_type", "django_migrations",
}  # fmt: skip


def install() -> None:
    """Replace `flush` for every test of this process."""
    TransactionTestCase._fixture_teardown = empty  # type: ignore[method-assign, assignment]
    TransactionTestCase._should_reload_connections = _must_reconnect  # type: ignore[method-assign, assignment]


@cache
def _tables() -> list[str]:
    return connection.introspection.django_table_names(only_existing=True, include_views=False)


def empty(_case: object = None) -> None:
    """Delete every row that no migration made."""
    statements = [
        f"DELETE FROM {connection.ops.quote_name(table)}" for table in _tables() if table not in _MADE_BY_MIGRATIONS
    ]
    # Foreign keys are checked at the end of the transaction, so the order does not matter.
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":  # accepts several statements at once
            statements = ["; ".join(statements)]
        with append_only.deletes_before(connection, "deliveries_app_auditentry", _FAR_FUTURE):
            for statement in statements:
                cursor.execute(statement)


def _must_reconnect(_case: object) -> bool:
    """Return whether the connection must be replaced. If not, drop the state of its session."""
    if connection.vendor != "postgresql" or connection.errors_occurred:
        return True
    with connection.cursor() as cursor:
        cursor.execute("DISCARD ALL")
    prepared.forget()
    return False
