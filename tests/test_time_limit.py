"""A hanging test is ended, whatever it waits for or catches."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

CONFTEST = """
from tests.support.time_limit import TimeLimit

def pytest_configure(config):
    config.pluginmanager.register(TimeLimit(config, grace=1))
"""

CANNOT_BE_ENDED_BY_THE_ALARM = """
import time
import pytest

def test_catches_the_alarm():
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass

@pytest.fixture
def slow():
    yield
    time.sleep(600)

def test_hangs_in_its_teardown(slow):
    time.sleep(600)

def test_the_next_one():
    pass
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


def test_worker_of_a_test_that_the_alarm_does_not_end_is_killed_and_replaced(tmp_path: Path) -> None:
    _, said = run(tmp_path, CANNOT_BE_ENDED_BY_THE_ALARM, "-p", "xdist.plugin", "-n", "1")
    killed = said.split("Timeout (0:00:0")[1:]
    assert [(part[:3], "in test_catches_the_alarm" in part, "in slow" in part) for part in killed] == [
        ("2)!", True, False),
        ("1)!", False, True),
    ]
    assert "worker 'gw0' crashed while running 'test_it.py::test_catches_the_alarm'" in said
    assert "worker 'gw1' crashed while running 'test_it.py::test_hangs_in_its_teardown'" in said
    assert "3 failed, 1 passed" in said  # the second one at the alarm and in its teardown


def test_forked_child_ends_before_the_teardown(tmp_path: Path) -> None:
    status, said = run(tmp_path, WAITS_FOR_A_CHILD, "-p", "pytest_django.plugin")
    assert status == 1
    assert "Failed: Timeout (>1.0s)" in said
    assert "1 failed, 1 passed" in said
    assert not Path("/proc", (tmp_path / "child").read_text()).exists()
