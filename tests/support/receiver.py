"""The real client that Docora talks to in tests, and `wait_for`."""

import time
from collections.abc import Callable

from deliveries_app.receiver import Answer, Notification, Receiver, Record

__all__ = ["Answer", "Notification", "Receiver", "Record", "wait_for"]


def wait_for[T](predicate: Callable[[], T], timeout: float = 10, interval: float = 0.01) -> T:
    """Return the first true value of `predicate`. Raise AssertionError if there is none within `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (value := predicate()):
        assert time.monotonic() < end, f"the condition did not become true within {timeout} seconds"
        time.sleep(interval)
    return value
