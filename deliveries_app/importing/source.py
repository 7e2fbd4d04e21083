"""The existing service's database, which is only read: one read-only transaction that sees everything as of one moment.

Its schema is that of deployed instances. Whether a column `app_id` or `repository_id` holds the other table's `id` or its
public id is found out by looking which of them its values match.
"""

import contextlib
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import class_row

from docora.security.redaction import redact
from docora.text import clean_text

_COLUMNS = {
    "apps": "id app_id token_hash app_name base_url email website description client_auth_key_encrypted created_at",
    "repositories": "id repository_id github_url is_private created_at",
    "app_repositories": "app_id repository_id github_token_encrypted status last_error last_scanned_at created_at",
    "app_delivered_files": "app_id repository_id file_path file_sha delivered_at",
}
_OWN_TABLE = "deliveries_app_app"
_PAGE = 2000  # rows that come at once


class SourceError(Exception):
    """The database cannot be read, or is not the existing service's; one sentence."""


class SourceApp(NamedTuple):
    id: str
    app_id: str
    token_hash: str
    app_name: str
    base_url: str
    email: str
    website: str | None
    description: str | None
    key: str  # encrypted
    created_at: datetime | None


class SourceRepository(NamedTuple):
    id: str
    repository_id: str
    github_url: str
    is_private: bool | None
    created_at: datetime | None


class SourceWatch(NamedTuple):
    """`app` and `repository` are the `id` of the rows that it refers to, None where there is no such row; `told_app` and
    `told_repository` are what stands in the column."""

    app: str | None
    repository: str | None
    told_app: str
    told_repository: str
    token: str | None  # encrypted
    status: str
    last_error: str | None
    last_scanned_at: datetime | None
    created_at: datetime | None


class SourceFile(NamedTuple):
    path: str
    sha: str
    delivered_at: datetime | None


@contextlib.contextmanager
def open_source(url: str) -> Iterator["Source"]:
    """Connected, and known to be what it should be. Raises `SourceError`."""
    with contextlib.closing(_connect(url)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        # It waits while Docora's side writes; that is no reason for the server to end it.
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.execute("SET LOCAL statement_timeout = 0")
        _require_tables(connection)
        yield Source(connection)


def _connect(url: str) -> psycopg.Connection[Any]:
    if not url.startswith(("postgres://", "postgresql://")):
        raise SourceError("The existing service's database is a PostgreSQL: its address begins with postgres://.")
    try:
        facts = conninfo_to_dict(url)
        address = make_conninfo(url, connect_timeout=facts.get("connect_timeout", 10))
    except psycopg.Error:  # its words repeat a part of the address, and that may be the password
        raise _malformed() from None
    # libpq takes a part of a password for the host, the port or the name, and would repeat it where that leads nowhere.
    before_host = url.partition("://")[2].rpartition("@")[0]
    if {"@", "/"} & set(before_host) or not re.fullmatch("[0-9,]*", str(facts.get("port", ""))):
        raise _malformed()
    try:
        return psycopg.connect(address, client_encoding="UTF8")
    except psycopg.Error as error:
        raise SourceError(f"The existing service's database cannot be reached: {words_of(error)}") from None


def _malformed() -> SourceError:
    return SourceError(
        "The address is malformed. What is special in user name and password is written as in any URL: @ as %40, / as %2F."
    )


def words_of(error: psycopg.Error) -> str:
    """What the driver says, in one line."""
    return redact(clean_text(" ".join(str(error).split()), 300))


def _require_tables(connection: psycopg.Connection[Any]) -> None:
    """Refuses Docora's own database, and one that lacks what is read. Tables are found by the address's search path."""
    place = "SELECT (SELECT relnamespace FROM pg_class WHERE oid = to_regclass(%s))"
    places = {name: connection.execute(place, [name]).fetchone() or (None,) for name in [*_COLUMNS, _OWN_TABLE]}
    own, apps = places[_OWN_TABLE][0], places["apps"][0]
    if own is not None and apps in {None, own}:
        raise SourceError(
            "This is where Docora keeps its own tables. Give the address of the existing service's database, and let "
            "Docora have another database, or another schema."
        )
    missing = [name for name in _COLUMNS if places[name][0] is None]
    if missing:
        raise SourceError(
            f"This is not the existing service's database: it has no table {' and no table '.join(missing)}. If its "
            "tables lie in a schema of their own, add ?options=-csearch_path%3DSCHEMA to the address."
        )
    for name, columns in _COLUMNS.items():
        there = {
            column.name for column in connection.execute(_query("SELECT * FROM {} LIMIT 0", name)).description or ()
        }
        lacking = [column for column in columns.split() if column not in there]
        if lacking:
            raise SourceError(f"The table {name} has no column {' and no column '.join(lacking)}.")


def _query(text: str, *names: str) -> sql.Composed:
    return sql.SQL(text).format(*map(sql.Identifier, names))  # no text from outside


class Source:
    """The rows of the existing service. Apps, repositories and watches are thousands at most; delivered files come in
    pages, whatever their number."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._keys = {
            (table, column): self._key_behind(table, column, other)
            for table in ("app_repositories", "app_delivered_files")
            for column, other in (("app_id", "apps"), ("repository_id", "repositories"))
        }

    def secrets(self) -> Iterator[str]:
        """Everything that is stored encrypted."""
        stored = (
            "SELECT client_auth_key_encrypted FROM apps WHERE client_auth_key_encrypted <> '' UNION ALL "
            "SELECT github_token_encrypted FROM app_repositories WHERE github_token_encrypted <> ''"
        )
        return (row[0] for row in self._connection.execute(stored))

    def apps(self) -> list[SourceApp]:
        return self._all(
            SourceApp,
            "SELECT id::text, app_id, token_hash, app_name, base_url, email, website, description,"
            " client_auth_key_encrypted AS key, created_at FROM apps ORDER BY created_at, id",
        )

    def repositories(self) -> list[SourceRepository]:
        return self._all(
            SourceRepository,
            "SELECT id::text, repository_id, github_url, is_private, created_at FROM repositories"
            " ORDER BY created_at, id",
        )

    def watches(self) -> list[SourceWatch]:
        keys = [self._keys["app_repositories", column] for column in ("app_id", "repository_id")]
        return self._all(
            SourceWatch,
            "SELECT a.id::text AS app, r.id::text AS repository, w.app_id::text AS told_app,"
            " w.repository_id::text AS told_repository, w.github_token_encrypted AS token, w.status, w.last_error,"
            " w.last_scanned_at, w.created_at FROM app_repositories w"
            " LEFT JOIN apps a ON a.{}::text = w.app_id::text"
            " LEFT JOIN repositories r ON r.{}::text = w.repository_id::text"
            " ORDER BY w.created_at, w.app_id, w.repository_id",
            *keys,
        )

    def file_counts(self) -> dict[tuple[str, str], int]:
        """How many delivered files each watch has, by the two ids as they stand there."""
        counts = "SELECT app_id::text, repository_id::text, count(*) FROM app_delivered_files GROUP BY 1, 2"
        return {(app, repository): count for app, repository, count in self._connection.execute(counts)}

    def file_key(self, app: SourceApp, repository: SourceRepository) -> tuple[str, str]:
        """The two ids under which the delivered files of this app and repository stand."""
        by_app, by_repository = (self._keys["app_delivered_files", name] for name in ("app_id", "repository_id"))
        return getattr(app, by_app), getattr(repository, by_repository)

    def files(self, key: tuple[str, str]) -> Iterator[SourceFile]:
        with self._connection.cursor(name="docora_files") as cursor:
            cursor.itersize = _PAGE
            cursor.execute(
                "SELECT file_path, file_sha, delivered_at FROM app_delivered_files"
                " WHERE app_id = %s AND repository_id = %s ORDER BY file_path",
                key,
            )
            for row in cursor:
                yield SourceFile(*row)

    def _all[Row: tuple[Any, ...]](self, kind: type[Row], text: str, *names: str) -> list[Row]:
        with self._connection.cursor(row_factory=class_row(kind)) as cursor:
            return cursor.execute(_query(text, *names)).fetchall()

    def _key_behind(self, table: str, column: str, other: str) -> str:
        """What the column refers to: `id`, or the public id, which has the same name in both tables."""
        matches = "SELECT EXISTS (SELECT FROM {} t JOIN {} o ON o.{}::text = t.{}::text)"
        for key in ("id", column):
            found = self._connection.execute(_query(matches, table, other, key, column)).fetchone()
            if found and found[0]:
                return key
        return "id"


_KEY = re.compile("[0-9a-fA-F]{64}")
_STORED = re.compile("([0-9a-f]{32}):([0-9a-f]{32}):((?:[0-9a-f]{2})*)", re.IGNORECASE)


class WrongKey(Exception):
    """The key cannot be the existing service's; one sentence for whoever gave it."""


class SourceKey:
    """Its `ENCRYPTION_KEY`, 64 hex digits; `WrongKey` for anything else."""

    def __init__(self, digits: str) -> None:
        if not _KEY.fullmatch(digits):
            raise WrongKey("The encryption key of the existing service has 64 hex digits: give its ENCRYPTION_KEY.")
        self._cipher = AESGCM(bytes.fromhex(digits))

    def decrypt(self, stored: str) -> str | None:
        """The plain text; None if it was not encrypted with this key, or is damaged."""
        parts = _STORED.fullmatch(stored)
        if parts is None:
            return None
        nonce, tag, ciphertext = map(bytes.fromhex, parts.groups())
        try:
            return self._cipher.decrypt(nonce, ciphertext + tag, None).decode()
        except (InvalidTag, UnicodeDecodeError):
            return None
