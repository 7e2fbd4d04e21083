"""Names of processes: whether the process that had a name has certainly ended. How processes are limited and ended, and locks."""

import contextlib
import os
import resource
import select
import signal
import subprocess
from pathlib import Path

import pytest

from docora.file_locks import hold
from docora.process import end, has_ended, process_name, with_limits
from tests.support.processes import forked, reap
from tests.support.receiver import wait_for


def test_process_that_runs_has_not_ended() -> None:
    child = forked(signal.pause)
    assert not has_ended(process_name())
    assert not has_ended(process_name(child))
    os.kill(child, signal.SIGSTOP)
    assert not has_ended(process_name(child))


def test_process_that_was_killed_has_ended() -> None:
    child = forked(signal.pause)
    name = process_name(child)
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: has_ended(name))  # a zombie until its parent reaps it
    assert Path(f"/proc/{child}").exists()
    os.waitpid(child, 0)
    assert has_ended(name)


def test_pid_that_another_process_got_is_not_the_same_process() -> None:
    place, pid, start = process_name().rsplit(" ", 2)
    assert has_ended(f"{place} {pid} {int(start) - 1}")


def test_processes_of_another_machine_are_not_known_to_have_ended() -> None:
    """On another machine, after another boot, or in another PID namespace."""
    parts = process_name().split(" ")
    gone = [*parts[:-1], "1"]
    assert has_ended(" ".join(gone))
    for number in range(3):
        assert not has_ended(" ".join([*gone[:number], "other", *gone[number + 1 :]]))
    assert not has_ended("")
    assert not has_ended("worker-1")
    assert not has_ended("two words")


def test_unknown_pid_has_no_name() -> None:
    assert process_name(2**22 + 1) == ""


def test_limit_of_a_program_is_not_above_that_of_this_process() -> None:
    """Only root could raise it. Other users' programs would not start."""

    def check() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        limits = {"fsize": 2000, "data": 3000}
        assert with_limits(["git", "fetch"], limits) == [
            "prlimit", "--fsize=1000:1000", "--data=3000:3000", "--", "git", "fetch"
        ]  # fmt: skip

    assert reap(forked(check)) == 0


def test_child_that_does_not_end_is_killed_with_its_children() -> None:
    deaf = ["/bin/sh", "-c", "trap '' TERM; echo ready; sleep 60 & wait"]
    with subprocess.Popen(deaf, stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        end([child], 0.1)
        assert child.returncode == -signal.SIGKILL
        assert select.select([child.stdout], [], [], 10)[0]  # its `sleep` has ended, too


@pytest.mark.parametrize("is_created_again", [False, True])
def test_lock_whose_file_is_deleted_by_its_holder(tmp_path: Path, is_created_again: bool) -> None:
    """The process that waits for it has opened the old file, and others would open the new one."""
    path = tmp_path / "lock"
    holder = contextlib.ExitStack()
    holder.enter_context(hold(path, shared=False))

    def delete() -> None:
        path.unlink()
        if is_created_again:
            path.touch(0o600)
        holder.close()

    with hold(path, shared=False, tick=delete) as descriptor:
        assert path.samefile(f"/proc/self/fd/{descriptor}")
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(BlockingIOError), hold(path, shared=True, wait=False):
            pass
    with hold(path, shared=True), hold(path, shared=True, wait=False):
        pass
