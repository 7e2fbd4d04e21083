"""Exponential backoff."""

MAX_WAIT_SECONDS = 3600.0
"""The longest wait, whether the backoff or a `Retry-After` header asks for it."""
_MAX_DOUBLINGS = 64  # the wait has reached `longest` long before; without a limit, attempt 1025 would overflow a float


def backoff(attempt: int, *, base: float, jitter: float, longest: float = MAX_WAIT_SECONDS) -> float:
    """Return the seconds to wait before the next attempt.

    The delay starts at `base` and doubles with each attempt up to `longest`. `jitter`, a random number from 0 to 1, adds
    up to 50 %.
    """
    doubled: float = base * 2.0 ** min(max(0, attempt - 1), _MAX_DOUBLINGS)
    return min(doubled, longest) * (1 + jitter / 2)
