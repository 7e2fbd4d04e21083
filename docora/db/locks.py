"""Lock rows in one order."""

from typing import Any

from django.db.models import QuerySet


def lock_rows(rows: QuerySet[Any]) -> list[int]:
    """Lock these rows in the order of their primary keys until the transaction ends, and return the keys.

    A single UPDATE would lock them in no defined order, and could deadlock. Others may still insert rows that refer to
    these: at the commit, PostgreSQL locks the keys that the new rows refer to, in the order of the inserts.
    """
    return list(rows.select_for_update(of=("self",), no_key=True).order_by("pk").values_list("pk", flat=True))
