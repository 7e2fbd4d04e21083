"""How commands answer and ask: what goes to stdout, what a terminal shows, and when they stop."""

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

from docora.cli import output
from docora.cli.output import Bar, confirm, printable, write_table
from tests.support.commands import PROJECT

QUESTION = "from docora.cli.output import confirm; confirm('All of it goes.', yes=False); print('done')"
BAR = "from docora.cli.output import Bar\nwith Bar(quiet=True) as bar:\n    bar.show('Letters', 3, 3)"
TABLE = (
    "import sys; from django.conf import settings; settings.configure()\n"
    "from django.core.management.base import OutputWrapper; from docora.cli.output import write_table\n"
    "write_table(OutputWrapper(sys.stdout), ['Id', 'Name'], [['app_1', '[bold]x\\x1b[2J']])"
)


def at_a_terminal(code: str, typed: str = "", environment: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """What a terminal shows while Python runs this, and how it ended."""
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


def test_at_a_terminal_a_question_waits_for_yes() -> None:
    assert at_a_terminal(QUESTION, "y\n") == (0, "y\r\nAll of it goes. Continue? [y/N] done\r\n")
    for answer in ("n\n", "\n", "\x04"):
        code, shown = at_a_terminal(QUESTION, answer)
        assert (code, "Nothing was done." in shown, "done\r\n" in shown.replace("was done", "")) == (1, True, False)


def test_without_a_terminal_the_question_is_a_sentence_and_wrong_usage(monkeypatch) -> None:
    for nobody in (io.StringIO("y\n"), None):  # cron has no stdin at all
        monkeypatch.setattr("sys.stdin", nobody)
        with pytest.raises(CommandError, match=r"All of it goes\. There is no terminal .* --yes") as refused:
            confirm("All of it goes.", yes=False)
        assert refused.value.returncode == output.USAGE
    confirm("All of it goes.", yes=True)


def test_elsewhere_than_at_a_terminal_a_bar_is_a_line_now_and_then_on_stderr(capsys, monkeypatch) -> None:
    monkeypatch.setattr(output, "_LINE_SECONDS", 0.0)
    with Bar() as bar:
        for number in (1, 2, 3):
            bar.show("Letters", number, 3)
    with Bar() as bar:
        bar.show("Removed", 1000)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "Letters: 1 of 3\nLetters: 2 of 3\nLetters: 3 of 3\nRemoved: 1,000\n"


def test_the_lines_are_seldom_and_the_last_one_is_always_there(capsys) -> None:
    with Bar() as bar:
        for number in range(1, 1001):
            bar.show("Rows", number, 1000)
    assert capsys.readouterr().err == "Rows: 1 of 1,000\nRows: 1,000 of 1,000\n"


def test_a_quiet_bar_says_nothing_where_there_is_no_terminal(capsys) -> None:
    with Bar(quiet=True) as bar:
        bar.show("Files", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_at_a_terminal_the_bar_has_colours_unless_nobody_wants_them() -> None:
    colourful = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    _, shown = at_a_terminal(BAR, environment=colourful)
    assert "Letters" in shown
    assert "3/3" in shown
    assert "\x1b[38" in shown or "\x1b[32" in shown
    _, shown = at_a_terminal(BAR, environment=colourful | {"NO_COLOR": "1"})
    assert "3/3" in shown
    assert "\x1b[3" not in shown.replace("\x1b[?", "")


def test_a_table_has_headings_on_a_terminal_and_tabs_elsewhere() -> None:
    _, shown = at_a_terminal(TABLE)
    assert "Name" in shown
    assert "[bold]x\N{REPLACEMENT CHARACTER}[2J" in shown, "foreign text neither steers the terminal nor is markup"
    out = io.StringIO()
    write_table(OutputWrapper(out), ["Id", "Name"], [["app_1", "a\tb\n"], ["app_2", "é"]])
    assert out.getvalue() == "app_1\ta\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}\napp_2\té\n"
    assert printable("a\x1b[2J\x9b") == "a\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}"


def test_whoever_has_read_enough_of_the_answer_may_close_the_pipe() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(
            [sys.executable, str(PROJECT / "manage.py"), "help"],
            stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (output.BROKEN_PIPE, "")
