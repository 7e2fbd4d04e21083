"""Limit how many requests of one caller occupy threads of this process at the same time."""

import threading
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from docora.web.errors import ApiError


class PerCaller:
    """At most `most` requests of each caller at once. The others get 429, because waiting would occupy a thread too.

    `what` names such a request in the message. Each process counts its own, since it protects its own threads.
    """

    def __init__(self, most: int, what: str, retry_after: int) -> None:
        self._most = most
        self._what = what
        self._retry_after = retry_after
        self._running: Counter[Hashable] = Counter()
        self._lock = threading.Lock()

    def take(self, caller: Hashable) -> None:
        """Count one more request. Raises `ApiError` (429) if there are too many. Call `give_back` when it ends."""
        with self._lock:
            if self._running[caller] < self._most:
                self._running[caller] += 1
                return
        raise ApiError(
            f"Too many {self._what} at once: wait until another one has ended",
            429,
            {"Retry-After": str(self._retry_after)},
        )

    def give_back(self, caller: Hashable) -> None:
        with self._lock:
            self._running[caller] -= 1
            if self._running[caller] <= 0:
                del self._running[caller]

    @contextmanager
    def one_more(self, caller: Hashable) -> Iterator[None]:
        """Count a request for the duration of a block."""
        self.take(caller)
        try:
            yield
        finally:
            self.give_back(caller)
