"""`manage.py rotate_encryption_keys`: every stored secret under the newest key, so that older ones can be removed."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from docora.reencryption import Column, columns, reencrypt

_LISTED = 100  # rows of a column that are named, should a key be lost altogether


class Command(BaseCommand):
    help = (
        "Encrypts every stored secret anew with the first of ENCRYPTION_KEYS. Before: put the new key in front of the "
        "old one and restart every process. After: remove the old key and restart again. May be stopped and repeated "
        "at any time."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only count; exit 1 if a secret cannot be decrypted")

    def handle(self, *args: Any, **options: Any) -> None:
        found = columns()
        for column in found:
            reencrypt(column, dry_run=options["dry_run"])
            self._tell(column, "to encrypt anew" if options["dry_run"] else "encrypted anew")
        lost = sum(len(column.unreadable) for column in found)
        if lost:
            raise CommandError(
                f"{lost} stored {'secret' if lost == 1 else 'secrets'} cannot be decrypted with any of the "
                "ENCRYPTION_KEYS and stayed as before. Add the key that was used to the end of the list and repeat "
                "this, or give those secrets anew."
            )
        if not options["dry_run"]:
            self.stdout.write("Every stored secret has the newest key; the older ones can be removed.")

    def _tell(self, column: Column, renewed: str) -> None:
        self.stdout.write(f"{column}: {column.renewed:,} {renewed}, {column.current:,} had the newest key")
        for pk in column.unreadable[:_LISTED]:
            self.stderr.write(f"{column}: pk {pk} cannot be decrypted")
        if len(column.unreadable) > _LISTED:
            self.stderr.write(f"{column}: {len(column.unreadable) - _LISTED:,} more cannot be decrypted")
