import time
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deliveries_app import tallies
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, SyncRun
from deliveries_app.services import resync_by_app, resync_single
from deliveries_app.services.impact import impact_of
from deliveries_app.tallies import Tally
from docora.text import format_bytes

_POLL_SECONDS = 0.3


class Command(BaseCommand):
    help = "Forces a re-sync of one repository of an app, or of all of them: ALL files are sent again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id")
        parser.add_argument("repository_id", nargs="?")
        parser.add_argument("--wait", action="store_true", help="show progress to the end; exit 1 if anything failed")
        parser.add_argument("--yes", action="store_true", help="do not ask")

    def handle(self, *args: Any, **options: Any) -> None:
        pairs = AppRepository.objects.alive().filter(app__app_id=options["app_id"])
        if options["repository_id"]:
            pairs = pairs.filter(repository__repository_id=options["repository_id"])
        found = list(pairs.select_related("app", "repository")[:1])
        if not found:
            raise CommandError("Nothing is watched under these ids.")
        impact = impact_of(pairs)
        question = (
            f"This will re-sync {impact.pairs} of the app's repositories and send ALL {impact.files:,} files "
            f"({format_bytes(impact.size)}) again. Continue? [y/N] "
        )
        if not options["yes"] and input(question).strip().lower() not in {"y", "yes"}:
            raise CommandError("Nothing was done.")
        if options["repository_id"]:
            made = resync_single(Actor.command(), found[0])
            self.stdout.write(f"Re-sync queued, {made.run.run_id}")
            watch, verdict = _watch_run(made.run)
        else:
            operation = resync_by_app(Actor.command(), found[0].app)
            self.stdout.write(f"Bulk re-sync started, {operation.operation_id}, {operation.total} repositories")
            watch, verdict = _watch_operation(operation)
        if options["wait"]:
            self._wait(watch)
            failed = verdict()
            if failed:
                raise CommandError(failed)

    def _wait(self, look: Callable[[], Tally]) -> None:
        columns = [TextColumn("{task.fields[words]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        with Progress(*columns, console=Console()) as bar:
            task = bar.add_task("", total=None, words="waiting")
            while True:
                tally = look()
                words = f"{tally.completed} of {tally.total} repositories" if tally.total > 1 else "files"
                bar.update(task, total=tally.files_total or None, completed=tally.files_done, words=words)
                if tally.finished:
                    return
                time.sleep(_POLL_SECONDS)


def _watch_run(run: SyncRun) -> tuple[Callable[[], Tally], Callable[[], str]]:
    def look() -> Tally:
        run.refresh_from_db()
        return tallies.of_runs([run])[run.pk]

    def verdict() -> str:
        return "" if run.outcome == "succeeded" else f"The re-sync {run.get_outcome_display()}. {run.error}".strip()

    return look, verdict


def _watch_operation(operation: BulkOperation) -> tuple[Callable[[], Tally], Callable[[], str]]:
    def look() -> Tally:
        operation.refresh_from_db()
        return tallies.of_operation(operation)

    def verdict() -> str:
        tally = look()
        missing = tally.total - tally.succeeded
        return f"{missing} of {tally.total} repositories did not succeed." if missing else ""

    return look, verdict
