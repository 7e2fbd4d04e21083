"""`manage.py rotate_encryption_keys`: re-encrypt every stored secret with the newest key."""

from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from docora.cli.output import Bar, add_json, write_json
from docora.redis.inspect import live_workers
from docora.redis.queues import WORKER_TTL_SECONDS
from docora.security.stored_secrets import Result, columns
from docora.text import counted

_MAX_LISTED = 100  # unreadable rows of a column that are printed


class Command(BaseCommand):
    help = (
        "Re-encrypts every stored secret with the first of ENCRYPTION_KEYS. Before you run it, put the new key in front of"
        " the old one and restart every process. It refuses to run while a worker still lacks the new key. Afterwards,"
        " remove the old key and restart again. You can interrupt and repeat it at any time."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only count; exit 1 if a secret cannot be decrypted")
        add_json(parser, "dry_run, and columns with the numbers renewed and current and the keys of unreadable rows")

    def handle(self, *args: Any, **options: Any) -> None:
        dry_run, as_json = options["dry_run"], options["json"]
        if not dry_run and (others := [worker.name for worker in live_workers() if worker.has_other_key]):
            raise CommandError(
                f"Started with other keys than this command: {', '.join(others)}. Such a worker can't read secrets that are"
                " encrypted with the newest key. Restart every process, then run this again. A worker that was killed still"
                f" counts for {WORKER_TTL_SECONDS} seconds. Nothing was changed."
            )
        results: dict[str, Result] = {}
        with Bar(quiet=as_json) as bar:
            for name, secrets in columns():
                results[name] = result = Result()
                for number, secret in enumerate(secrets, 1):
                    bar.show(name, number)
                    result.add(secret, dry_run=dry_run)
        if as_json:
            by_column = {name: asdict(result) for name, result in results.items()}
            write_json(self.stdout, {"dry_run": dry_run, "columns": by_column})
        else:
            for name, result in results.items():
                self._print(name, result, dry_run=dry_run)
        if unreadable := sum(len(result.unreadable) for result in results.values()):
            raise CommandError(
                f"{counted(unreadable, 'stored secret')} cannot be decrypted with any of the"
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
