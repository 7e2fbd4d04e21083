"""The real client that Docora talks to in tests, a server that keeps its port, and `wait_for`."""

import socket
import time
import weakref
from collections.abc import Callable

from deliveries_app.receiver import Answer, Notification, Receiver, Record
from deliveries_app.receiver.server import BackgroundServer

__all__ = ["Answer", "KeepsPort", "Notification", "Receiver", "Record", "wait_for"]


class KeepsPort(BackgroundServer):
    """A server whose port no outgoing connection of this machine gets while it is stopped."""

    def start(self) -> None:
        if not self.port:
            holder = socket.socket()  # bound, but it never listens: a connection is refused while the server is stopped
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((self.host, 0))
            self.port = holder.getsockname()[1]
            weakref.finalize(self, holder.close)
        super().start()


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
