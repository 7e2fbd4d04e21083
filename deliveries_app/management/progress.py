"""What `resync` and `retry` have in common: saying what was asked for, and waiting for its end."""

import argparse
import time
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deliveries_app.models import App, AppRepository, BulkOperation, Outcome, SyncRun
from deliveries_app.progress import live
from deliveries_app.progress.live import Progress
from deliveries_app.services import current_pause
from docora.cli.output import INTERRUPTED, Bar, add_json, write_json, wrong_usage
from docora.conf.installation import program
from docora.text import counted

_POLL_SECONDS = 0.3

type Asked = SyncRun | BulkOperation


def add_options(parser: CommandParser) -> None:
    parser.add_argument("--wait", action="store_true", help="show progress to the end; exit 1 if not all succeeded")
    parser.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="with --wait: no longer than this; it goes on by itself"
    )
    add_json(parser, "kind, run_id or operation_id, total; with --wait the numbers of its end")


def check_options(options: dict[str, Any]) -> None:
    """Before anything is asked for."""
    if options["timeout"] is not None and not options["wait"]:
        raise wrong_usage("--timeout goes with --wait.")


def follow(command: BaseCommand, asked: Asked, options: dict[str, Any]) -> None:
    """Say what was asked for and, with `--wait`, how it ended: exit 1 unless all of it succeeded."""
    try:
        _follow(command, asked, options)
    except KeyboardInterrupt:
        command.stderr.write(_goes_on(asked))
        raise SystemExit(INTERRUPTED) from None


def _follow(command: BaseCommand, asked: Asked, options: dict[str, Any]) -> None:
    facts = _facts(asked)
    if not options["json"]:
        command.stdout.write(_words(asked))
        command.stdout.flush()
    if not options["wait"]:
        if options["json"]:
            write_json(command.stdout, facts)
        return
    progress = _wait(command, asked, options["timeout"], quiet=options["json"])
    if options["json"]:
        outcome = {"outcome": asked.outcome, "error": asked.error} if isinstance(asked, SyncRun) else {}
        write_json(command.stdout, facts | outcome | progress.as_dict())
    if not progress.finished:
        raise CommandError(f"Not finished after {options['timeout']:g} seconds. {_goes_on(asked)}")
    if progress.succeeded < progress.total:
        raise CommandError(_problem(asked, progress))


def _wait(command: BaseCommand, asked: Asked, timeout: float | None, *, quiet: bool) -> Progress:
    """The progress at its end, or when the time is over."""
    deadline = time.monotonic() + timeout if timeout is not None else None
    for words in _held_up(asked):
        command.stderr.write(words)
    with Bar(quiet=quiet) as bar:
        while True:
            progress = _look(asked)
            many = f"{progress.completed:,} of {progress.total:,} repositories, files"
            bar.show(many if progress.total > 1 else "Files", progress.files_done, progress.files_total or None)
            if progress.finished or (deadline is not None and time.monotonic() >= deadline):
                return progress
            time.sleep(_POLL_SECONDS)


def _held_up(asked: Asked) -> Iterator[str]:
    """What must happen before this can end, beside that workers are at it."""
    if current_pause():
        yield "All syncing is paused: this waits until it is resumed."
    its = {"runs": asked} if isinstance(asked, SyncRun) else {"runs__operation": asked}
    watches = AppRepository.objects.filter(**its)
    for app in App.objects.filter(paused=True, watches__in=watches).distinct():
        yield f"{app} is paused: this waits until it is resumed."
    arriving = watches.filter(arriving=True).count()
    if arriving:
        yield f"{counted(arriving, 'repository waits', 'repositories wait')} for the rest of the import: run {program()} import_docora again."


def _look(asked: Asked) -> Progress:
    asked.refresh_from_db()
    return live.of_operation(asked) if isinstance(asked, BulkOperation) else live.of_runs([asked])[asked.pk]


def _problem(asked: Asked, progress: Progress) -> str:
    """What somebody cancelled, or a later request took over, did not succeed either: its files may not be there."""
    if isinstance(asked, BulkOperation):
        endings = {"failed": progress.failed, "cancelled": progress.cancelled, "taken over": progress.superseded}
        told = ", ".join(f"{count:,} {words}" for words, count in endings.items() if count)
        return f"{progress.total - progress.succeeded:,} of {progress.total:,} repositories did not succeed: {told}."
    return f"It did not succeed: {Outcome(asked.outcome).label}. {asked.error}".strip()


def _facts(asked: Asked) -> dict[str, Any]:
    if isinstance(asked, BulkOperation):
        return {"kind": asked.kind, "operation_id": asked.operation_id, "total": asked.total}
    return {"kind": asked.reason, "run_id": asked.run_id, "total": 1}


def _words(asked: Asked) -> str:
    if isinstance(asked, SyncRun):
        return f"{asked.get_reason_display().capitalize()} queued, {asked.run_id}"
    return f"Bulk {asked.get_kind_display()} started, {asked.operation_id}, {counted(asked.total, 'repository', 'repositories')}"


def _goes_on(asked: Asked) -> str:
    if isinstance(asked, BulkOperation):
        ids = asked.operation_id
    else:
        ids = f"{asked.watch.app.app_id} {asked.watch.repository.repository_id}" if asked.watch else ""
    return f"It goes on by itself. To cancel it: {program()} cancel {ids}"


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds")
    return seconds
