"""Giving every stored secret the newest of the `ENCRYPTION_KEYS`, so that an older one can be forgotten.

The columns are found by their field class, whichever model has them. Each value is replaced by an UPDATE that expects
the ciphertext it was read as: what is written meanwhile is never lost, any number of these may run at once, and one that
was stopped is simply started again. Nothing else of a row changes, `updated_at` neither.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Any

from django.apps import apps
from django.db.models import ExpressionWrapper, F, Model, QuerySet, TextField, Value

from docora.security.crypto import DecryptionError, EncryptedTextField, decrypt, encrypt, is_current

SLICE = 500  # rows that are read at a time


class _Fate(Enum):
    RENEWED = "renewed"
    CURRENT = "current"
    UNREADABLE = "unreadable"
    EMPTY = "empty"


@dataclass
class Column:
    """One encrypted column, and what became of its values. `unreadable` holds the primary keys of the rows."""

    model: type[Model]
    name: str
    renewed: int = 0
    current: int = 0
    unreadable: list[Any] = field(default_factory=list)

    @property
    def seen(self) -> int:
        return self.renewed + self.current + len(self.unreadable)

    def __str__(self) -> str:
        return f"{self.model._meta.label}.{self.name}"


def columns() -> list[Column]:
    """Every encrypted column of the installed models."""
    return [
        Column(model, column.name)
        for model in apps.get_models()
        if model._meta.managed and not model._meta.proxy
        for column in model._meta.local_concrete_fields
        if isinstance(column, EncryptedTextField)
    ]


def reencrypt(
    column: Column, *, dry_run: bool = False, at_most: int | None = None, told: Callable[[], None] = lambda: None
) -> None:
    """Renew every value of one column, or the first `at_most`, and count in `column`. `dry_run` only counts. `told` is
    called after each of them."""
    for pk, stored in islice(_values(column), at_most):
        match _renew(column, pk, stored, dry_run):
            case _Fate.RENEWED:
                column.renewed += 1
            case _Fate.CURRENT:
                column.current += 1
            case _Fate.UNREADABLE:
                column.unreadable.append(pk)
        told()


def _rows(column: Column) -> QuerySet[Any]:
    """Every row, with the column as the database has it in `stored`."""
    raw = ExpressionWrapper(F(column.name), output_field=TextField())
    return column.model._base_manager.annotate(stored=raw)


def _stored(column: Column) -> QuerySet[Any]:
    return _rows(column).exclude(stored="").exclude(stored=None)


def how_many(column: Column) -> int:
    """Secrets that are stored in it now."""
    return _stored(column).count()


def _values(column: Column) -> Iterator[tuple[Any, str]]:
    """`(pk, ciphertext)` in the order of the keys. No transaction stays open between the slices."""
    rows = _stored(column).order_by("pk").values_list("pk", "stored")
    found = list(rows[:SLICE])
    while found:
        yield from found
        found = list(rows.filter(pk__gt=found[-1][0])[:SLICE])


def _renew(column: Column, pk: Any, stored: str | None, dry_run: bool) -> _Fate:
    """Again as long as somebody else writes the value between the reading and the writing of it."""
    while stored:
        if is_current(stored):
            return _Fate.CURRENT
        try:
            renewed = encrypt(decrypt(stored))
        except DecryptionError:
            return _Fate.UNREADABLE
        row = _rows(column).filter(pk=pk)
        if dry_run or row.filter(stored=stored).update(**{column.name: Value(renewed, output_field=TextField())}):
            return _Fate.RENEWED
        stored = row.values_list("stored", flat=True).first()
    return _Fate.EMPTY
