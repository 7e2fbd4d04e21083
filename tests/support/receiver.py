"""The real client that Docora talks to in tests, and `wait_for`."""

import time
from collections.abc import Callable

from deliveries_app.receiver import Answer, Notification, Receiver, Record

__all__ = ["Answer", "Notification", "Receiver", "Record", "wait_for"]


def wait_for[T](predicate: Callable[[], T], timeout: float = 10, interval: float = 0.01) -> T:
    """Return the first true value of `predicate`. Raise AssertionError if there is none within `timeout` seconds.

    It is called every `interval` seconds. A short interval grows to 0.05 during the first second, because calls such as
    a query cost more than the test gains from a quick answer.
    """
    began = time.monotonic()
    while not (value := predicate()):
        waited = time.monotonic() - began
        assert waited < timeout, f"the condition did not become true within {timeout} seconds"
        time.sleep(max(interval, min(waited / 20, 0.05)))
    return value
