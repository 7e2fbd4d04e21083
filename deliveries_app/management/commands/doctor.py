"""`manage.py doctor`: what would bite in production, in words; exit 1 if something does."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.monitoring.doctor import Level, Report, examinations, examine
from docora.cli.output import FAILED, wrong_usage

_ORDER = list(Level)
_MARKS = {Level.FINE: "fine", Level.WARNING: "WARNING", Level.PROBLEM: "PROBLEM"}


class Command(BaseCommand):
    help = "Says in words what would bite in production, and ends with 1 if something does. Warnings do not count."
    requires_system_checks = []  # they are among the findings

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="for scripts: a list of {check, level, words, advice}")
        parser.add_argument("--offline", action="store_true", help="without what leaves this machine: the git host")
        parser.add_argument("--app", metavar="APP_ID", default="", help="also send the test ping to this app")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["offline"] and options["app"]:
            raise wrong_usage("A ping of an app leaves the machine: --app and --offline exclude each other.")
        reports = examine(examinations(offline=options["offline"], app_id=options["app"]))
        if options["json"]:
            self.stdout.write(json.dumps([asdict(report) for report in reports]))
        else:
            self._tell(reports)
        if any(report.level is Level.PROBLEM for report in reports):
            raise SystemExit(FAILED)

    def _tell(self, reports: list[Report]) -> None:
        """One line for each, problems last, where a terminal shows them."""
        style = {Level.WARNING: self.style.WARNING, Level.PROBLEM: self.style.ERROR}
        for report in sorted(reports, key=lambda report: _ORDER.index(report.level)):
            mark = f"{_MARKS[report.level]:<7}"
            colour = style.get(report.level)
            self.stdout.write(
                f"{colour(mark) if colour else mark}  {report.check}: {report.words} {report.advice}".rstrip()
            )
        count = Counter(report.level for report in reports)
        self.stdout.write(
            f"{count[Level.FINE]} fine, {_number(count[Level.WARNING], 'warning')}, "
            f"{_number(count[Level.PROBLEM], 'problem')}."
        )


def _number(count: int, what: str) -> str:
    return f"{count} {what if count == 1 else f'{what}s'}"
