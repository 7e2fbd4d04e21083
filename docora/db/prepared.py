"""Statements that PostgreSQL parses and plans once per connection.

Otherwise it does so at each execution, which for a lookup by key takes several times as long as the lookup. SQLite doesn't
need this: Python's `sqlite3` caches statements.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from django.db import DatabaseError, connection

from docora.db.connection import sqlstate

_MAX_SEEN = _MAX_PREPARED = 200
_PLACEHOLDER = re.compile("%[s%]")
_OUTDATED = {"0A000", "26000"}  # a migration has changed a column of the result; the statement was deallocated
_numbers = itertools.count(1)


class _Session:
    """What was prepared on one connection: the SQL that executes a statement, by the statement's own SQL.

    `seen` are statements that were executed once. Only the second execution prepares a statement, because many are never
    repeated.
    """

    def __init__(self, raw: Any) -> None:
        self.prepared: dict[str, str] = {}
        self.seen: set[str] = set()
        # A pooler such as PgBouncer may pass each transaction to another server process.
        (pid,) = raw.execute("SELECT pg_backend_pid()").fetchone()
        self.is_direct = pid == raw.info.backend_pid

    @staticmethod
    def prepare(raw: Any, name: str, sql: str) -> str:
        """Prepare a statement, and return the SQL that executes it.

        PostgreSQL keeps the plan until it analyses a table of the statement (`plan_cache_mode`). Tables that are small
        when it plans may grow later, so the plan must not read whole tables.
        """
        numbers = itertools.count(1)
        text = _PLACEHOLDER.sub(lambda match: f"${next(numbers)}" if match[0] == "%s" else "%", sql)
        count = next(numbers) - 1
        name = f'"{name[-50:]} {next(_numbers)}"'  # names have at most 63 bytes
        raw.execute(
            f"PREPARE {name} AS {text}; SET enable_seqscan = off; EXPLAIN EXECUTE {_call(name, ['NULL'] * count)};"
            " RESET enable_seqscan"
        )
        return f"EXECUTE {_call(name, ['%s'] * count)}"


_sessions: "WeakKeyDictionary[Any, _Session]" = WeakKeyDictionary()


@contextlib.contextmanager
def prepared(name: str, sql: str) -> Iterator[str]:
    """Yield the SQL to execute instead of `sql`, with the same `%s` placeholders.

    Use this for statements that find rows through indexes, whatever the sizes of the tables. PostgreSQL must be able to infer
    the types of the parameters. `name` is what logs and `pg_stat_activity` show.

    If PostgreSQL no longer accepts what was prepared, its error is raised, and all statements are prepared again later.
    """
    try:
        yield _prepared(name, sql)
    except DatabaseError as error:
        if sqlstate(error) in _OUTDATED:
            forget()
        raise


def _prepared(name: str, sql: str) -> str:
    if connection.vendor != "postgresql" or connection.needs_rollback:
        return sql
    session = _session()
    found = session.prepared.get(sql)
    if found is not None:
        return found
    if not session.is_direct or len(session.prepared) >= _MAX_PREPARED:
        return sql
    if sql not in session.seen:
        if len(session.seen) >= _MAX_SEEN:
            session.seen.clear()
        session.seen.add(sql)
        return sql
    with connection.wrap_database_errors:
        session.prepared[sql] = session.prepare(connection.connection, name, sql)
    return session.prepared[sql]


def forget() -> None:
    """Forget what was prepared on this connection. Call this after `DISCARD ALL`."""
    if connection.connection is not None:
        _sessions.pop(connection.connection, None)


def _session() -> _Session:
    connection.close_if_health_check_failed()  # as a cursor does: a new connection has nothing prepared
    connection.ensure_connection()
    session = _sessions.get(connection.connection)
    if session is None:
        with connection.wrap_database_errors:
            session = _sessions[connection.connection] = _Session(connection.connection)
    return session


def _call(name: str, arguments: list[str]) -> str:
    return f"{name}({', '.join(arguments)})" if arguments else name
