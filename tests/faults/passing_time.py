"""Let time pass, or set the database's clock back, without waiting: all times in the database are moved instead.

To everything that compares them with the clock, this is the same. Ping results in Redis expire as well. PostgreSQL only.
"""

from datetime import datetime
from functools import cache

import pytest
from django.apps import apps
from django.db import connection, models
from django.db.models import Min
from django.db.models.functions import Now
from redis import Redis

from deliveries_app.models import App, AppRepository, AuditEntry, BulkOperation, HourlyTraffic
from deliveries_app.sync import lease
from repositories_app.models import HostOutage, Repository

_behind = 0.0  # seconds that the database's clock was set back and that have not passed since
_LABELS = {"deliveries_app", "repositories_app"}
_KEPT = {
    HourlyTraffic: {"hour"},  # a part of a key
    AuditEntry: {"created_at"},  # the database refuses to change it
}


def pass_time(seconds: float, redis: Redis) -> None:
    """Let this many seconds pass. Call it while no worker runs."""
    global _behind
    _behind = max(0.0, _behind - seconds)
    _move(-seconds)
    for key in redis.scan_iter("docora:endpoint:*"):
        left = redis.pttl(key) - int(seconds * 1000)
        if left > 0:
            redis.pexpire(key, left)
        else:
            redis.delete(key)


def set_clock_back(seconds: float) -> None:
    """Set the database's clock back, by which new sequences are drawn."""
    global _behind
    _behind += seconds
    _move(seconds)


def set_clock_right() -> None:
    global _behind
    _behind = 0.0


def draw_sequences_by_this_clock(patch: pytest.MonkeyPatch) -> None:
    """Let this process, and those that it forks, draw sequences by the clock that was set back."""
    real = lease._microseconds
    patch.setattr(lease, "_microseconds", lambda clock: real(clock) - int(_behind * 1_000_000))


def seconds_to_next_event() -> float | None:
    """Return the seconds until the next time at which a watch may be synced, released or removed, or None if there is no such time."""
    waiting = AppRepository.objects.alive().filter(next_sync_at__isnull=False)
    later: list[datetime | None] = [
        waiting.filter(next_sync_at__gt=Now()).aggregate(at=Min("next_sync_at"))["at"],
        App.objects.filter(ended_at=None, cooldown_until__gt=Now()).aggregate(at=Min("cooldown_until"))["at"],
        Repository.objects.filter(circuit_open_until__gt=Now()).aggregate(at=Min("circuit_open_until"))["at"],
        AppRepository.objects.filter(lease_until__gt=Now()).aggregate(at=Min("lease_until"))["at"],
        HostOutage.objects.filter(retry_at__gt=Now()).aggregate(at=Min("retry_at"))["at"],
    ]
    with connection.cursor() as cursor:
        cursor.execute("SELECT STATEMENT_TIMESTAMP()")
        now: datetime = cursor.fetchone()[0]
    times = [time for time in later if time is not None]
    gradual = BulkOperation.objects.filter(pending__isnull=False)
    times += [at for (at,) in gradual.values_list("next_release_at").distinct() if at is not None and at > now]
    if not times and gradual.exists():
        return 1.0  # the next round of the sweep releases something
    if not times and AppRepository.objects.filter(ended_at__isnull=False).exists():
        return 2 * lease.HOLD_AFTER_TIMEOUT  # its app may still be processing a request
    if not times:
        return None
    return max(0.0, (min(times) - now).total_seconds()) + 0.01


def _move(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_statements(), {"seconds": seconds})


@cache
def _statements() -> str:
    """Return an UPDATE of each table that has times."""
    updates = []
    for model in apps.get_models():
        if model._meta.app_label in _LABELS and model._meta.managed and not model._meta.proxy:
            columns = [
                field.column
                for field in model._meta.local_fields
                if isinstance(field, models.DateTimeField) and field.name not in _KEPT.get(model, ())
            ]
            changes = ", ".join(f"{name} = {name} + make_interval(secs => %(seconds)s)" for name in columns)
            if changes:
                updates.append(f"UPDATE {model._meta.db_table} SET {changes}")
    return "; ".join(updates)
