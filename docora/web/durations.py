"""Measure how long this web process takes for its requests, and add that to the counters in Redis (`docora.redis.counters`).

Requests are counted in memory. A thread adds the counts to Redis every few seconds, so that no request waits for Redis. A
scrape adds them before it reads. The labels are bounded: known methods, the patterns of the URLconf, and the first digit of
the status.
"""

import atexit
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from docora.redis import counters

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets, in seconds."""
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_FIELD = "http"
_MICROSECONDS = "us"
_FLUSH_SECONDS = 5.0

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def add(method: str, route: str, status: int, seconds: float) -> None:
    """Count one request. `route` must be one of a few values, never a path."""
    known = method if method in _METHODS else "other"
    name = f"{_FIELD}:{known}:{status // 100}xx"
    with _lock:
        _counts[f"{name}:{bisect_left(BOUNDS, seconds)}:{route}"] += 1
        _counts[f"{name}:{_MICROSECONDS}:{route}"] += round(seconds * 1_000_000)


def flush() -> None:
    """Add to the counters in Redis what was counted since the last call."""
    global _counts
    with _lock:
        counted, _counts = _counts, Counter()
    counters.add(counted)


def flush_in_background() -> None:
    """Start a thread that calls `flush` every few seconds and when the process ends."""
    threading.Thread(target=_flush_for_ever, name="durations", daemon=True).start()
    atexit.register(flush)


def _flush_for_ever() -> None:
    while True:
        time.sleep(_FLUSH_SECONDS)
        flush()


@dataclass
class Durations:
    """The requests of one method, route and class of status: how many fall into each bucket (the last is above all bounds)."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    microseconds: int = 0


def read(counts: Mapping[str, int]) -> Iterator[tuple[tuple[str, str, str], Durations]]:
    """Yield ((method, route, class of status), durations) from the counters of all web processes, in a fixed order."""
    found: dict[tuple[str, str, str], Durations] = {}
    for name, count in counts.items():
        if name.startswith(f"{_FIELD}:"):
            _, method, status, part, route = name.split(":", 4)
            durations = found.setdefault((method, route, status), Durations())
            if part == _MICROSECONDS:
                durations.microseconds = count
            elif int(part) < len(durations.buckets):  # an earlier version may have had more
                durations.buckets[int(part)] = count
    yield from sorted(found.items())
