"""What keeps Docora itself from working, for the overview and the queue page."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection
from django.utils import timezone

from deliveries_app.monitoring import health
from docora.db import schema
from docora.redis import heartbeat
from docora.redis.connection import write_problem
from docora.redis.heartbeat import Signs

_WORKER_SECONDS = 10
"""How long a watch may be due before the overview asks whether workers can connect to the database."""


@dataclass(frozen=True)
class System:
    """`signs` is None if Redis is down or rejects writes; `redis_problem` then says why, and what to do.

    `is_read_only`: the sweep is late because it waits until the database, which is read-only, accepts writes again. `is_file`
    then says whether it is SQLite's.
    `refuses_connections`: watches are due, but the workers can't connect to the database. `disk_problem`: see `health.disk_problem`.
    """

    signs: Signs | None
    redis_problem: str
    is_read_only: bool = False
    is_file: bool = False
    refuses_connections: bool = False
    disk_problem: str = ""


def read_system(due_since: datetime | None) -> System:
    """Read the state of Redis, the workers, the sweep and the disks. If the sweep is late, also ask the database why.

    `due_since` is when the longest waiting watch became due. If that is too long ago, try a new connection to the database.
    """
    signs = heartbeat.read()
    if signs is None:
        return System(None, " ".join(write_problem() or ()), disk_problem=health.disk_problem(None))
    is_stuck = due_since is not None and timezone.now() - due_since > timedelta(seconds=_WORKER_SECONDS)
    return System(
        signs,
        "",
        is_read_only=signs.sweep_is_late and schema.is_read_only(),
        is_file=connection.vendor == "sqlite",
        refuses_connections=is_stuck and not schema.accepts_connections(),
        disk_problem=health.disk_problem(signs),
    )
