"""`manage.py import_docora`: import the existing service's data."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import IntegrityError

from deliveries_app.actors import Actor
from deliveries_app.importing.run import LOSSY_COPIES_NOTE, Counts, Item, Report, run_import
from deliveries_app.importing.source import SourceError, SourceKey, address_of, message_of, open_source
from deliveries_app.services import imported_tokens
from docora.cli.output import INTERRUPTED, Bar, add_json, secret_from_stdin, write_json, wrong_usage
from docora.db import schema
from docora.db.connection import CONNECTION_ERRORS
from docora.text import cause_of, counted, printable

URL_VARIABLE, KEY_VARIABLE = "SOURCE_DATABASE_URL", "SOURCE_ENCRYPTION_KEY"
_MAX_PER_REASON = 10  # one git host that isn't allowed can be the reason for thousands of entries
_RESUME = "Nothing is lost. Run the command again to continue."


class Command(BaseCommand):
    help = (
        "Imports apps, watches, secrets and delivery records from the existing service's database, which is only read. "
        f"Set {URL_VARIABLE} to its URL and {KEY_VARIABLE} to its ENCRYPTION_KEY. You can stop and repeat the import at "
        "any time: what Docora already has stays unchanged, and what was removed from Docora stays removed. Exit 1 if "
        "something could not be imported."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "url",
            nargs="?",
            help=f"postgres://… of the existing service, instead of {URL_VARIABLE}; visible to every user of this machine",
        )
        parser.add_argument("--encryption-key-stdin", action="store_true", help="read its ENCRYPTION_KEY from stdin")
        parser.add_argument("--dry-run", action="store_true", help="print what would be imported, and write nothing")
        add_json(parser, "dry_run, apps, repositories, watches, files (each taken, here, left), problems, remarks")

    def handle(self, *args: Any, **options: Any) -> None:
        with _import_errors():
            imported_tokens.require_bcrypt()
            url, key = _source(options)
        if not schema.is_migrated():
            raise CommandError(f"Nothing was imported: {schema.not_migrated()}.")
        with _import_errors():
            report = self._import(url, key, dry_run=options["dry_run"], quiet=options["json"])
        if options["json"]:
            write_json(self.stdout, report.as_dict())
        else:
            self._print(report)
        if report.problem_count:
            count = report.problem_count
            were = "would be" if report.dry_run else "was" if count == 1 else "were"
            raise CommandError(f"{counted(count, 'item')} {were} imported only in part or not at all.")

    def _import(self, url: str, key: SourceKey, *, dry_run: bool, quiet: bool) -> Report:
        with open_source(url) as source, Bar(quiet=quiet) as bar:
            total, done = sum(records.number for records in source.records.values()), 0

            def advance(files: int) -> None:
                nonlocal done
                done += files
                bar.show("delivered files", done, total)

            return run_import(Actor.command(), source, key, dry_run=dry_run, advance=advance)

    def _print(self, report: Report) -> None:
        imported = "would be imported" if report.dry_run else "imported"
        for name in ("apps", "repositories", "watches", "files"):
            counts: Counts = getattr(report, name)
            self.stdout.write(
                f"{name:<13} {counts.taken:>11,} {imported}, {counts.here:,} already here, {counts.left:,} left out"
            )
        self._list("Remarks", report.remarks, len(report.remarks))
        self._list("Problems", report.problems, report.problem_count)
        self.stdout.write(f"\n{LOSSY_COPIES_NOTE}")

    def _list(self, title: str, items: list[Item], count: int) -> None:
        if not count:
            return
        self.stdout.write(f"\n{title} ({count:,}):")
        by_reason: dict[tuple[str, str], list[str]] = {}
        for item in items:
            by_reason.setdefault((item.what, item.reason), []).append(item.name)
        for (what, reason), names in by_reason.items():
            for name in names[:_MAX_PER_REASON]:
                self.stdout.write(printable(f"  {what} {name}: {reason}"))
            if len(names) > _MAX_PER_REASON:
                self.stdout.write(f"  and {len(names) - _MAX_PER_REASON:,} more for the same reason (--json lists all)")
        if count > len(items):
            self.stdout.write(f"  and {counted(count - len(items), 'more file')}")


def _source(options: dict[str, Any]) -> tuple[str, SourceKey]:
    """Return the URL of the existing service's database, and its key.

    Raises `CommandError` if one of them is missing, and `SourceError` if it is malformed.
    """
    url = (options["url"] or os.environ.get(URL_VARIABLE, "")).strip()
    if not url:
        raise wrong_usage(
            f"Set {URL_VARIABLE} to the URL of the existing service's database: postgres://user:password@host:5432/name"
        )
    address_of(url)
    given = secret_from_stdin("key") if options["encryption_key_stdin"] else os.environ.get(KEY_VARIABLE, "").strip()
    if not given:
        raise wrong_usage(f"Set {KEY_VARIABLE} to the ENCRYPTION_KEY of the existing service, or pass it on stdin.")
    return url, SourceKey(given)


@contextmanager
def _import_errors() -> Iterator[None]:
    """Convert what can end an import to a `CommandError` that says what to do."""
    try:
        yield
    except (imported_tokens.BcryptMissing, SourceError) as error:
        raise CommandError(str(error)) from None
    except psycopg.OperationalError as error:
        raise CommandError(
            f"The connection to the existing service's database failed: {message_of(error)} {_RESUME}"
        ) from None
    except psycopg.Error as error:
        raise CommandError(f"The existing service's database cannot be read: {message_of(error)}") from None
    except IntegrityError:
        raise CommandError(
            f"Another process wrote the same row at the same time, perhaps another import. {_RESUME}"
        ) from None
    except KeyboardInterrupt:
        raise CommandError(f"Stopped. {_RESUME}", returncode=INTERRUPTED) from None
    except CONNECTION_ERRORS as error:
        raise CommandError(f"Docora's own database failed: {cause_of(error)}. {_RESUME}") from None
