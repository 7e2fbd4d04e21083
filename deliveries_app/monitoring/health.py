"""Check everything that syncing needs, for `/health/ready`, alerts, doctor and the overview."""

import shutil
import socket

from django.db import DatabaseError, InterfaceError, connection

from docora import disk
from docora.conf.installation import program
from docora.db import schema
from docora.redis.heartbeat import Signs
from docora.text import format_seconds

OK = "ok"
DATABASE_DOWN = "the database is not responding: check DATABASE_URL and the database server"
SQLITE_UNUSABLE = "the database file cannot be used: check its disk and its permissions"
SQLITE_READ_ONLY = (
    "the database file is read-only: check that Docora's user owns it, its folder, and the files beside it, and that its disk "
    "is mounted writable"
)
DATABASE_REFUSES = (
    "the database refuses new connections, which workers need: check the password in DATABASE_URL, and PostgreSQL's "
    "max_connections"
)
DATABASE_READ_ONLY = (
    "the database is read-only: check that DATABASE_URL points to the primary, and that the server's disk isn't full"
)
REDIS_DOWN = "Redis is not responding: check REDIS_URL and the Redis server"
REDIS_UNUSABLE = (
    "Redis is not responding or rejects writes: check REDIS_URL and the Redis server, also its memory and its disk"
)
_UNKNOWN_WITHOUT_REDIS = "unknown without Redis"
_UNKNOWN_WITHOUT_DATABASE = "unknown without the database"


def read_checks(signs: Signs | None) -> dict[str, str]:
    """Check everything that syncing needs. Each value is `OK` or describes the problem. Pass the result of `heartbeat.read`."""
    database, sweep = check_database(), check_sweep(signs)
    if database == OK and not schema.accepts_connections():
        database = DATABASE_REFUSES
    if database != OK and sweep != OK:
        sweep = _UNKNOWN_WITHOUT_DATABASE  # it waits for the database, so its service may be fine
    return {
        "database": database,
        "redis": OK if signs else REDIS_UNUSABLE,
        "git": OK if shutil.which("git") else "git is not installed",
        "disk": disk_problem(signs) or OK,
        "workers": check_workers(signs),
        "sweep": sweep,
    }


def check_database() -> str:
    is_sqlite = connection.vendor == "sqlite"
    try:
        if not schema.is_migrated():
            return schema.not_migrated()
        if schema.is_read_only():
            return SQLITE_READ_ONLY if is_sqlite else DATABASE_READ_ONLY
    except (DatabaseError, InterfaceError):
        return SQLITE_UNUSABLE if is_sqlite else DATABASE_DOWN
    return OK


def disk_problem(signs: Signs | None) -> str:
    """Return what is wrong with a disk of this machine or of one that runs workers, and what to do, or an empty string.

    Name the machine if it is not this one. Without Redis, only this one is known.
    """
    here = socket.gethostname()
    found = {**(signs.disk_problems if signs else {}), here: disk.problem()}
    problems = {host: problem for host, problem in found.items() if problem}
    if problems.keys() == {here}:
        return problems[here]
    return "; ".join(f"on {host}, {problem}" for host, problem in sorted(problems.items()))


def check_workers(signs: Signs | None) -> str:
    if signs is None:
        return _UNKNOWN_WITHOUT_REDIS
    if signs.workers:
        return OK
    return (
        "no worker is running, so nothing is synced: check the service that runs the workers (systemd: docora-worker@1; "
        f"containers: worker), or start {program()} up or {program()} rqworker high default low"
    )


def check_sweep(signs: Signs | None) -> str:
    if signs is None:
        return _UNKNOWN_WITHOUT_REDIS
    if not signs.sweep_is_late:
        return OK
    service = "check the service that runs the sweep (systemd: docora-sweep; containers: sweep)"
    if signs.sweep_age is None:
        return f"the sweep has not run for a day: {service}, or start {program()} up or {program()} sweep"
    return f"the sweep last ran {format_seconds(signs.sweep_age)} ago: {service} and its log"
