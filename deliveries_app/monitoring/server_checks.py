"""Checks of the database server and of Redis, which only `manage.py doctor` runs."""

import socket
import time
from contextlib import suppress

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning
from django.db import DatabaseError, InterfaceError, NotSupportedError, connection

from deliveries_app.monitoring import health
from docora.conf.data_dir import embedded_redis_url
from docora.conf.installation import program
from docora.redis import heartbeat, inspect
from docora.redis.connection import RedisError
from docora.redis.connection import connection as redis_connection
from docora.redis.inspect import Worker
from docora.text import clean_text, format_bytes

MIN_REDIS = (7, 0)  # for `EXPIRE … NX`, which counts failures
_SLOW_SECONDS = 1.0
_SKEW_SECONDS = 1.0
_SWEEP_CONNECTIONS = 2
_SQLITE_WORKERS = 4  # more of them wait for each other: SQLite has one writer at a time
_WRITE_KEY = "docora:doctor"
_MEMORY_WARNING, _MEMORY_ERROR = 0.8, 0.95  # shares of maxmemory


def from_health(text: str) -> CheckMessage:
    """Turn a message of `health`, "problem: what to do", into an error with a hint."""
    problem, _, hint = text.partition(": ")
    return Error(_sentence(problem), hint=_sentence(hint))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def check_database() -> list[CheckMessage]:
    started = time.monotonic()
    try:
        connection.ensure_connection()
    except NotSupportedError as error:
        return [Error(str(error), hint="Upgrade the database server.")]
    except (DatabaseError, InterfaceError):
        return [from_health(health.DATABASE_DOWN)]
    problem = health.check_database()
    if problem != health.OK:
        return [from_health(problem)]
    seconds = time.monotonic() - started
    version = ".".join(map(str, connection.get_database_version()))
    text = f"{connection.display_name} {version} answers in {seconds * 1000:.0f} ms and is migrated."
    if seconds > _SLOW_SECONDS:
        return [
            Warning(text, hint="Every batch of files waits for the database: check its load and the network to it.")
        ]
    return [Info(text)]


def check_clock() -> list[CheckMessage]:
    """Compare this machine's clock with the database's.

    Leases, due times and circuits use only the database's clock, so a skew never gives a repository to two workers. This
    machine's clock makes the timestamps that clients verify, and the heartbeats of workers and the sweep. NTP keeps clocks
    within milliseconds, so a second of skew means that NTP does not run. From `LEASE_SECONDS` / 6, the interval at which
    leases are extended, it is an error: such a clock keeps drifting until live workers look dead (25 s) and clients refuse
    signatures (300 s).
    """
    if connection.vendor == "sqlite":
        return [Info("SQLite uses this machine's clock.")]
    skew = _skew_seconds()
    text = f"The database's clock and this machine's clock are {abs(skew):.3f} s apart."
    if abs(skew) <= _SKEW_SECONDS:
        return [Info(text)]
    ahead = "database's" if skew > 0 else "machine's"
    message = Error if abs(skew) > settings.LEASE_SECONDS / 6 else Warning
    hint = (
        "Run NTP on every machine (timedatectl shows whether it runs): clients refuse notifications signed at a wrong time, "
        "and live workers look dead."
    )
    return [message(f"{text} The {ahead} is ahead.", hint=hint)]


def _skew_seconds() -> float:
    """Return the database's time minus the machine's.

    Uses the quickest of three queries. The error is at most half of its duration.
    """
    measured = []
    with connection.cursor() as cursor:
        for _ in range(3):
            before = time.time()
            cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
            database = float(cursor.fetchone()[0])
            after = time.time()
            measured.append((after - before, database - (before + after) / 2))
    return min(measured)[1]


def check_connections() -> list[CheckMessage]:
    """Check that PostgreSQL has enough connections for this web process, all registered workers at their busiest, and the
    sweep. SQLite has no limit."""
    if connection.vendor == "sqlite":
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        )
        available = cursor.fetchone()[0]
    workers = len(live_workers())
    needed = settings.WEB_THREADS + workers * settings.SYNCS_PER_WORKER + _SWEEP_CONNECTIONS
    text = f"PostgreSQL has {available} connections, and Docora needs {needed} at most"
    text += f": {settings.WEB_THREADS} for the web process, {settings.SYNCS_PER_WORKER} for each of {workers} workers."
    if needed <= available:
        return [Info(text)]
    return [Warning(text, hint="Raise max_connections of PostgreSQL, or lower SYNCS_PER_WORKER.")]


def live_workers() -> list[Worker]:
    """Return the workers that are alive; none while Redis is down, which `check_redis` reports."""
    with suppress(RedisError, OSError):
        return [worker for worker in inspect.read_workers() if not worker.is_gone]
    return []


def check_sqlite() -> list[CheckMessage]:
    """Check that SQLite is used within its limits. On another database there is nothing to check."""
    if connection.vendor != "sqlite":
        return []
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        mode = cursor.fetchone()[0]
    messages: list[CheckMessage] = []
    if mode == "wal":
        messages.append(Info("SQLite keeps a write-ahead log, so readers and writers do not block each other."))
    else:
        text = f"SQLite's journal mode is {mode}, not wal: each writer locks out all others."
        hint = "Put the database on a local disk: network file systems do not support a write-ahead log."
        messages.append(Error(text, hint=hint))
    workers = live_workers()
    others = sorted({worker.host for worker in workers} - {socket.gethostname()})
    if others:
        text = f"Workers also run on other machines ({', '.join(others[:5])}), but SQLite is a file on one machine."
        messages.append(Error(text, hint="Move to PostgreSQL (DATABASE_URL)."))
    if len(workers) > _SQLITE_WORKERS:
        text = f"{len(workers)} workers share SQLite, which has one writer at a time: they wait for each other."
        hint = f"Move to PostgreSQL (DATABASE_URL), or run at most {_SQLITE_WORKERS} workers."
        messages.append(Warning(text, hint=hint))
    return messages


def check_redis() -> list[CheckMessage]:
    """Check by writing: a replica, a Redis without memory and one with a full disk all answer a ping."""
    problem = health.check_redis(heartbeat.read())
    if problem != health.OK:
        if embedded_redis_url(settings.DATA_DIR) == settings.REDIS_URL:
            hint = f"Start {program()} up, which runs it, or set REDIS_URL."
            return [Error("The embedded Valkey does not answer.", hint=hint)]
        return [from_health(problem)]
    try:
        redis_connection().set(_WRITE_KEY, "1", ex=10)
    except RedisError as error:
        text = f"Redis answers, but refuses writes, so no worker is woken: {clean_text(str(error), 200).rstrip('.')}."
        return [Error(text, hint="REDIS_URL must name a primary that has free memory and disk space.")]
    return [Info("Redis answers and accepts writes.")]


def check_redis_server() -> list[CheckMessage]:
    """Check version, eviction and memory. `INFO` is enough: hosted services often forbid `CONFIG`."""
    info = redis_connection().info()
    return [_check_version(info), _check_eviction(info), _check_memory(info)]


def _check_version(info: dict[str, object]) -> CheckMessage:
    """Valkey reports its own version and the Redis version that it is compatible with."""
    compatible = str(info["redis_version"])
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {compatible}"
    if tuple(int(part) for part in compatible.split(".")[:2] if part.isdigit()) >= MIN_REDIS:
        return Info(f"{name} is new enough.")
    minimum = ".".join(map(str, MIN_REDIS))
    return Error(f"{name} is too old: Docora needs Redis {minimum} or newer, or Valkey.", hint="Upgrade it.")


def _check_eviction(info: dict[str, object]) -> CheckMessage:
    policy = info["maxmemory_policy"]
    if policy == "noeviction":
        return Info("Redis evicts nothing (maxmemory-policy noeviction).")
    text = f"Redis' maxmemory-policy is {policy}: when memory runs out, waiting jobs and counters disappear silently."
    hint = "Set maxmemory-policy noeviction, and give other caches a Redis of their own."
    if info["maxmemory"]:
        return Error(text, hint=hint)
    return Warning(f"{text} It does not happen yet, because no maxmemory is set.", hint=hint)


def _check_memory(info: dict[str, object]) -> CheckMessage:
    used, maximum = int(str(info["used_memory"])), int(str(info["maxmemory"]))
    if not maximum:
        return Info(f"Redis uses {format_bytes(used)}; no maxmemory is set.")
    text = f"Redis uses {format_bytes(used)} of {format_bytes(maximum)} (maxmemory)."
    if used < _MEMORY_WARNING * maximum:
        return Info(text)
    message = Error if used >= _MEMORY_ERROR * maximum else Warning
    hint = "A full Redis refuses writes, and no worker is woken: raise maxmemory, or find out what else fills it."
    return message(text, hint=hint)
