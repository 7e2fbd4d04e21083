"""Lock rows in one order."""

from typing import Any

from django.db.models import QuerySet


def lock_rows(rows: QuerySet[Any]) -> list[int]:
    """Lock these rows until the transaction ends, and return their primary keys, in whose order all rows of a table are locked.

    A single UPDATE would lock them in no defined order, and could deadlock. Others may still insert rows that refer to
    these: at its commit, PostgreSQL locks the keys that those refer to in the order in which they were inserted.
    """
    return list(rows.select_for_update(of=("self",), no_key=True).order_by("pk").values_list("pk", flat=True))
