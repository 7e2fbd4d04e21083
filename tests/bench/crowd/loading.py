"""Load many rows into one table in constant memory: with COPY on PostgreSQL, otherwise in batches."""

import json
from collections.abc import Iterable, Sequence
from itertools import batched
from typing import Any

from django.db import connection, models

_BATCH = 2000


def load(model: type[models.Model], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Load rows of plain values for these columns. A model's `save` is not called."""
    if connection.vendor == "postgresql":
        _copy(model, columns, rows)
        return
    for batch in batched(rows, _BATCH):
        model._default_manager.bulk_create(model(**dict(zip(columns, row, strict=True))) for row in batch)


def _copy(model: type[models.Model], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    quote = connection.ops.quote_name
    names = ", ".join(quote(column) for column in columns)
    texts = [index for index, column in enumerate(columns) if isinstance(_field(model, column), models.JSONField)]
    with connection.cursor() as cursor, cursor.copy(f"COPY {quote(model._meta.db_table)} ({names}) FROM STDIN") as copy:
        for row in rows:
            for index in texts:
                row = (*row[:index], json.dumps(row[index]), *row[index + 1 :])
            copy.write_row(row)


def _field(model: type[models.Model], column: str) -> Any:
    return next(field for field in model._meta.concrete_fields if field.column == column)
