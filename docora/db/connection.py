"""PostgreSQL connection options that keep each side from waiting for a peer that will never answer.

A worker that freezes inside a transaction (a sleeping laptop, a live migration, a debugger) or loses power keeps its
row locks for as long as PostgreSQL considers the connection alive, possibly for hours, and blocks the admin and all
other workers. PostgreSQL therefore ends a transaction that has been idle for the length of a lease. It never ends one
that is executing a statement.

Conversely, without timeouts the kernel waits for a server that vanished (power, network, firewall) for a quarter of an
hour if data was sent, and for two hours if not.
"""

import contextlib
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import InterfaceError, InternalError, OperationalError, connections

from docora.conf.data_dir import make_private

CONNECTION_ERRORS = (OperationalError, InterfaceError, InternalError)
"""Errors of any statement if the database is gone or has ended the session. On PostgreSQL, a faulty statement raises others."""


class PrivateSqlite(sqlite3.Connection):
    """Creates a new SQLite file with mode 0600, because it will hold sessions and password hashes. Its WAL gets the same mode.

    Also creates DATA_DIR if the file is in it. An error is ignored: opening the database reports it.
    """

    def __init__(self, database: str, *arguments: Any, **options: Any) -> None:
        if not str(database).startswith((":memory:", "file:")):
            with contextlib.suppress(OSError):
                if Path(database).absolute().parent == settings.DATA_DIR:
                    make_private(settings.DATA_DIR)
                os.close(os.open(database, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        super().__init__(database, *arguments, **options)


def postgres_options(given: Mapping[str, Any], lease_seconds: float) -> dict[str, Any]:
    """Return the options of a PostgreSQL connection. Options from DATABASE_URL (`given`) take precedence.

    PostgreSQL and libpq ignore the TCP options on a Unix socket.
    """
    timeout = round(lease_seconds * 1000)  # milliseconds
    session = {
        "idle_in_transaction_session_timeout": timeout,
        "tcp_user_timeout": timeout,
        # Longer than an idle transaction can hold a lock. Otherwise, while a person's session or an upkeep job locks a table, pages
        # and syncs would wait as long, and all threads of the web process with them.
        "lock_timeout": 2 * timeout,
        "plan_cache_mode": "force_generic_plan",  # `docora.db.prepared`
        # Compiling takes seconds. Before version 18, every plan that reads a table in spite of `enable_seqscan=off` is compiled.
        "jit": "off",
        # The server, the database or the role may have other defaults. But a statement has to see what was committed while it
        # waited for a lock, and psycopg reads times and intervals only in these formats.
        "default_transaction_isolation": "read\\ committed",
        "timezone": "UTC",
        "datestyle": "ISO",
        "intervalstyle": "postgres",
    }
    # The last value of a repeated parameter counts.
    options = [*(f"-c {name}={value}" for name, value in session.items()), given.get("options", "")]
    return {
        "connect_timeout": 10,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": timeout,
        **given,
        "options": " ".join(options).strip(),
    }


def check_pooled(session: Any) -> None:
    """Raise the driver's error if this connection of a pool is broken. In that case, also replace all idle ones.

    A restart of the server breaks all of them. The pool would try one after another, and pause longer after each.
    """
    try:
        session._pool.check_connection(session)
    except Exception:
        session._pool.drain()
        raise


def close_broken_connections() -> None:
    """Close the connections on which an error occurred, and keep those that work.

    Django's `close_old_connections` also checks those that work, with one statement each, or closes them (`CONN_MAX_AGE`).
    """
    for connection in connections.all(initialized_only=True):
        if connection.errors_occurred:
            connection.close()


def pooler_advice(cause: str) -> str:
    """Return what to do if a pooler refused the connection for this `cause`, or an empty string."""
    if "unsupported startup parameter" not in cause:
        return ""
    return "Set ignore_startup_parameters in PgBouncer, as the handbook says under Connections."


_READ_ONLY, _DISK_FULL = "25006", "53100"  # SQLSTATE


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's code of a database error. None for any other error, and if the server has not responded."""
    code: str | None = getattr(error.__cause__, "sqlstate", None)
    return code


def _sqlite_code(error: BaseException) -> int | None:
    """Return SQLite's primary code of a database error. None for any other error."""
    code: int | None = getattr(error.__cause__, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def is_read_only(error: BaseException) -> bool:
    """Return whether the database refuses to write.

    PostgreSQL does after a failover to a replica, or because a hosted database is full, and SQLite if it may only read its file.
    """
    return _sqlite_code(error) == sqlite3.SQLITE_READONLY or sqlstate(error) == _READ_ONLY


def is_locked(error: BaseException) -> bool:
    """Return whether another connection held SQLite's lock for too long."""
    return _sqlite_code(error) == sqlite3.SQLITE_BUSY


def is_full(error: BaseException) -> bool:
    """Return whether the database's disk is full. PostgreSQL may still accept changes that fit into its files."""
    return _sqlite_code(error) == sqlite3.SQLITE_FULL or sqlstate(error) == _DISK_FULL


def is_outage(error: BaseException) -> bool:
    """Return whether the error means that the database can't be reached, is full or read-only, not that a statement is faulty.

    PostgreSQL's driver has no SQLSTATE for a failed connection; 08 is a lost connection, 53 a lack of disk space, memory or
    connections, 55P03 a lock that took too long, and 57 a server that starts, stops, or has ended the statement, as after its
    `statement_timeout`. SQLite's file may be locked, full or missing.
    """
    if is_read_only(error):
        return True
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    if (code := _sqlite_code(error)) is not None:
        return code != sqlite3.SQLITE_ERROR  # a faulty statement
    state = sqlstate(error)
    return state is None or state.startswith(("08", "53", "55P03", "57"))
