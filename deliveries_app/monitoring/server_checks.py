"""Checks of the database server and of Redis, which only `manage.py doctor` runs."""

import socket
import time

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning
from django.db import DatabaseError, InterfaceError, NotSupportedError, connection, transaction
from django.utils.text import capfirst
from redis.exceptions import ResponseError

from deliveries_app.monitoring import health
from docora.db import schema
from docora.db.connection import is_full, pooler_advice
from docora.redis.connection import IN_CLUSTER, RedisError, write_problem
from docora.redis.connection import connection as redis_connection
from docora.redis.connection import problem as redis_problem
from docora.redis.inspect import live_workers, read_workers
from docora.text import cause_of, clean_text, counted, first_line, format_bytes

MIN_REDIS = (7, 0)  # for `EXPIRE … NX`, which `docora.security.throttle` uses
_SLOW_SECONDS = 1.0
_SKEW_SECONDS = 1.0
_SWEEP_CONNECTIONS = 2
_ROLE_HINT = (
    "If a pooler such as PgBouncer drops this parameter, set idle_in_transaction_session_timeout for Docora's role, as the "
    "handbook says under Connections."
)
_SQLITE_WORKERS = 4  # more of them wait for each other: SQLite has one writer at a time
_MEMORY_WARNING, _MEMORY_ERROR = 0.8, 0.95  # shares of maxmemory


def from_health(text: str) -> CheckMessage:
    """Turn a message of `health`, "problem: what to do", into an error with a hint."""
    problem, _, hint = text.partition(": ")
    return Error(_sentence(problem), hint=_sentence(hint))


def _sentence(text: str) -> str:
    return f"{capfirst(text)}." if text else ""


def check_database() -> list[CheckMessage]:
    started = time.monotonic()
    try:
        connection.ensure_connection()
    except NotSupportedError as error:
        return [Error(str(error), hint="Upgrade the database server.")]
    except (DatabaseError, InterfaceError) as error:
        cause = cause_of(error)
        if connection.vendor == "sqlite":
            text = f"The database file {connection.settings_dict['NAME']} cannot be used: {cause}."
            return [Error(text, hint="Check its disk and its permissions.")]
        hint = pooler_advice(cause) or "Check DATABASE_URL and the database server."
        return [Error(f"The database is not responding: {cause}.", hint=hint)]
    problem = health.check_database()
    if problem != health.OK:
        file = f"the database file {connection.settings_dict['NAME']}"
        return [from_health(problem.replace("the database file", file))]
    if problem := schema.encoding_problem(connection):
        return [from_health(problem)]
    if full := _disk_is_full():
        return [full]
    seconds = time.monotonic() - started
    version = ".".join(map(str, connection.get_database_version()))
    text = f"{connection.display_name} {version} responds in {seconds * 1000:.0f} ms and is fully migrated."
    if seconds > _SLOW_SECONDS:
        return [Warning(text, hint="Every batch of files waits for the database. Check its load and the network.")]
    return [Info(text)]


def _disk_is_full() -> CheckMessage | None:
    """Return an error if PostgreSQL has no space for another file. A table is created to find out, and rolled back.

    `check_disk` finds this for SQLite.
    """
    if connection.vendor != "postgresql":
        return None
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE docora_probe AS SELECT 1")
            transaction.set_rollback(True)
    except DatabaseError as error:
        if is_full(error):
            text = f"The database's disk is full: {clean_text(first_line(error), 200)}."
            return Error(
                text, hint="Free up space on the disk of the database server. Until then, little can be recorded."
            )
    return None


def check_clock() -> list[CheckMessage]:
    """Compare this machine's clock with the database's.

    Leases, due times and circuits use only the database's clock, so a skew never gives a repository to two workers. This
    machine's clock makes the timestamps that clients verify, and the heartbeats of workers and the sweep. NTP keeps clocks
    within milliseconds, so a second of skew means that NTP does not run. From `LEASE_SECONDS` / 6, the interval at which
    leases are extended, it is an error: such a clock keeps drifting until live workers look dead (25 s) and clients refuse
    signatures (300 s).
    """
    if connection.vendor == "sqlite":
        return [Info("SQLite uses this server's clock.")]
    skew = _skew_seconds()
    text = f"The clocks of the database and this server differ by {abs(skew):.3f} s."
    if abs(skew) <= _SKEW_SECONDS:
        return [Info(text)]
    ahead = "database's" if skew > 0 else "server's"
    message = Error if abs(skew) > settings.LEASE_SECONDS / 6 else Warning
    hint = (
        "Run NTP on every server (check with timedatectl). Clients reject notifications with a wrong timestamp, and "
        "running workers appear dead."
    )
    return [message(f"{text} The {ahead} clock is ahead.", hint=hint)]


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
    """Check that PostgreSQL has enough connections, and that they have Docora's parameters. SQLite has no such limit.

    They must be enough for this web process, all registered workers at their busiest, and the sweep. PgBouncer drops the
    parameters (`docora.db.connection`).
    """
    if connection.vendor == "sqlite":
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT least("
            "  current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,"
            "  (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = session_user),"
            "  (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database())),"
            " current_setting('idle_in_transaction_session_timeout')"
        )
        available, idle_timeout = cursor.fetchone()
    workers = live_workers()
    syncs = sum(worker.jobs_at_once for worker in workers)
    needed = settings.WEB_CONNECTIONS + syncs + _SWEEP_CONNECTIONS
    text = (
        f"PostgreSQL allows {available} connections. Docora needs up to {needed}: {settings.WEB_CONNECTIONS} for the web "
        f"process, {syncs} for {counted(len(workers), 'worker')}, and {_SWEEP_CONNECTIONS} for the sweep."
    )
    found: list[CheckMessage] = []
    if needed <= available:
        found.append(Info(text))
    else:
        hint = "Raise PostgreSQL's max_connections and the role's or database's own limit, or lower SYNCS_PER_WORKER."
        found.append(Warning(text, hint=hint))
    if idle_timeout == "0":
        text = "PostgreSQL doesn't end idle transactions, so a frozen worker can block all others for hours."
        found.append(Warning(text, hint=_ROLE_HINT))
    return found


def check_sqlite() -> list[CheckMessage]:
    """Check that SQLite is used within its limits. On another database there is nothing to check."""
    if connection.vendor != "sqlite":
        return []
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        mode = cursor.fetchone()[0]
    messages: list[CheckMessage] = []
    if mode == "wal":
        messages.append(Info("SQLite uses a write-ahead log, so readers and writers don't block each other."))
    else:
        text = f"SQLite's journal mode is {mode}, not wal, so each writer blocks all other connections."
        hint = "Put the database on a local disk. Network file systems don't support a write-ahead log."
        messages.append(Error(text, hint=hint))
    workers = live_workers()
    others = sorted({worker.host for worker in workers} - {socket.gethostname()})
    if others:
        text = f"Workers also run on other servers ({', '.join(others[:5])}), but SQLite works on a single server only."
        messages.append(Error(text, hint="Move to PostgreSQL (DATABASE_URL)."))
    if len(workers) > _SQLITE_WORKERS:
        text = f"{len(workers)} workers share SQLite, which allows one writer at a time, so they wait for each other."
        hint = f"Move to PostgreSQL (DATABASE_URL), or run at most {_SQLITE_WORKERS} workers."
        messages.append(Warning(text, hint=hint))
    return messages


def check_redis() -> list[CheckMessage]:
    """Check by writing: a replica, and a Redis whose memory or disk is full, still respond.

    RQ queues jobs with scripts. Its keys have names of their own, which an ACL may not cover.
    """
    found = write_problem()
    if not found:
        try:
            redis_connection().register_script("return 1")()
            read_workers()
        except RedisError as error:
            found = redis_problem(error)
    return [Error(found[0], hint=found[1]) if found else Info("Redis responds and accepts writes.")]


def check_redis_server() -> list[CheckMessage]:
    """Check version, eviction and memory. `INFO` is enough: hosted services often forbid `CONFIG`."""
    try:
        info = redis_connection().info()
    except ResponseError as error:
        text = f"Redis refuses INFO, so version, eviction and memory aren't checked: {cause_of(error)}."
        return [Warning(text, hint="Allow it for the user in REDIS_URL.")]
    found = [_check_version(info), _check_eviction(info), _check_memory(info)]
    if info.get("cluster_enabled"):
        text, hint = IN_CLUSTER
        found.append(Error(text, hint=hint))
    return found


def _check_version(info: dict[str, object]) -> CheckMessage:
    """Valkey reports its own version and the Redis version that it is compatible with."""
    compatible = str(info["redis_version"])
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {compatible}"
    if tuple(int(part) for part in compatible.split(".")[:2] if part.isdigit()) >= MIN_REDIS:
        return Info(f"{name} is supported.")
    minimum = ".".join(map(str, MIN_REDIS))
    return Error(f"{name} is too old. Docora needs Valkey, or Redis {minimum} or newer.", hint="Upgrade it.")


def _check_eviction(info: dict[str, object]) -> CheckMessage:
    policy = info["maxmemory_policy"]
    if policy == "noeviction":
        return Info("Redis doesn't evict keys (maxmemory-policy noeviction).")
    text = (
        f"The maxmemory-policy of Redis is {policy}. When memory runs out, queued jobs and counters are lost silently."
    )
    hint = "Set maxmemory-policy to noeviction, and use a separate Redis for other caches."
    if info["maxmemory"]:
        return Error(text, hint=hint)
    return Warning(f"{text} This has no effect until maxmemory is set.", hint=hint)


def _check_memory(info: dict[str, object]) -> CheckMessage:
    used, maximum = int(str(info["used_memory"])), int(str(info["maxmemory"]))
    if not maximum:
        return Info(f"Redis uses {format_bytes(used)}; no maxmemory is set.")
    text = f"Redis uses {format_bytes(used)} of {format_bytes(maximum)} (maxmemory)."
    if used < _MEMORY_WARNING * maximum:
        return Info(text)
    message = Error if used >= _MEMORY_ERROR * maximum else Warning
    hint = (
        "When Redis is full, it rejects writes, and no new sync starts. Raise maxmemory, or find out what else uses it."
    )
    return message(text, hint=hint)
