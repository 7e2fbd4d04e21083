"""The database: does it answer, what time is it there, and is it the right one for what is run on it?"""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

from django.conf import settings
from django.db import DatabaseError, InterfaceError, NotSupportedError, connection

from deliveries_app.monitoring import health
from deliveries_app.monitoring.doctor.findings import Finding, fine, of_probe, problem, warning
from docora.redis import inspect
from docora.redis.connection import RedisError

_SLOW_SECONDS = 1.0
_SKEW_SECONDS = 1.0
_SQLITE_WORKERS = 4  # beyond that they wait for each other: one writes at a time


def answers() -> Iterator[Finding]:
    """Is it there, in a version that is supported, migrated, and quick?"""
    started = time.monotonic()
    try:
        connection.ensure_connection()
    except NotSupportedError as error:
        yield problem(str(error), "Upgrade the database server.")
        return
    except (DatabaseError, InterfaceError):
        pass  # the probe says it
    words = health.check_database()
    if words != health.OK:
        yield of_probe(words)
        return
    version = ".".join(map(str, connection.get_database_version()))
    seconds = time.monotonic() - started
    told = f"{connection.display_name} {version} answers in {seconds * 1000:.0f} ms and is migrated."
    if seconds > _SLOW_SECONDS:
        yield warning(told, "Every batch of files waits for it: look at its load, and at the network in between.")
    else:
        yield fine(told)


def clock() -> Iterator[Finding]:
    """How far this machine's clock is from the database's.

    Leases, due times and how long a circuit holds back go by the database's clock alone, so no skew gives a repository to
    two workers. What goes by this machine's are the timestamps that clients verify and the signs of life of workers and
    sweep. Clocks that somebody keeps right are within milliseconds: from a second on nobody does. From `LEASE_SECONDS` / 6
    on, the beat in which leases are extended and the finest interval of the engine, it is a problem: such a clock goes on
    drifting, until living workers look dead (25 s) and clients refuse signatures (300 s).
    """
    if connection.vendor == "sqlite":
        yield fine("SQLite goes by this machine's clock.")
        return
    skew = _skew_seconds()
    told = f"The database's clock and this machine's are {abs(skew):.3f} s apart."
    if abs(skew) <= _SKEW_SECONDS:
        yield fine(told)
        return
    found = problem if abs(skew) > settings.LEASE_SECONDS / 6 else warning
    ahead, behind = ("database", "machine") if skew > 0 else ("machine", "database")
    yield found(
        f"{told} The {ahead}'s is ahead of the {behind}'s.",
        "Run NTP on every machine (timedatectl says whether it does): clients refuse what is signed at a wrong time, and "
        "workers that live look dead.",
    )


def _skew_seconds() -> float:
    """Database minus machine, by the quickest of three questions: its half is what remains unknown."""
    answers = []
    with connection.cursor() as cursor:
        for _ in range(3):
            asked = time.time()
            cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
            moment = float(cursor.fetchone()[0])
            got = time.time()
            answers.append((got - asked, moment - (asked + got) / 2))
    return min(answers)[1]


def sqlite() -> Iterator[Finding]:
    """What SQLite is not made for. Nothing on another database."""
    if connection.vendor != "sqlite":
        return
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        mode = cursor.fetchone()[0]
    if mode == "wal":
        yield fine("SQLite keeps a write-ahead log, so that readers and writers do not wait for each other.")
    else:
        yield problem(
            f"SQLite's journal mode is {mode} and not wal: whoever writes locks everybody out.",
            "Put the database on a local disk: a network file system knows no write-ahead log.",
        )
    alive = []
    with suppress(RedisError, OSError):  # Redis has its own examination
        alive = [worker for worker in inspect.read_workers() if not worker.is_gone]
    others = sorted({worker.host for worker in alive} - {socket.gethostname()})
    if others:
        yield problem(
            f"Workers run on other machines too ({', '.join(others[:5])}), but SQLite is a file of one machine.",
            "Move to PostgreSQL (DATABASE_URL).",
        )
    if len(alive) > _SQLITE_WORKERS:
        yield warning(
            f"{len(alive)} workers share SQLite, where one writes at a time: they wait for each other.",
            f"Move to PostgreSQL (DATABASE_URL), or run {_SQLITE_WORKERS} workers at most.",
        )
