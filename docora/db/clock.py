"""Two clocks: the database's, which all workers share, and the machine's boot-time clock, which nobody can set."""

import time
from datetime import datetime, timedelta

from django.db.models import DateTimeField, DurationField, ExpressionWrapper, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Now


def boot_seconds() -> float:
    """Seconds since boot, suspended time included: a laptop that slept must see that its lease is gone."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def from_now(seconds: float) -> Combinable:
    """The database's time in so many seconds, as an expression."""
    shift = Value(timedelta(seconds=seconds), output_field=DurationField())
    return ExpressionWrapper(Now() + shift, output_field=DateTimeField())


class DatabaseClock:
    """The database's time without asking again: read once, carried on by the boot clock."""

    def __init__(self, now: datetime) -> None:
        self._read, self._at = now, boot_seconds()

    def now(self) -> datetime:
        return self._read + timedelta(seconds=boot_seconds() - self._at)
