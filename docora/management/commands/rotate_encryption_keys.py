"""`manage.py rotate_encryption_keys`: every stored secret under the newest key, so that older ones can be removed."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from docora.cli.output import Bar, add_json, write_json
from docora.security.reencryption import Column, columns, how_many, reencrypt

_LISTED = 100  # rows of a column that are named, should a key be lost altogether


class Command(BaseCommand):
    help = (
        "Encrypts every stored secret anew with the first of ENCRYPTION_KEYS. Before: put the new key in front of the "
        "old one and restart every process. After: remove the old key and restart again. May be stopped and repeated "
        "at any time."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only count; exit 1 if a secret cannot be decrypted")
        add_json(parser, "dry_run, and columns with the numbers renewed and current and the keys of unreadable rows")

    def handle(self, *args: Any, **options: Any) -> None:
        found = columns()
        for column in found:
            _renew(column, dry_run=options["dry_run"], quiet=options["json"])
        if options["json"]:
            write_json(
                self.stdout, {"dry_run": options["dry_run"], "columns": {str(one): _facts(one) for one in found}}
            )
        else:
            for column in found:
                self._tell(column, "to encrypt anew" if options["dry_run"] else "encrypted anew")
        lost = sum(len(column.unreadable) for column in found)
        if lost:
            raise CommandError(
                f"{lost} stored {'secret' if lost == 1 else 'secrets'} cannot be decrypted with any of the "
                "ENCRYPTION_KEYS and stayed as before. Add the key that was used to the end of the list and repeat "
                "this, or give those secrets anew."
            )
        if not (options["dry_run"] or options["json"]):
            self.stdout.write("Every stored secret has the newest key; the older ones can be removed.")

    def _tell(self, column: Column, renewed: str) -> None:
        self.stdout.write(f"{column}: {column.renewed:,} {renewed}, {column.current:,} had the newest key")
        for pk in column.unreadable[:_LISTED]:
            self.stderr.write(f"{column}: pk {pk} cannot be decrypted")
        if len(column.unreadable) > _LISTED:
            self.stderr.write(f"{column}: {len(column.unreadable) - _LISTED:,} more cannot be decrypted")


def _renew(column: Column, *, dry_run: bool, quiet: bool) -> None:
    total = how_many(column)
    with Bar(quiet=quiet) as bar:
        reencrypt(column, dry_run=dry_run, told=lambda: bar.show(str(column), column.seen, total))


def _facts(column: Column) -> dict[str, Any]:
    return {"renewed": column.renewed, "current": column.current, "unreadable": column.unreadable}
