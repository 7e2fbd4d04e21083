"""`manage.py rotate_encryption_keys`: re-encrypt every stored secret with the newest key."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import TextField, Value

from docora.cli.output import Bar, add_json, write_json
from docora.security.crypto import DecryptionError, EncryptedTextField, encrypted_fields, reencrypt, stored_values
from docora.sign_in import factors

PAGE_SIZE = 500  # rows read at a time, so that no transaction or cursor stays open
_MAX_LISTED = 100  # unreadable rows of a column that are printed


@dataclass
class Result:
    """What happened to the secrets of one column. `unreadable` holds the primary keys of rows that cannot be decrypted."""

    renewed: int = 0
    current: int = 0
    unreadable: list[Any] = field(default_factory=list)


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
        results = {str(column): _rotate(column, dry_run=dry_run, quiet=as_json) for column in encrypted_fields()}
        results[factors.COLUMN] = _rotate_factors(dry_run=dry_run)
        if as_json:
            columns = {name: asdict(result) for name, result in results.items()}
            write_json(self.stdout, {"dry_run": dry_run, "columns": columns})
        else:
            for name, result in results.items():
                self._print(name, result, dry_run=dry_run)
        if unreadable := sum(len(result.unreadable) for result in results.values()):
            raise CommandError(
                f"{unreadable} stored {'secret' if unreadable == 1 else 'secrets'} cannot be decrypted with any of the"
                " ENCRYPTION_KEYS, and were not changed. Add the key that was used to the end of the list and run this"
                " again, or enter those secrets again."
            )
        if not (dry_run or as_json):
            self.stdout.write("Every stored secret has the newest key; the older ones can be removed.")

    def _print(self, name: str, result: Result, *, dry_run: bool) -> None:
        done = "to re-encrypt" if dry_run else "re-encrypted"
        self.stdout.write(f"{name}: {result.renewed:,} {done}, {result.current:,} already had the newest key")
        for pk in result.unreadable[:_MAX_LISTED]:
            self.stderr.write(f"{name}: pk {pk} cannot be decrypted")
        if len(result.unreadable) > _MAX_LISTED:
            self.stderr.write(f"{name}: {len(result.unreadable) - _MAX_LISTED:,} more cannot be decrypted")


def _rotate(column: EncryptedTextField, *, dry_run: bool, quiet: bool) -> Result:
    """Re-encrypt one column. The UPDATE changes only this column, so `updated_at` stays as it is."""
    result = Result()
    total = stored_values(column).count()
    with Bar(quiet=quiet) as bar:
        for number, (pk, stored) in enumerate(_stored(column), 1):
            bar.show(str(column), number, total)
            try:
                if (renewed := reencrypt(stored)) == stored:
                    result.current += 1
                else:
                    if not dry_run:
                        _replace(column, pk, stored, renewed)
                    result.renewed += 1
            except DecryptionError:
                result.unreadable.append(pk)
    return result


def _rotate_factors(*, dry_run: bool) -> Result:
    """Re-encrypt the secrets of second factors, which are inside JSON."""
    result = Result()
    for pk, name, stored in factors.stored_secrets():
        try:
            renewed = reencrypt(stored)
        except DecryptionError:
            result.unreadable.append(pk)
            continue
        if renewed == stored:
            result.current += 1
            continue
        result.renewed += 1
        if not dry_run:
            factors.replace_secret(pk, name, stored, renewed)
    return result


def _stored(column: EncryptedTextField) -> Iterator[tuple[Any, str]]:
    """Yield (primary key, ciphertext) of all rows that have a secret, in order of their keys."""
    rows = stored_values(column).order_by("pk").values_list("pk", "stored")
    page = list(rows[:PAGE_SIZE])
    while page:
        yield from page
        page = list(rows.filter(pk__gt=page[-1][0])[:PAGE_SIZE])


def _replace(column: EncryptedTextField, pk: Any, stored: str | None, renewed: str) -> None:
    """Replace a ciphertext. If the secret is changed at the same time, start over with the new ciphertext."""
    row = stored_values(column).filter(pk=pk)
    while not row.filter(stored=stored).update(**{column.name: Value(renewed, output_field=TextField())}):
        stored = row.values_list("stored", flat=True).first()
        if stored is None or (renewed := reencrypt(stored)) == stored:
            return
