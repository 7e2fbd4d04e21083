"""Exponential backoff."""

MAX_WAIT_SECONDS = 3600.0
"""The longest wait, whether the backoff or a `Retry-After` header asks for it."""
_MAX_DOUBLINGS = 64  # enough doublings for any base to reach the limit; 1024 would overflow a float


def backoff(attempt: int, *, base: float, jitter: float) -> float:
    """Return the seconds to wait before the next attempt.

    The delay starts at `base` and doubles with each attempt up to `MAX_WAIT_SECONDS`. `jitter`, a random number from 0 to
    1, adds up to 50%. It lowers the limit by up to a third, so that delays still differ there.
    """
    doubled: float = base * 2.0 ** min(max(0, attempt - 1), _MAX_DOUBLINGS)
    return min(doubled * (1 + jitter / 2), MAX_WAIT_SECONDS * (3 - jitter) / 3)
