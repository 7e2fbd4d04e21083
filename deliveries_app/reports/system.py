"""What keeps Docora itself from working, for the overview and the queue page."""

from dataclasses import dataclass

from docora.db import schema
from docora.redis import heartbeat
from docora.redis.connection import write_problem
from docora.redis.heartbeat import Signs


@dataclass(frozen=True)
class System:
    """`signs` is None if Redis is down or rejects writes; `redis_problem` then says why, and what to do.

    `is_read_only`: the sweep is late because it waits until the database, which is read-only, accepts writes again.
    """

    signs: Signs | None
    redis_problem: str
    is_read_only: bool


def read_system() -> System:
    """Read the state of Redis, the workers and the sweep. If the sweep is late, also ask the database why."""
    signs = heartbeat.read()
    if signs is None:
        return System(None, " ".join(write_problem() or ()), is_read_only=False)
    return System(signs, "", is_read_only=signs.sweep_is_late and schema.is_read_only())
