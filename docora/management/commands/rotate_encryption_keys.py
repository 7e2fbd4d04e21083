"""`manage.py rotate_encryption_keys`: re-encrypt every stored secret with the newest key."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import TextField, Value

from docora.cli.output import Bar, add_json, write_json
from docora.security.crypto import DecryptionError, EncryptedTextField, encrypted_fields, reencrypt, stored_values
from docora.sign_in import factors
from docora.text import counted

PAGE_SIZE = 500  # rows read at a time, so that no transaction or cursor stays open
_MAX_LISTED = 100  # unreadable rows of a column that are printed


@dataclass
class Result:
    """What happened to the secrets of one column. `unreadable` holds the primary keys of rows that cannot be decrypted."""

    renewed: int = 0
    current: int = 0
    unreadable: list[Any] = field(default_factory=list)

    def add(self, pk: Any, stored: str, replace: Callable[[str], None] | None) -> None:
        """Re-encrypt one secret and count it. `replace` stores the new ciphertext."""
        try:
            renewed = reencrypt(stored)
            if renewed == stored:
                self.current += 1
                return
            if replace:
                replace(renewed)
            self.renewed += 1
        except DecryptionError:
            self.unreadable.append(pk)


class Command(BaseCommand):
    help = (
        "Re-encrypts every stored secret with the first of ENCRYPTION_KEYS. Before you run it, put the new key in front of"
        " the old one and restart every process. Afterwards, remove the old key and restart again. You can interrupt and"
        " repeat it at any time."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only count; exit 1 if a secret cannot be decrypted")
        add_json(parser, "dry_run, and columns with the numbers renewed and current and the keys of unreadable rows")

    def handle(self, *args: Any, **options: Any) -> None:
        dry_run, as_json = options["dry_run"], options["json"]
        results: dict[str, Result] = {}
        with Bar(quiet=as_json) as bar:
            for name, secrets in _columns():
                results[name] = result = Result()
                for number, (pk, stored, replace) in enumerate(secrets, 1):
                    bar.show(name, number)
                    result.add(pk, stored, None if dry_run else replace)
        if as_json:
            columns = {name: asdict(result) for name, result in results.items()}
            write_json(self.stdout, {"dry_run": dry_run, "columns": columns})
        else:
            for name, result in results.items():
                self._print(name, result, dry_run=dry_run)
        if unreadable := sum(len(result.unreadable) for result in results.values()):
            raise CommandError(
                f"{counted(unreadable, 'stored secret', 'stored secrets')} cannot be decrypted with any of the"
                " ENCRYPTION_KEYS. Nothing was changed there. Add the key that was used to the end of the list and run this"
                " again, or enter those secrets again."
            )
        if not (dry_run or as_json):
            self.stdout.write("Every stored secret is encrypted with the newest key. You can remove the older keys.")

    def _print(self, name: str, result: Result, *, dry_run: bool) -> None:
        done = "to re-encrypt" if dry_run else "re-encrypted"
        self.stdout.write(f"{name}: {result.renewed:,} {done}, {result.current:,} already had the newest key")
        for pk in result.unreadable[:_MAX_LISTED]:
            self.stderr.write(f"{name}: pk {pk} cannot be decrypted")
        if len(result.unreadable) > _MAX_LISTED:
            self.stderr.write(f"{name}: {len(result.unreadable) - _MAX_LISTED:,} more cannot be decrypted")


def _columns() -> Iterator[tuple[str, Iterable[tuple[Any, str, Callable[[str], None]]]]]:
    """Yield each column with its secrets: the row's primary key, the ciphertext, and a function that replaces it."""
    for column in encrypted_fields():
        yield str(column), ((pk, stored, partial(_replace, column, pk, stored)) for pk, stored in _stored(column))
    of_factors = factors.stored_secrets()
    yield factors.COLUMN, ((pk, old, partial(factors.replace_secret, pk, name, old)) for pk, name, old in of_factors)


def _stored(column: EncryptedTextField) -> Iterator[tuple[Any, str]]:
    """Yield (primary key, ciphertext) of all rows that have a secret, in order of their keys."""
    rows = stored_values(column).order_by("pk").values_list("pk", "stored")
    page = list(rows[:PAGE_SIZE])
    while page:
        yield from page
        page = list(rows.filter(pk__gt=page[-1][0])[:PAGE_SIZE])


def _replace(column: EncryptedTextField, pk: Any, stored: str | None, renewed: str) -> None:
    """Replace a ciphertext, and no other column. If it has changed meanwhile, start over with the new ciphertext."""
    row = stored_values(column).filter(pk=pk)
    while not row.filter(stored=stored).update(**{column.name: Value(renewed, output_field=TextField())}):
        stored = row.values_list("stored", flat=True).first()
        if stored is None or (renewed := reencrypt(stored)) == stored:
            return
