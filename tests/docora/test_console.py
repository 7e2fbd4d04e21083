"""Output and questions of commands: on stdout, in a terminal, in a pipe."""

import io
import os
import pty
import select
import subprocess
import sys
from collections.abc import Mapping

import pytest
from django.core.management import CommandError
from django.core.management.base import OutputWrapper
from rich.cells import cell_len

from docora.cli import output
from docora.cli.output import Bar, confirm, write_table
from docora.text import printable
from tests.support.commands import PROJECT

QUESTION = "from docora.cli.output import confirm; confirm('All of it goes.', yes=False); print('done')"
BAR = "from docora.cli.output import Bar\nwith Bar(quiet=True) as bar:\n    bar.show('Letters', 3, 3)"
TABLE = (
    "import sys; from django.conf import settings; settings.configure()\n"
    "from django.core.management.base import OutputWrapper; from docora.cli.output import write_table\n"
    "write_table(OutputWrapper(sys.stdout), ['Id', 'Name'], [['app_1', '[bold]x\\x1b[2J']])"
)


def at_a_terminal(code: str, typed: str = "", environment: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """Run this code in a terminal. Return the exit status and what the terminal shows."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, env={**environment, "TERM": "xterm"},
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, typed.encode())
    shown = b""
    try:
        while select.select([ours], [], [], 30)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        return process.wait(10), shown.decode()
    finally:
        process.kill()
        os.close(ours)


def test_question_on_a_terminal_waits_for_yes() -> None:
    assert at_a_terminal(QUESTION, "y\n") == (0, "y\r\nAll of it goes. Continue? [y/N] done\r\n")
    for answer in ("n\n", "\n", "\x04"):
        code, shown = at_a_terminal(QUESTION, answer)
        assert (code, "Nothing was done." in shown, "done\r\n" in shown.replace("was done", "")) == (1, True, False)


def test_question_without_a_terminal_is_a_usage_error(monkeypatch) -> None:
    for stdin in (io.StringIO("y\n"), None):  # cron has no stdin at all
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(CommandError, match=r"All of it goes\. There is no terminal .* --yes") as refused:
            confirm("All of it goes.", yes=False)
        assert refused.value.returncode == output.USAGE
    confirm("All of it goes.", yes=True)


def test_bar_without_a_terminal_prints_lines_to_stderr(capsys, monkeypatch) -> None:
    monkeypatch.setattr(output, "_LINE_SECONDS", 0.0)
    with Bar() as bar:
        for number in (1, 2, 3):
            bar.show("Letters", number, 3)
    with Bar() as bar:
        bar.show("Removed", 1000)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "Letters: 1 of 3\nLetters: 2 of 3\nLetters: 3 of 3\nRemoved: 1,000\n"


def test_lines_are_rare_and_the_last_one_is_printed(capsys) -> None:
    with Bar() as bar:
        for number in range(1, 1001):
            bar.show("Rows", number, 1000)
    assert capsys.readouterr().err == "Rows: 1 of 1,000\nRows: 1,000 of 1,000\n"


def test_quiet_bar_without_a_terminal_prints_nothing(capsys) -> None:
    with Bar(quiet=True) as bar:
        bar.show("Files", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_bar_on_a_terminal_respects_no_color() -> None:
    colourful = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    _, shown = at_a_terminal(BAR, environment=colourful)
    assert "Letters" in shown
    assert "3/3" in shown
    assert "\x1b[38" in shown or "\x1b[32" in shown
    _, shown = at_a_terminal(BAR, environment=colourful | {"NO_COLOR": "1"})
    assert "3/3" in shown
    assert "\x1b[3" not in shown.replace("\x1b[?", "")


def test_table_on_a_terminal_and_in_a_pipe() -> None:
    _, shown = at_a_terminal(TABLE)
    assert "Name" in shown
    assert "[bold]x\N{REPLACEMENT CHARACTER}[2J" in shown, "foreign text controls the terminal or is read as markup"
    out = io.StringIO()
    write_table(OutputWrapper(out), ["Id", "Name"], [["app_1", "a\tb\n"], ["app_2", "é"]])
    assert out.getvalue() == "app_1\ta\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}\napp_2\té\n"
    assert printable("a\x1b[2J\x9b") == "a\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}"


def test_ids_in_a_table_can_be_copied_from_a_narrow_terminal() -> None:
    app, watched, url = (
        "app_0123456789abcdef01234567",
        "repo_0123456789abcdef01234567",
        "https://\u6771.example/" + "x" * 99,
    )
    rows = [[app, "\u6771\u4eac", watched, "fine"], [app, url, watched, "fine"]]
    code = TABLE.partition("write_table(Out")[0] + f"write_table(OutputWrapper(sys.stdout), list('ABCD'), {rows})"
    _, shown = at_a_terminal(code, environment=os.environ | {"COLUMNS": "40"})
    heading, *lines = shown.split("\r\n")
    assert [line.split() for line in lines] == [*rows, []]
    starts = [cell_len(line.partition(mark)[0]) for line, mark in ((heading, "C"), (lines[0], "repo_"))]
    assert starts == [len(app) + 2 + 60 + 2] * 2


def test_reader_may_close_the_pipe_early() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(
            [sys.executable, str(PROJECT / "manage.py"), "help"],
            stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (output.BROKEN_PIPE, "")


def test_full_disk_is_a_clear_error() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, str(PROJECT / "manage.py"), "help"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (output.FAILED, "The disk is full: the output cannot be written.\n")


def test_characters_that_the_terminal_lacks_are_escaped(instance_environment: dict[str, str]) -> None:
    environment = instance_environment | {"PYTHONIOENCODING": "latin-1"}
    app = ["B\xfcro \u6771\u4eac", "https://portal.example/hooks", "ops@portal.example"]
    done = subprocess.run(
        [sys.executable, str(PROJECT / "manage.py"), "onboard_app", *app],
        env=environment, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"B\xfcro \\u6771\\u4eac is registered.")
