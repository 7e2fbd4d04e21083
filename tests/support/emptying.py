"""What a test with committed rows leaves behind is deleted, in place of Django's `flush`.

`flush` truncates every table, which makes a file for each of them and each of their indexes anew, and then brings back
what migrations made: permissions, one query each. Together that takes longer than most tests.
"""

from functools import cache

from django.db import connection, transaction
from django.test import TransactionTestCase

_MADE_BY_MIGRATIONS = {
    "auth_group", "auth_group_permissions", "auth_permission", "django_content_type", "django_migrations",
}  # fmt: skip


def install() -> None:
    """For every test of this process."""
    TransactionTestCase._fixture_teardown = empty  # type: ignore[method-assign, assignment]


@cache
def _tables() -> list[str]:
    return connection.introspection.django_table_names(only_existing=True, include_views=False)


def empty(_case: object = None) -> None:
    """Delete every row that no migration made."""
    statements = [
        f"DELETE FROM {connection.ops.quote_name(table)}" for table in _tables() if table not in _MADE_BY_MIGRATIONS
    ]
    # In one transaction: foreign keys are looked at when it ends, so that the order does not matter.
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":  # takes them all at once
            statements = ["; ".join(statements)]
        for statement in statements:
            cursor.execute(statement)
