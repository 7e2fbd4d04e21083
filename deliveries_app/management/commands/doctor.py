import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.monitoring.doctor import FINE, LEVELS, PROBLEM, WARNING, Result, all_checks, run_checks
from docora.cli.output import FAILED, wrong_usage
from docora.text import counted


class Command(BaseCommand):
    help = "Checks for production problems and explains each; exit 1 if there is one. Warnings do not count."
    requires_system_checks = []  # the results include them

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--json", action="store_true", help="for scripts: a list of {check, level, message, advice}"
        )
        parser.add_argument(
            "--offline",
            action="store_true",
            help="skip the check of the git host, which needs the internet",
        )
        parser.add_argument("--app", metavar="APP_ID", help="also send a test ping to this app")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["offline"] and options["app"] is not None:
            raise wrong_usage("--app sends a ping to the app, so --app and --offline cannot be used together.")
        results = run_checks(all_checks(offline=options["offline"], app_id=options["app"]))
        if options["json"]:
            fields = [{"check": r.check, "level": r.level, "message": r.message, "advice": r.hint} for r in results]
            self.stdout.write(json.dumps(fields))
        else:
            self._print(results)
        if any(result.level == PROBLEM for result in results):
            raise SystemExit(FAILED)

    def _print(self, results: list[Result]) -> None:
        """Print one line for each result. Problems come last, so that they stay visible on a terminal."""
        style: dict[str, Callable[[str], str]] = {FINE: str, WARNING: self.style.WARNING, PROBLEM: self.style.ERROR}
        for result in sorted(results, key=lambda result: LEVELS.index(result.level)):
            mark = FINE if result.level == FINE else result.level.upper()
            line = f"{style[result.level](f'{mark:<7}')}  {result.check}: {result.message} {result.hint}"
            self.stdout.write(line.rstrip())
        count = Counter(result.level for result in results)
        warnings, problems = (counted(count[level], level) for level in (WARNING, PROBLEM))
        self.stdout.write(f"{count[FINE]} fine, {warnings}, {problems}.")
