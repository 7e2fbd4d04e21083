"""Two clocks: the database's, which all workers share, and the boot-time clock, which cannot be set."""

import time
from datetime import datetime, timedelta
from functools import lru_cache

from django.db import connection
from django.db.models.expressions import Combinable
from django.db.models.functions import Now
from django.utils import timezone


def boot_seconds() -> float:
    """Return the seconds since boot, including suspended time: when a laptop wakes up, its leases must have expired."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@lru_cache(1000)
def from_now(seconds: float) -> Combinable:
    """Return an expression for the database's time plus `seconds`."""
    return Now() + timedelta(seconds=seconds)


def database_now() -> datetime:
    """Return the database's time. SQLite uses this machine's."""
    if connection.vendor == "sqlite":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        now: datetime = cursor.fetchone()[0]
    return now


class DatabaseClock:
    """The database's time, read once and then advanced by the boot-time clock without further queries."""

    def __init__(self, now: datetime) -> None:
        self._database_time, self._read_at = now, boot_seconds()

    def now(self) -> datetime:
        return self._database_time + timedelta(seconds=boot_seconds() - self._read_at)
