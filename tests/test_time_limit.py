"""A hanging test is ended, whatever it waits for or catches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from docora.process import process_name
from tests.support import time_limit
from tests.support.processes import is_alive

PROJECT = Path(__file__).resolve().parent.parent

CONFTEST = """
from tests.support.time_limit import TimeLimit

def pytest_configure(config):
    config.pluginmanager.register(TimeLimit(config, grace=1))
"""

CATCHES_THE_ALARM = """
import time

def test_it():
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass
"""

HANGS_IN_TEARDOWN = """
import time
import pytest

@pytest.fixture
def slow():
    yield
    time.sleep(600)

def test_it(slow):
    time.sleep(600)
"""

WAITS_FOR_A_CHILD = """
import os, time
import pytest
from tests.support.processes import forked

@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield writer
    os.close(writer)
    assert os.read(reader, 1) == b""  # returns once no process holds the other end

def test_it(pipe):
    child = forked(lambda: time.sleep(600))
    open("child", "w").write(str(child))
    os.waitpid(child, 0)

def test_the_next_one():
    pass
"""


def run(folder: Path, test: str, *options: str) -> tuple[int, str]:
    """Run pytest with the plugins that the options name: importing all that are installed takes most of the time."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(test)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            os.devnull,
            "--timeout=1",
            "-p",
            "pytest_timeout",
            "-p",
            "no:cacheprovider",
            *options,
            "test_it.py",
        ],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(PROJECT),
            "DJANGO_SETTINGS_MODULE": "docora.settings",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
        check=False,
    )
    return done.returncode, done.stdout


def test_test_that_catches_the_alarm_is_killed(tmp_path: Path) -> None:
    status, said = run(tmp_path, CATCHES_THE_ALARM)
    assert status == 1
    assert "Timeout (0:00:02)!" in said
    assert "in test_it" in said


def test_test_that_hangs_in_its_teardown_is_killed(tmp_path: Path) -> None:
    status, said = run(tmp_path, HANGS_IN_TEARDOWN)
    assert status == 1
    assert "Timeout (0:00:01)!" in said
    assert "in slow" in said


def test_other_tests_of_a_killed_worker_still_run(tmp_path: Path) -> None:
    _, said = run(
        tmp_path, CATCHES_THE_ALARM + "\ndef test_the_next_one():\n    pass\n", "-p", "xdist.plugin", "-n", "1"
    )
    assert "worker 'gw0' crashed while running 'test_it.py::test_it'" in said
    assert "1 failed, 1 passed" in said


@pytest.mark.early(1)
def test_forked_child_ends_before_the_teardown(tmp_path: Path) -> None:
    status, said = run(tmp_path, WAITS_FOR_A_CHILD, "-p", "pytest_django.plugin")
    assert status == 1
    assert "Failed: Timeout (>1.0s)" in said
    assert "1 failed, 1 passed" in said
    assert not Path("/proc", (tmp_path / "child").read_text()).exists()


def test_another_process_with_the_pid_of_an_ended_child_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        for name, is_running in [(process_name(), True), (process_name(process.pid), False)]:
            monkeypatch.setattr(time_limit, "_forked", [(process.pid, name)])
            time_limit._end_forked()
            assert is_alive(process.pid) == is_running
