"""A time limit that no test can escape.

pytest-timeout sends one alarm, which raises an exception in the main thread. A test may catch it, and whatever runs
afterwards has no limit: the teardown of a failed test could wait forever, for example for row locks of a child that the
test forked. So each phase of a test also has a limit that ends the process. Under pytest-xdist the test then fails, and
another worker runs the remaining tests.
"""

import faulthandler
import os
import signal
from collections.abc import Generator

import pytest

from docora.process import process_name

_forked: list[tuple[int, str]] = []


def kill_after_test(child: int) -> None:
    """Kill this forked child process if it is still running when the test is over."""
    _forked.append((child, process_name(child)))


def _end_forked() -> None:
    while _forked:
        child, name = _forked.pop()
        try:
            # Another child may have the pid by now, for example a server that was restarted.
            if process_name(child) == name and os.waitpid(child, os.WNOHANG) == (0, 0):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        except ChildProcessError:
            pass  # the test has waited for it


class TimeLimit:
    """A pytest plugin. `grace` is how many seconds a phase may take beyond the timeout of its test."""

    def __init__(self, config: pytest.Config, grace: float = 60) -> None:
        self._grace = grace
        self._default = float(config.getoption("timeout") or 0)
        self._stderr = os.dup(2)  # during a test pytest captures what is written to 2

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._within(self._timeout(item)))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._within(self._timeout(item)))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        _end_forked()
        return (yield from self._within(0))

    def _timeout(self, item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker else self._default

    def _within(self, seconds: float) -> Generator[None, object, object]:
        faulthandler.dump_traceback_later(seconds + self._grace, exit=True, file=self._stderr)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
