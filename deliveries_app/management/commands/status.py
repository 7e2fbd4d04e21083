import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.management.lookup import app_of
from deliveries_app.reports import status
from deliveries_app.reports.status import Line, Situation
from docora.cli.output import FAILED, add_json, moment, write_json, write_table
from docora.conf.installation import program
from docora.text import counted

_MOST = 1_000_000


class Command(BaseCommand):
    help = "What fails, is synced and waits, of all apps or of one; exit 1 if something fails."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", nargs="?", help="only this app")
        parser.add_argument("--limit", type=_number, default=50, metavar="N", help="list at most so many (50)")
        add_json(
            parser, "paused, workers, sweep_seconds, watches, failing, given_up, syncing, waiting, arriving, lines"
        )
        parser.epilog = "For scripts: status --json. What is wrong with Docora itself: doctor"

    def handle(self, *args: Any, **options: Any) -> None:
        found = status.read_status(app_of(options["app_id"]) if options["app_id"] else None, options["limit"])
        if options["json"]:
            write_json(self.stdout, found.as_dict())
        else:
            self.stdout.write(_words(found))
            write_table(self.stdout, ["App", "Repository", "Ids", "State", "What"], map(_row, found.lines))
        if found.counts.failing:
            raise SystemExit(FAILED)


def _number(text: str) -> int:
    number = int(text)
    if not 0 <= number <= _MOST:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to {_MOST:,}")
    return number


def _words(found: Situation) -> str:
    counts = found.counts
    told = [
        f"Watched repositories: {counts.watches:,}; failing: {counts.failing:,}, of which {counts.given_up:,} are given up until "
        f"the next rescan; syncing: {counts.syncing:,}; waiting: {counts.waiting:,}."
    ]
    if found.pause:
        told.append(f"All syncing has been paused by {found.pause.paused_by} since {moment(found.pause.since)}.")
    if counts.importing:
        number = counted(counts.importing, "of them waits", "of them wait")
        told.append(f"{number} for the rest of the import: run {program()} import_docora again.")
    if found.signs is None:
        told.append("Redis does not answer: nothing new is begun.")
    elif not found.signs.workers or found.signs.sweep_is_late:
        told.append(f"A part of Docora does not run: {program()} doctor says which.")
    return "\n".join(told)


def _row(line: Line) -> list[str]:
    watch = line.watch
    done = f"{line.percent} % sent. " if line.percent is not None else ""
    after = f" ({line.next.message}{f' {moment(line.next.at)}' if line.next.at else ''})"
    what = done + " ".join(watch.last_error.split()) + after
    return [
        str(watch.app),
        str(watch.repository),
        f"{watch.app.app_id} {watch.repository.repository_id}",
        line.state,
        what,
    ]
