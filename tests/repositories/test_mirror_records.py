"""What git prints between NULs: whole, bounded, and never waited for without end."""

import subprocess
import tempfile

import pytest

from repositories_app.git.exceptions import Cause, GitError
from repositories_app.mirror.tree import records


def process(script: str) -> subprocess.Popen[bytes]:
    """A program in git's place, which can be made to hang."""
    started = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    started.errors = tempfile.TemporaryFile()  # type: ignore[attr-defined]  # noqa: SIM115
    return started


def test_records_come_whole_however_they_are_cut_on_their_way() -> None:
    program = process(r"printf 'one\0tw'; sleep 0.2; printf 'o\0\0three\0'")
    assert list(records(program, 1000)) == [b"one", b"two", b"", b"three"]
    assert program.returncode == 0


def test_a_program_that_falls_silent_is_left_and_ended() -> None:
    program = process(r"printf 'one\0'; sleep 60")
    read = records(program, 1000, patience=0.5)
    assert next(read) == b"one"
    with pytest.raises(GitError, match="printed nothing") as caught:
        next(read)
    assert caught.value.cause is Cause.TIMEOUT
    assert program.returncode is not None


def test_a_list_that_does_not_end_is_left_and_its_program_ended() -> None:
    program = process("yes")
    with pytest.raises(GitError, match="list of files exceeds"):
        list(records(program, 1_000_000))
    assert program.returncode is not None


def test_whoever_has_seen_enough_ends_the_program() -> None:
    program = process(r"printf 'one\0'; sleep 60")
    read = records(program, 1000)
    assert next(read) == b"one"
    read.close()
    assert program.returncode is not None
