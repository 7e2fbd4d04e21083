"""What tests need beside `deliveries_app.receiver`, the real client that they let Docora talk to."""

import time
from collections.abc import Callable

from deliveries_app.receiver import Answer, Notification, Receiver, Record

__all__ = ["Answer", "Notification", "Receiver", "Record", "wait_for"]


def wait_for[T](predicate: Callable[[], T], timeout: float = 10, interval: float = 0.01) -> T:
    """Return the first true value of `predicate`; raises AssertionError if there is none within `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (value := predicate()):
        assert time.monotonic() < end, f"nothing came of it within {timeout} seconds"
        time.sleep(interval)
    return value
