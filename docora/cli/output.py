"""Output shared by all commands: JSON, tables, questions and progress.

Only the result goes to stdout: with `--json` one object, or for lists one object per line. Errors, questions and progress go to
stderr. A command exits with status 1 and a one-sentence explanation if it cannot do its work, and with status 1 if what it
ran or checked has failed. Wrong usage exits with 2.
"""

import json
import re
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper
from django.core.serializers.json import DjangoJSONEncoder
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from docora.text import printable

FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
"""Exit codes. The last two are what a shell reports after SIGINT and SIGPIPE."""

_LINE_SECONDS = 10.0
_MAX_COLUMN = 60  # characters; a longer cell moves only the rest of its line


def add_json(parser: CommandParser, keys: str) -> None:
    """Add the option `--json`, which prints these keys."""
    parser.add_argument("--json", action="store_true", help=f"for scripts: {keys}")


def add_yes(parser: CommandParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def number_between(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return the `type` of an argument that is a whole number."""

    def number(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,18}", text) and minimum <= int(text) <= maximum:
            return int(text)
        raise ArgumentTypeError(f"must be a number from {minimum:,} to {maximum:,}")

    return number


def write_json(out: OutputWrapper, fields: Mapping[str, Any]) -> None:
    """Write one object on one line. Times are ISO 8601 in UTC with milliseconds."""
    out.write(json.dumps(fields, cls=DjangoJSONEncoder))
    out.flush()


def write_result(command: BaseCommand, options: Mapping[str, Any], fields: Mapping[str, Any], message: str) -> None:
    """Write the fields as one JSON object with `--json`, otherwise the message."""
    if options["json"]:
        write_json(command.stdout, fields)
    else:
        command.stdout.write(message)


def wrong_usage(message: str) -> CommandError:
    return CommandError(message, returncode=USAGE)


def secret_from_stdin(what: str) -> str:
    """Return the first line of stdin. An empty line is an error: the program that should write it has probably failed."""
    secret = sys.stdin.readline().strip()
    if not secret:
        raise wrong_usage(f"There is no {what} on stdin.")
    return secret


def confirm(question: str, *, yes: bool) -> None:
    """Return if `yes` is set or the user at the terminal agrees. Otherwise raise `CommandError`."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise wrong_usage(f"{question} There is no terminal to ask on. Add --yes to go ahead.")
    sys.stderr.write(f"{question} Continue? [y/N] ")  # stdout may be a file
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CommandError("Nothing was done.")


def write_table(out: OutputWrapper, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write columns on a terminal. Elsewhere write tab-separated lines without headings, for `cut` and `awk`.

    Lines may be longer than the terminal is wide, because an id that is folded in its column can't be copied.
    """
    cells = (list(map(printable, row)) for row in rows)
    if not out.isatty():
        for row in cells:
            out.write("\t".join(row))
        return
    table = [headings, *cells]
    widths = [min(max(map(cell_len, column)), _MAX_COLUMN) for column in zip(*table, strict=True)]
    for line in table:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        out.write("  ".join(padded).rstrip())


def write_banner(out: OutputWrapper, title: str, fields: Mapping[str, str], *notes: str) -> None:
    """Write what a person at the terminal needs now, set apart from the log: a title, labelled values, and notes.

    It is one write, so that no log line of another process gets in between.
    """
    width = max(map(len, fields))
    lines = [f"{label.ljust(width)}  {value}" for label, value in fields.items()]
    text = "\n".join(f"  {line}" if line else "" for line in [title, "", *lines, "", *notes])
    out.write(f"\n{text}\n")
    out.flush()


class Bar:
    """Show progress on stderr: a bar on a terminal, otherwise a line every ten seconds, or nothing if `quiet`.

    `show` may be called often; it draws at most ten times a second. Without a total it only counts.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._is_silent = quiet
        self._line = ""  # the latest, unless it was written
        self._next = 0.0
        columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
        self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._task is not None:
            self._progress.stop()
        sys.stderr.write(self._line)

    def show(self, text: str, done: int, total: int | None = None) -> None:
        if self._is_live:
            if self._task is None:
                self._task = self._progress.add_task(text, total=total)
                self._progress.start()
            self._progress.update(self._task, description=text, completed=done, total=total)
        elif not self._is_silent:
            self._line = f"{text}: {done:,}{f' of {total:,}' if total is not None else ''}\n"
            if time.monotonic() >= self._next:
                sys.stderr.write(self._line)
                self._line = ""
                self._next = time.monotonic() + _LINE_SECONDS
