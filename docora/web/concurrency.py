"""Limit how many slow requests occupy threads of this process at the same time, per caller and in total."""

import threading
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from docora.web.errors import ApiError

_RETRY_AFTER_SECONDS = 5


class ConcurrencyLimit:
    """At most `per_caller` requests of each caller at once, and `total` of all callers together.

    Further requests are refused, because waiting would occupy a thread too. `what` names the requests in messages
    (plural). Each process counts only its own requests, because it protects its own threads.
    """

    def __init__(self, what: str, *, per_caller: int, total: int) -> None:
        self.per_caller = per_caller
        self.total = total
        self._what = what
        self._running: Counter[Hashable] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def slot(self, caller: Hashable) -> Iterator[None]:
        """Count a request for the duration of a block. Raises `ApiError` if there are too many."""
        with self._lock:
            if self._running[caller] >= self.per_caller:
                raise _refused(f"Too many {self._what} at once: wait until another one has ended")
            if self._running.total() >= self.total:
                wait = f"try again in {_RETRY_AFTER_SECONDS} seconds"
                raise _refused(f"Docora is busy with {self._what} of other apps: {wait}")
            self._running[caller] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running[caller] -= 1
                if self._running[caller] <= 0:
                    del self._running[caller]


def _refused(message: str) -> ApiError:
    return ApiError(message, 429, {"Retry-After": str(_RETRY_AFTER_SECONDS)})
