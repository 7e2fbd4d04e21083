"""How long to wait before the next attempt."""

from datetime import timedelta


def backoff(attempt: int, *, base: float, jitter: float, longest: timedelta = timedelta(hours=1)) -> float:
    """Seconds before the next attempt: doubling from `base`, times 1 + `jitter` (0 to 1, drawn by the caller)."""
    doubled: float = base * 2.0 ** max(0, attempt - 1)
    return min(doubled, longest.total_seconds()) * (1 + jitter / 2)
