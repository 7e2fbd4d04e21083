"""`manage.py import_docora`: moving over from the existing service."""

import os
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import IntegrityError

from deliveries_app import importing
from deliveries_app.actors import Actor
from deliveries_app.importing.report import LOSSY, Item, Report, Tally
from deliveries_app.importing.source import words_of
from deliveries_app.services import imported_tokens
from docora.cli.output import INTERRUPTED, Bar, add_json, secret_from_stdin, write_json, wrong_usage
from docora.db import schema
from docora.db.connection import LOST
from docora.text import clean_text

URL_VARIABLE, KEY_VARIABLE = "SOURCE_DATABASE_URL", "SOURCE_ENCRYPTION_KEY"
_AGAIN = "Nothing is lost: run it again, and it goes on."


class Command(BaseCommand):
    help = (
        "Takes apps, watches, secrets and delivery records over from the existing service's database, which is only read. "
        f"Its address is expected in {URL_VARIABLE}, its ENCRYPTION_KEY in {KEY_VARIABLE}. May be stopped and repeated at any "
        "time; what is here already is left alone, and what was removed here since stays removed. Exit 1 if something could "
        "not be taken."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "url",
            nargs="?",
            help=f"postgres://… of the existing service, in place of {URL_VARIABLE}; every user of the machine can see it here",
        )
        parser.add_argument("--encryption-key-stdin", action="store_true", help="read its ENCRYPTION_KEY from stdin")
        parser.add_argument("--dry-run", action="store_true", help="say what would be taken, and write nothing")
        add_json(parser, "dry_run, apps, repositories, watches, files (each taken, here, left), problems, remarks")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            imported_tokens.require_bcrypt()
        except imported_tokens.BcryptMissing as error:
            raise CommandError(str(error)) from None
        url = (options["url"] or os.environ.get(URL_VARIABLE, "")).strip()
        if not url:
            raise wrong_usage(
                f"Give the address of the existing service's database in {URL_VARIABLE}: postgres://user:password@host:5432/name"
            )
        stdin = options["encryption_key_stdin"]
        given = secret_from_stdin("key") if stdin else os.environ.get(KEY_VARIABLE, "").strip()
        if not given:
            raise wrong_usage(f"Give the ENCRYPTION_KEY of the existing service in {KEY_VARIABLE}, or on stdin.")
        if not schema.is_migrated():
            raise CommandError(f"Nothing was imported: {schema.not_migrated()}.")
        try:
            key = importing.SourceKey(given)
            report = self._import(url, key, dry_run=options["dry_run"], quiet=options["json"])
        except (importing.WrongKey, importing.SourceError) as error:
            raise CommandError(str(error)) from None
        except psycopg.Error as error:
            raise CommandError(f"The existing service's database stopped: {words_of(error)} {_AGAIN}") from None
        except IntegrityError:
            raise CommandError(
                f"Somebody else wrote the same at this moment, another import perhaps. {_AGAIN}"
            ) from None
        except KeyboardInterrupt:
            raise CommandError(f"Stopped. {_AGAIN}", returncode=INTERRUPTED) from None
        except LOST as error:
            words = clean_text(" ".join(str(error).split()), 300)
            raise CommandError(f"Docora's own database failed: {words} {_AGAIN}") from None
        if options["json"]:
            write_json(self.stdout, report.as_dict())
        else:
            self._tell(report)
        if report.problem_count:
            count = report.problem_count
            raise CommandError(f"{count:,} {'thing' if count == 1 else 'things'} could not be taken, or not whole.")

    def _import(self, url: str, key: importing.SourceKey, *, dry_run: bool, quiet: bool) -> Report:
        with importing.open_source(url) as source, Bar(quiet=quiet) as bar:
            total, done = sum(source.file_counts().values()), 0

            def advance(files: int) -> None:
                nonlocal done
                done += files
                bar.show("delivered files", done, total)

            return importing.move_over(Actor.command(), source, key, dry_run=dry_run, advance=advance)

    def _tell(self, report: Report) -> None:
        taken = "would be taken" if report.dry_run else "taken"
        for name in ("apps", "repositories", "watches", "files"):
            tally: Tally = getattr(report, name)
            self.stdout.write(
                f"{name:<13} {tally.taken:>11,} {taken}, {tally.here:,} here already, {tally.left:,} left out"
            )
        self._list("Worth knowing", report.remarks, report.remark_count)
        self._list("Could not be taken", report.problems, report.problem_count)
        self.stdout.write(f"\n{LOSSY}")

    def _list(self, title: str, items: list[Item], count: int) -> None:
        if not count:
            return
        self.stdout.write(f"\n{title} ({count:,}):")
        for item in items:
            self.stdout.write(f"  {item.what} {item.name}: {item.reason}")
        if count > len(items):
            self.stdout.write(f"  and {count - len(items):,} more")
