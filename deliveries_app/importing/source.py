"""Read the existing service's database in one read-only transaction, which sees a single snapshot.

The schema is that of deployed instances. Depending on the instance, the columns `app_id` and `repository_id` hold the
other table's `id` or its public id; matching their values against both shows which.
"""

import contextlib
import re
from collections.abc import Iterator
from datetime import MAXYEAR, MINYEAR, datetime
from functools import cached_property
from typing import Any, NamedTuple

import psycopg
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import sql
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import class_row
from psycopg.types.datetime import TimestamptzLoader

from docora.security.redaction import redact
from docora.text import clean_text

_COLUMNS = {  # the first three columns identify a row in errors
    "apps": "id app_id app_name token_hash base_url email website description client_auth_key_encrypted created_at",
    "repositories": "id repository_id github_url is_private created_at",
    "app_repositories": "app_id repository_id status github_token_encrypted last_error last_scanned_at created_at",
    "app_delivered_files": "app_id repository_id file_path file_sha delivered_at",
}
_OWN_TABLE = "deliveries_app_app"
_PAGE = 2000  # rows fetched at once
_TIMEOUTS = ["idle_in_transaction_session_timeout", "statement_timeout", "transaction_timeout"]


class SourceError(Exception):
    """The database cannot be read, or the database or the key isn't the existing service's. The message is for the user."""


class SourceApp(NamedTuple):
    """A client app. Text that is NULL in the database is empty here and in the other rows."""

    id: str
    app_id: str
    token_hash: str
    app_name: str
    base_url: str
    email: str
    website: str
    description: str
    key: str  # encrypted
    created_at: datetime | None


class SourceRepository(NamedTuple):
    id: str
    repository_id: str
    github_url: str
    is_private: bool | None
    created_at: datetime | None


class SourceWatch(NamedTuple):
    """A repository watched by an app.

    `app` and `repository` are the `id` of the referenced rows, or None if there is no such row. `raw_app` and
    `raw_repository` are the values of the columns.
    """

    app: str | None
    repository: str | None
    raw_app: str
    raw_repository: str
    token: str  # encrypted
    status: str
    last_error: str
    last_scanned_at: datetime | None
    created_at: datetime | None


class SourceFile(NamedTuple):
    path: str
    sha: str
    delivered_at: datetime | None


class SourceRecords(NamedTuple):
    """The delivery records of one watch: their number, and when the last file was delivered."""

    number: int = 0
    last_delivery: datetime | None = None


class _TimeLoader(Loader):
    """Read times that Docora can't convert to every time zone, such as `infinity`, as unknown."""

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._load = TimestamptzLoader(oid, context).load

    def load(self, data: Buffer) -> datetime | None:
        try:
            time = self._load(data)
        except psycopg.DataError:
            return None
        return time if MINYEAR < time.year < MAXYEAR else None


@contextlib.contextmanager
def open_source(url: str) -> Iterator["Source"]:
    """Connect and check that the expected tables exist. Raises `SourceError`, later also for text that isn't UTF-8."""
    with contextlib.closing(_connect(url)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        _begin(connection)
        connection.adapters.register_loader("timestamptz", _TimeLoader)
        _require_tables(connection)
        try:
            yield Source(connection)
        except psycopg.errors.CharacterNotInRepertoire as error:
            raise _not_utf8(connection, error) from None


def _begin(connection: psycopg.Connection[Any]) -> None:
    """Begin a transaction, with its settings. A transaction that is open already ends."""
    connection.rollback()
    # It idles while Docora writes its own rows; the server must not end it. Before version 17, PostgreSQL has no
    # `transaction_timeout`.
    connection.execute("SELECT set_config(name, '0', true) FROM pg_settings WHERE name = ANY(%s)", [_TIMEOUTS])
    connection.execute("SET LOCAL row_security = off")  # refuse a role from which policies hide rows
    connection.execute("SET LOCAL datestyle = ISO")  # the only format of times with a zone that psycopg reads


def _not_utf8(connection: psycopg.Connection[Any], error: psycopg.Error) -> SourceError:
    """Return an error that names the first row with text that isn't UTF-8. A database in SQL_ASCII may contain such rows."""
    _begin(connection)
    connection.execute("SET client_encoding = SQL_ASCII")  # text is then returned as bytes
    for table, names in _COLUMNS.items():
        columns = names.split()
        query = f"SELECT {', '.join(['{}::text'] * len(columns))} FROM {{}}"  # noqa: S608
        with connection.cursor(name="docora_rows") as cursor:
            for row in cursor.execute(_query(query, *columns, table)):
                shown = [(value or b"").decode(errors="backslashreplace") for value in row]
                for column, value, text in zip(columns, row, shown, strict=True):
                    if text.encode() != (value or b""):
                        ids = ", ".join(f"{name} {value}" for name, value in zip(columns, shown[:3], strict=False))
                        return SourceError(
                            f"The table {table} has text that is not UTF-8, in the column {column} of the row with "
                            f"{clean_text(redact(ids), 400)}. Correct it there, and run the command again."
                        )
    return SourceError(f"The existing service's database cannot be read: {message_of(error)}")


def address_of(url: str) -> str:
    """Return libpq's form of the URL. Raises `SourceError` if it cannot be that of a PostgreSQL database."""
    if not url.startswith(("postgres://", "postgresql://")):
        raise SourceError(
            "The existing service's database must be PostgreSQL, with a URL that begins with postgres://."
        )
    try:
        options = conninfo_to_dict(url)
        address = make_conninfo(url, connect_timeout=options.get("connect_timeout", 10))
    except psycopg.Error:  # the message quotes a part of the URL, which may be the password
        raise _malformed() from None
    # With unescaped special characters, libpq takes part of the password as host, port or database and quotes it in errors.
    before_host = url.partition("://")[2].rpartition("@")[0]
    if {"@", "/"} & set(before_host) or not re.fullmatch("[0-9,]*", str(options.get("port", ""))):
        raise _malformed()
    return address


def _connect(url: str) -> psycopg.Connection[Any]:
    try:
        return psycopg.connect(address_of(url), client_encoding="UTF8")
    except psycopg.Error as error:
        raise SourceError(f"The existing service's database cannot be reached: {message_of(error)}") from None


def _malformed() -> SourceError:
    return SourceError(
        "The database URL is malformed. Escape special characters in the user name and password: @ as %40, / as %2F. "
        "After the ?, only parameters of libpq are allowed, so remove others such as schema=public."
    )


def message_of(error: psycopg.Error) -> str:
    """Return the driver's message as a sentence on one line, without secrets."""
    return f"{clean_text(redact(' '.join(str(error).split())), 300).rstrip('.')}."


def _require_tables(connection: psycopg.Connection[Any]) -> None:
    """Raise `SourceError` for Docora's own database and for missing tables or columns. The URL's search path applies."""
    query = "SELECT (SELECT relnamespace FROM pg_class WHERE oid = to_regclass(%s))"
    schemas = {name: connection.execute(query, [name]).fetchone() or (None,) for name in [*_COLUMNS, _OWN_TABLE]}
    own, apps = schemas[_OWN_TABLE][0], schemas["apps"][0]
    if own is not None and apps in {None, own}:
        raise SourceError(
            "This is Docora's own database. Give the URL of the existing service's database. Docora needs a separate one."
        )
    missing = [name for name in _COLUMNS if schemas[name][0] is None]
    if missing:
        raise SourceError(
            f"This is not the existing service's database: it has no table {' and no table '.join(missing)}. If its "
            "tables are in a schema other than public, add ?options=-csearch_path%3DSCHEMA to the URL."
        )
    for name, columns in _COLUMNS.items():
        try:
            cursor = connection.execute(_query("SELECT * FROM {} LIMIT 0", name))
        except psycopg.errors.InsufficientPrivilege as error:
            raise SourceError(
                f"The existing service's database refuses to be read: {message_of(error)} Grant its user SELECT on "
                f"{', '.join(_COLUMNS)}."
            ) from None
        existing = {column.name for column in cursor.description or ()}
        missing_columns = [column for column in columns.split() if column not in existing]
        if missing_columns:
            raise SourceError(f"The table {name} has no column {' and no column '.join(missing_columns)}.")


def _query(text: str, *names: str) -> sql.Composed:
    return sql.SQL(text).format(*map(sql.Identifier, names))  # `text` and `names` are constants


class Source:
    """The rows of the existing service. All but delivered files, which may be millions, are read at once."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._keys = {
            (table, column): self._referenced_column(table, column, other)
            for table in ("app_repositories", "app_delivered_files")
            for column, other in (("app_id", "apps"), ("repository_id", "repositories"))
        }

    def renew(self) -> None:
        """Begin a new transaction, which sees what has been written since."""
        _begin(self._connection)
        self.__dict__.pop("records", None)

    def secrets(self) -> Iterator[str]:
        """Yield every encrypted value."""
        stored = (
            "SELECT client_auth_key_encrypted FROM apps WHERE client_auth_key_encrypted <> '' UNION ALL "
            "SELECT github_token_encrypted FROM app_repositories WHERE github_token_encrypted <> ''"
        )
        return (row[0] for row in self._connection.execute(stored))

    def apps(self) -> list[SourceApp]:
        return self._all(
            SourceApp,
            "SELECT id::text, coalesce(app_id, '') AS app_id, coalesce(token_hash, '') AS token_hash,"
            " coalesce(app_name, '') AS app_name, coalesce(base_url, '') AS base_url, coalesce(email, '') AS email,"
            " coalesce(website, '') AS website, coalesce(description, '') AS description,"
            " coalesce(client_auth_key_encrypted, '') AS key, created_at FROM apps ORDER BY created_at, id",
        )

    def repositories(self) -> list[SourceRepository]:
        return self._all(
            SourceRepository,
            "SELECT id::text, coalesce(repository_id, '') AS repository_id, coalesce(github_url, '') AS github_url,"
            " is_private, created_at FROM repositories ORDER BY created_at, id",
        )

    def watches(self) -> list[SourceWatch]:
        keys = [self._keys["app_repositories", column] for column in ("app_id", "repository_id")]
        return self._all(
            SourceWatch,
            "SELECT a.id::text AS app, r.id::text AS repository, coalesce(w.app_id::text, '') AS raw_app,"
            " coalesce(w.repository_id::text, '') AS raw_repository, coalesce(w.github_token_encrypted, '') AS token,"
            " coalesce(w.status::text, '') AS status, coalesce(left(w.last_error, 4000), '') AS last_error, w.last_scanned_at, w.created_at"
            " FROM app_repositories w"
            " LEFT JOIN apps a ON a.{}::text = w.app_id::text"
            " LEFT JOIN repositories r ON r.{}::text = w.repository_id::text"
            " ORDER BY w.created_at, w.app_id, w.repository_id",
            *keys,
        )

    @cached_property
    def records(self) -> dict[tuple[str, str], SourceRecords]:
        """A summary of the records by `file_key`. It takes a scan of the largest table, and is the same until `renew`."""
        summary = "SELECT app_id::text, repository_id::text, count(*), max(delivered_at) FROM app_delivered_files GROUP BY 1, 2"
        return {(app, repository): SourceRecords(*rest) for app, repository, *rest in self._connection.execute(summary)}

    def file_key(self, app: SourceApp, repository: SourceRepository) -> tuple[str, str]:
        """Return the two ids that the table of delivered files uses for this app and repository."""
        by_app, by_repository = (self._keys["app_delivered_files", name] for name in ("app_id", "repository_id"))
        return getattr(app, by_app), getattr(repository, by_repository)

    def files(self, key: tuple[str, str]) -> Iterator[SourceFile]:
        """Yield the delivered files with these ids (see `file_key`), in byte order of their paths."""
        with self._connection.cursor(name="docora_files") as cursor:
            cursor.itersize = _PAGE
            cursor.execute(
                "SELECT coalesce(file_path, ''), coalesce(file_sha, ''), delivered_at FROM app_delivered_files"
                " WHERE app_id = %s AND repository_id = %s ORDER BY convert_to(file_path, 'UTF8')",
                key,
            )
            for row in cursor:
                yield SourceFile(*row)

    def _all[Row: tuple[Any, ...]](self, kind: type[Row], text: str, *names: str) -> list[Row]:
        with self._connection.cursor(row_factory=class_row(kind)) as cursor:
            return cursor.execute(_query(text, *names)).fetchall()

    def _referenced_column(self, table: str, column: str, other: str) -> str:
        """Return the column of the other table that `column` references: `id`, or the public id, which has the same name."""
        matches = "SELECT EXISTS (SELECT FROM {} t JOIN {} o ON o.{}::text = t.{}::text)"
        for key in ("id", column):
            found = self._connection.execute(_query(matches, table, other, key, column)).fetchone()
            if found and found[0]:
                return key
        return "id"


_KEY = re.compile("[0-9a-fA-F]{64}")
_STORED = re.compile("([0-9a-f]{32}):([0-9a-f]{32}):((?:[0-9a-f]{2})*)", re.IGNORECASE)


class SourceKey:
    """The existing service's `ENCRYPTION_KEY`. Raises `SourceError` unless it has 64 hex digits."""

    def __init__(self, digits: str) -> None:
        if not _KEY.fullmatch(digits):
            raise SourceError("The existing service's ENCRYPTION_KEY must have 64 hex digits.")
        self._cipher = AESGCM(bytes.fromhex(digits))

    def decrypt(self, stored: str) -> str | None:
        """Return the plain text, or None if the value is damaged or was encrypted with another key."""
        parts = _STORED.fullmatch(stored)
        if parts is None:
            return None
        nonce, tag, ciphertext = map(bytes.fromhex, parts.groups())
        try:
            return self._cipher.decrypt(nonce, ciphertext + tag, None).decode()
        except (InvalidTag, UnicodeDecodeError):
            return None
