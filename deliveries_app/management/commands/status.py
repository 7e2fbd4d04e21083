from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.management.lookup import app_of
from deliveries_app.models import WatchState
from deliveries_app.reports import status
from deliveries_app.reports.status import Line, StatusReport
from docora.cli.output import FAILED, add_json, number_between, write_json, write_table
from docora.conf.installation import program
from docora.text import counted, format_time


class Command(BaseCommand):
    help = "Shows what is failing, syncing and waiting, for all apps or for one; exit 1 if something is failing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", nargs="?", help="only this app")
        parser.add_argument(
            "--limit",
            type=number_between(0, 1_000_000),
            default=50,
            metavar="N",
            help="list at most N repositories (50)",
        )
        add_json(
            parser, "paused, workers, sweep_seconds, watches, failing, given_up, syncing, waiting, arriving, lines"
        )
        parser.epilog = "For scripts: status --json. To check Docora itself: doctor"

    def handle(self, *args: Any, **options: Any) -> None:
        app = app_of(options["app_id"]) if options["app_id"] is not None else None
        report = status.read_status(app, options["limit"])
        if options["json"]:
            write_json(self.stdout, report.as_dict())
        else:
            self.stdout.write(_summary(report))
            write_table(self.stdout, ["App", "Repository", "Ids", "State", "Details"], map(_row, report.lines))
        if report.counts.failing:
            raise SystemExit(FAILED)


def _summary(report: StatusReport) -> str:
    counts = report.counts
    failed = counts.by_state[WatchState.FAILED]  # not those that are also paused or on hold
    waiting = f" ({counted(failed, 'waits', 'wait')} for the next check)" if failed else ""
    lines = [
        f"Watched repositories: {counts.watches:,}; failing: {counts.failing:,}{waiting}; "
        f"syncing: {counts.syncing:,}; due: {counts.waiting:,}."
    ]
    if held := counts.waiting - counts.due:
        lines.append(f"Of those due, {counted(held, 'is', 'are')} paused or on hold.")
    if report.pause:
        lines.append(f"All syncing was paused by {report.pause.paused_by} at {format_time(report.pause.since)}.")
    if counts.importing:
        number = counted(counts.importing, "of them waits", "of them wait")
        lines.append(f"{number} for the rest of the import. If none is running, run {program()} import_docora again.")
    if hosts := report.hosts_down:
        which = f"{counted(len(hosts), 'git host is', 'git hosts are')} down: {', '.join(map(str, hosts))}"
        whose = "Its" if len(hosts) == 1 else "Their"
        respond = "it responds" if len(hosts) == 1 else "they respond"
        lines.append(f"{which}. {whose} repositories are neither checked nor synced until {respond}.")
    if report.signs is None:
        lines.append("Redis isn't responding or rejects writes. Due syncs wait in the database until it works again.")
    elif not report.signs.workers or report.signs.sweep_is_late:
        lines.append(f"A part of Docora is not running. To find out which, run {program()} doctor.")
    return "\n".join(lines)


def _row(line: Line) -> list[str]:
    watch = line.watch
    done = f"{line.percent}% sent. " if line.percent is not None else ""
    after = f" ({line.next.message}{f' {format_time(line.next.at)}' if line.next.at else ''})"
    details = done + " ".join(watch.last_error.split()) + after
    return [
        str(watch.app),
        str(watch.repository),
        f"{watch.app.app_id} {watch.repository.repository_id}",
        watch.detail.in_words,
        details,
    ]
