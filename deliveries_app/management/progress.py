"""The common part of `resync` and `retry`: print the request, and with `--wait` show progress until it ends."""

import argparse
import math
import time
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Q

from deliveries_app.models import App, AppRepository, BulkOperation, Outcome, Result, SyncRun
from deliveries_app.progress import live
from deliveries_app.progress.live import Progress
from deliveries_app.services import current_pause
from docora.cli.output import INTERRUPTED, Bar, add_json, write_json, wrong_usage
from docora.conf.installation import program
from docora.text import counted, format_counts

_POLL_SECONDS = 0.3

type Requested = SyncRun | BulkOperation


def add_options(parser: CommandParser) -> None:
    parser.add_argument(
        "--wait", action="store_true", help="show progress until it ends; exit 1 unless everything succeeded"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="with --wait: stop waiting after this time; the sync continues",
    )
    add_json(parser, "kind, run_id or operation_id, total; with --wait also the final numbers")


def check_options(options: dict[str, Any]) -> None:
    """Raise a usage error for contradictory options. Call this before requesting anything."""
    if options["timeout"] is not None and not options["wait"]:
        raise wrong_usage("--timeout needs --wait.")


def follow(command: BaseCommand, requested: Requested, options: dict[str, Any]) -> None:
    """Print the request and, with `--wait`, its outcome. Exit with 1 unless all of it succeeded."""
    try:
        _follow(command, requested, options)
    except KeyboardInterrupt:
        command.stderr.write(_continues(requested))
        raise SystemExit(INTERRUPTED) from None


def _follow(command: BaseCommand, requested: Requested, options: dict[str, Any]) -> None:
    fields = _json_fields(requested)
    if not options["json"]:
        command.stdout.write(_message(requested))
        command.stdout.flush()
    if not options["wait"]:
        if options["json"]:
            write_json(command.stdout, fields)
        return
    progress = _wait(command, requested, options["timeout"], quiet=options["json"])
    if options["json"]:
        outcome = {"outcome": requested.outcome, "error": requested.error} if isinstance(requested, SyncRun) else {}
        held = {"held": reason} if (reason := _held_reason(requested)) else {}
        write_json(command.stdout, fields | outcome | progress.as_dict() | held)
    if reason := _held_reason(requested):
        name, key = program(), requested.operation_id
        anyway = f"To send the other repositories anyway: {name} continue_resync {key}."
        raise CommandError(f"Held. {reason} {anyway} To leave them as they are: {name} cancel {key}")
    if not progress.finished:
        raise CommandError(f"Not finished after {options['timeout']:g} seconds. {_continues(requested)}")
    if progress.succeeded < progress.total:
        raise CommandError(_problem(requested, progress))


def _wait(command: BaseCommand, requested: Requested, timeout: float | None, *, quiet: bool) -> Progress:
    """Show progress until the request ends or is held, or the timeout expires. Return the last progress."""
    for reason in _blocking_reasons(requested):
        command.stderr.write(reason)
    with Bar(quiet=quiet) as bar:
        for _ in polls(timeout):
            requested.refresh_from_db()
            progress = live.of_operation(requested) if isinstance(requested, BulkOperation) else live.of_run(requested)
            many = f"{progress.completed:,} of {progress.total:,} repositories, files"
            bar.show(many if progress.total > 1 else "Files", progress.files_done, progress.files_total or None)
            if progress.finished or _held_reason(requested):
                break
    return progress


def _held_reason(requested: Requested) -> str:
    """Return the reason if the operation is held, else an empty string."""
    return requested.held_reason if isinstance(requested, BulkOperation) and requested.is_held else ""


def _blocking_reasons(requested: Requested) -> Iterator[str]:
    """Yield the reasons why workers cannot finish the request now."""
    if current_pause():
        yield "All syncing is paused. This waits until it is resumed."
    condition = Q(runs=requested)
    if isinstance(requested, BulkOperation):
        condition = Q(pk__in=requested.runs.values("watch")) | Q(pk__in=requested.pending.values("watch"))
    watches = AppRepository.objects.filter(condition)
    for app in App.objects.filter(paused=True, watches__in=watches).distinct():
        yield f"{app} is paused. This waits until it is resumed."
    if paused := watches.exclude(paused_at=None).count():
        resumed = "it is resumed" if paused == 1 else "they are resumed"
        yield f"{counted(paused, 'repository is', 'repositories are')} paused. This waits until {resumed}."
    arriving = watches.filter(arriving=True).count()
    if arriving:
        waiting = counted(arriving, "repository waits", "repositories wait")
        yield f"{waiting} for an unfinished import. If none is running, run {program()} import_docora again."


def _problem(requested: Requested, progress: Progress) -> str:
    """Return the error message. Cancelled and superseded repositories have not succeeded either."""
    if isinstance(requested, BulkOperation):
        counts = {"failed": progress.failed, "cancelled": progress.cancelled, "superseded": progress.superseded}
        counts["not released"] = progress.unreleased or 0
        left, total = progress.total - progress.succeeded, counted(progress.total, "repository")
        return f"{left:,} of {total} did not succeed: {format_counts(counts)}. {_cause(requested, progress.failed)}".strip()
    return f"It did not succeed: {Outcome(requested.outcome).label}. {requested.error}".strip()


def _cause(operation: BulkOperation, failed: int) -> str:
    """Return the error of the repository that failed or, for several, the command that shows their errors."""
    if failed == 1:
        run = (
            operation.runs.filter(outcome__in=Outcome.with_result(Result.FAILED))
            .select_related("watch__repository")
            .first()
        )
        return f"{run.watch.repository}: {run.error}" if run and run.watch else ""
    argument = f" {operation.app.app_id}" if operation.app else ""
    return f"To see why: {program()} status{argument}" if failed else ""


def _json_fields(requested: Requested) -> dict[str, Any]:
    if isinstance(requested, BulkOperation):
        return {"kind": requested.kind, "operation_id": requested.operation_id, "total": requested.total}
    return {"kind": requested.reason, "run_id": requested.run_id, "total": 1}


def _message(requested: Requested) -> str:
    if isinstance(requested, SyncRun):
        return f"{requested.reason_label.capitalize()} queued, {requested.run_id}"
    return f"Bulk {requested.get_kind_display()} started, {requested.operation_id}, {counted(requested.total, 'repository')}"


def _continues(requested: Requested) -> str:
    if isinstance(requested, BulkOperation):
        ids = requested.operation_id
    else:
        ids = f"{requested.watch.app.app_id} {requested.watch.repository.repository_id}" if requested.watch else ""
    return f"The sync continues. To cancel it: {program()} cancel {ids}"


def polls(timeout: float | None) -> Iterator[None]:
    """Yield now, and then every `_POLL_SECONDS` until the timeout expires, if there is one."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    yield
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        yield


def seconds(text: str) -> float:
    """Parse the value of `--timeout`."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds")
    return value
