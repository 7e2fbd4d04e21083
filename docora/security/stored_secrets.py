"""All stored secrets and their re-encryption: the encrypted columns of all models, and second factors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from allauth.mfa.models import Authenticator
from django.apps import apps
from django.db import transaction
from django.db.models import ExpressionWrapper, F, QuerySet, TextField, Value

from docora.security.crypto import DecryptionError, EncryptedTextField, reencrypt

PAGE_SIZE = 500  # rows read at a time, so that no transaction or cursor stays open
_OF_FACTORS = ("secret", "seed")  # of an authenticator app, and of recovery codes


class StoredSecret(NamedTuple):
    """A secret in the row `pk`. `replace` stores a new ciphertext."""

    pk: Any
    ciphertext: str
    replace: Callable[[str], None]


@dataclass
class Result:
    """What happened to the secrets of one column. `unreadable` holds the primary keys of rows that cannot be decrypted."""

    renewed: int = 0
    current: int = 0
    unreadable: list[Any] = field(default_factory=list)

    def add(self, secret: StoredSecret, *, dry_run: bool) -> None:
        """Re-encrypt one secret with the newest key and count it. With `dry_run`, only count it."""
        try:
            renewed = reencrypt(secret.ciphertext)
            if renewed == secret.ciphertext:
                self.current += 1
                return
            if not dry_run:
                secret.replace(renewed)
            self.renewed += 1
        except DecryptionError:
            self.unreadable.append(secret.pk)


def columns() -> Iterator[tuple[str, Iterator[StoredSecret]]]:
    """Yield the name of each column and its secrets, in the order of their primary keys."""
    for column in encrypted_fields():
        yield str(column), _of_column(column)
    yield "mfa.Authenticator.data", _of_factors()


def examine(limit: int) -> dict[str, Result]:
    """Return, for each column, whether its first `limit` secrets can be decrypted. Changes nothing."""
    results: dict[str, Result] = {}
    for name, secrets in columns():
        results[name] = result = Result()
        for secret in islice(secrets, limit):
            result.add(secret, dry_run=True)
    return results


def encrypted_fields() -> list[EncryptedTextField]:
    """Return the encrypted columns of all installed models."""
    return [
        field
        for model in apps.get_models()
        for field in model._meta.local_concrete_fields
        if isinstance(field, EncryptedTextField)
    ]


def _of_column(column: EncryptedTextField) -> Iterator[StoredSecret]:
    rows = _rows(column).order_by("pk").values_list("pk", "stored")
    page = list(rows[:PAGE_SIZE])
    while page:
        for pk, stored in page:
            yield StoredSecret(pk, stored, partial(_replace, column, pk, stored))
        page = list(rows.filter(pk__gt=page[-1][0])[:PAGE_SIZE]) if len(page) == PAGE_SIZE else []


def _rows(column: EncryptedTextField) -> QuerySet[Any]:
    """Return the rows that have a secret, with its ciphertext as `stored`."""
    ciphertext = ExpressionWrapper(F(column.name), output_field=TextField())
    return column.model._base_manager.annotate(stored=ciphertext).exclude(stored="").exclude(stored=None)


def _replace(column: EncryptedTextField, pk: Any, stored: str | None, renewed: str) -> None:
    """Replace a ciphertext, and no other column. If it has changed meanwhile, start over with the new ciphertext."""
    row = _rows(column).filter(pk=pk)
    while not row.filter(stored=stored).update(**{column.name: Value(renewed, output_field=TextField())}):
        stored = row.values_list("stored", flat=True).first()
        if stored is None or (renewed := reencrypt(stored)) == stored:
            return


def _of_factors() -> Iterator[StoredSecret]:
    for pk, data in Authenticator.objects.order_by("pk").values_list("pk", "data"):
        for name in _OF_FACTORS:
            if stored := data.get(name):
                yield StoredSecret(pk, stored, partial(_replace_of_factor, pk, name, stored))


def _replace_of_factor(pk: int, name: str, stored: str, renewed: str) -> None:
    """Replace the ciphertext `stored` with `renewed`. Do nothing if the secret has been changed or deleted since."""
    with transaction.atomic():
        row = Authenticator.objects.select_for_update().filter(pk=pk).first()
        if row is not None and row.data.get(name) == stored:
            row.data[name] = renewed
            row.save(update_fields=["data"])
