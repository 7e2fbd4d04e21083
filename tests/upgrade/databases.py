"""One interface to SQLite and PostgreSQL: load a dump, copy a database, describe its schema."""

import itertools
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql

from tests.support.postgres import PostgresServer

FOLDER = Path(__file__).parent
Schema = set[tuple[object, ...]]
"""Every table, column, index and constraint as one tuple each. The order of columns in a table is left out, and so are the
names of NOT NULL constraints, which PostgreSQL 18 keeps when a column is renamed."""

_numbers = itertools.count(1)

_POSTGRES_SCHEMA = (
    """
    SELECT 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
           pg_get_expr(d.adbin, d.adrelid), l.collname
      FROM pg_attribute a
      JOIN pg_class c ON c.oid = a.attrelid
      LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
      LEFT JOIN pg_collation l ON l.oid = a.attcollation
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
    """,
    "SELECT 'index', tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    """
    SELECT 'constraint', c.relname, o.conname, pg_get_constraintdef(o.oid)
      FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid
     WHERE c.relnamespace = 'public'::regnamespace AND o.contype <> 'n'
    """,
    "SELECT 'sequence', sequencename, data_type::text FROM pg_sequences WHERE schemaname = 'public'",
)


class Database(ABC):
    """A database that only the test uses."""

    dump: Path
    tables: str  # the statement that lists them
    url: str

    @abstractmethod
    def load(self) -> None:
        """Load the dump into this empty database."""

    @abstractmethod
    def copy(self) -> Self:
        """Return a copy. Nothing may be connected to this database."""

    @abstractmethod
    def new(self) -> Self:
        """Return an empty database of the same kind."""

    @abstractmethod
    def schema(self) -> Schema: ...

    @abstractmethod
    def execute(self, statement: str) -> list[Any]:
        """Run and commit one statement. Return its rows."""

    def count_rows(self) -> dict[str, int]:
        """Return the number of rows of every table."""
        return {table: self.execute(f'SELECT count(*) FROM "{table}"')[0][0] for (table,) in self.execute(self.tables)}


class Sqlite(Database):
    dump = FOLDER / "sqlite.sql"
    tables = "SELECT name FROM sqlite_master WHERE type = 'table'"

    def __init__(self, file: Path) -> None:
        self._file = file
        self.url = f"sqlite:///{file}"

    def load(self) -> None:
        with closing(sqlite3.connect(self._file)) as database:
            database.executescript(self.dump.read_text())

    def copy(self) -> Self:
        copy = self.new()
        with closing(sqlite3.connect(self._file)) as source, closing(sqlite3.connect(copy._file)) as target:
            source.backup(target)
        return copy

    def new(self) -> Self:
        return type(self)(self._file.with_name(f"{next(_numbers)}.sqlite3"))

    def schema(self) -> Schema:
        objects = self.execute("SELECT type, name, sql FROM sqlite_master WHERE sql NOT NULL")
        return {
            (kind, name, part)
            for kind, name, definition in objects
            for part in (_parts(definition) if kind == "table" else [definition])
        }

    def execute(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self._file, timeout=20)) as database, database:
            return database.execute(statement).fetchall()


class Postgresql(Database):
    dump = FOLDER / "postgresql.sql"
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"

    def __init__(self, server: PostgresServer, template: str = "template0") -> None:
        self._server = server
        self._name = f"upgrade_{next(_numbers)}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        with psycopg.connect(server.url_of("postgres"), autocommit=True) as connection:
            connection.execute(statement.format(sql.Identifier(self._name), sql.Identifier(template)))
        self.url = server.url_of(self._name)

    def load(self) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(self.dump.read_bytes())

    def copy(self) -> Self:
        return type(self)(self._server, self._name)

    def new(self) -> Self:
        return type(self)(self._server)

    def schema(self) -> Schema:
        rows = (row for query in _POSTGRES_SCHEMA for row in self.execute(query))
        return {tuple(_plain(value) if isinstance(value, str) else value for value in row) for row in rows}

    def execute(self, statement: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


def _plain(definition: str) -> str:
    """Leave out what may differ without a meaning.

    PostgreSQL prints the casts in `column IN ('a', 'b')` differently after a dump and load. An index that Django names
    has the name and a hash of the column as it was first called.
    """
    definition = re.sub(r"\b\w+_[0-9a-f]{8}(_like)?\b", r"*\1", definition)
    definition = re.sub(r"\('([^']*)'::character varying\)::text", r"'\1'", definition)
    definition = re.sub(r"'([^']*)'::character varying", r"'\1'", definition)
    return re.sub(r"\(\(ARRAY\[([^]]*)\]\)::text\[\]\)", r"(ARRAY[\1])", definition)


def _parts(definition: str) -> Iterator[str]:
    """Yield the columns and constraints of a CREATE TABLE statement: the text between its outermost commas."""
    body = definition[definition.index("(") + 1 : definition.rindex(")")]
    depth, part = 0, ""
    for token in re.findall(r"'[^']*'|\"[^\"]*\"|.", body, re.DOTALL):
        depth += {"(": 1, ")": -1}.get(token, 0)
        if token == "," and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += token
    yield part.strip()
