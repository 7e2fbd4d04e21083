"""Reading git's NUL-separated output: complete records, bounded in size and time."""

import subprocess
import tempfile

import pytest

from repositories_app.git import process as git
from repositories_app.git.exceptions import Cause, GitError
from repositories_app.mirror.tree import records


def process(script: str) -> subprocess.Popen[bytes]:
    """Start a program in git's place that can hang."""
    started = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    started.errors = tempfile.TemporaryFile()  # type: ignore[attr-defined]  # noqa: SIM115
    return started


def test_records_split_across_reads_are_joined() -> None:
    program = process(r"printf 'one\0tw'; sleep 0.2; printf 'o\0\0three\0'")
    assert list(records(program, 1000)) == [b"one", b"two", b"", b"three"]
    assert program.returncode == 0


def test_silent_program_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git, "LOCAL_TIMEOUT", 0.5)
    program = process(r"printf 'one\0'; sleep 60")
    read = records(program, 1000)
    assert next(read) == b"one"
    with pytest.raises(GitError, match="printed nothing") as caught:
        next(read)
    assert caught.value.cause is Cause.TIMEOUT
    assert program.returncode is not None


def test_program_with_endless_output_is_killed() -> None:
    program = process("yes")
    with pytest.raises(GitError, match="list of files exceeds"):
        list(records(program, 1_000_000))
    assert program.returncode is not None


def test_program_ends_when_its_reader_stops_early() -> None:
    program = process(r"printf 'one\0'; sleep 60")
    read = records(program, 1000)
    assert next(read) == b"one"
    read.close()
    assert program.returncode is not None
