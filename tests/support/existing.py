"""A database of the existing service, with the schema of deployed instances. Tests fill it."""

import secrets
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

import bcrypt
import psycopg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from docora.security.crypto import new_token
from tests.support.histories import sha
from tests.support.postgres import PostgresServer

_unused: WeakKeyDictionary[PostgresServer, list[str]] = WeakKeyDictionary()
"""Empty databases of each server. Creating and dropping one takes more than twice as long as emptying it."""

_EMPTY = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
    DROP SCHEMA IF EXISTS old, public CASCADE;
    CREATE SCHEMA public;
    GRANT USAGE ON SCHEMA public TO PUBLIC;
"""

LONG_AGO = datetime(2025, 3, 1, 12, 30, tzinfo=UTC)

_SCHEMA = """
    CREATE TABLE apps (
        id uuid PRIMARY KEY, app_id varchar(50) UNIQUE NOT NULL, token_hash varchar(255) NOT NULL,
        app_name varchar(100) NOT NULL, base_url varchar(2048) NOT NULL, email varchar(255) NOT NULL, website text,
        description varchar(500), client_auth_key_encrypted varchar(500) NOT NULL,
        created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL
    );
    CREATE TABLE repositories (
        id uuid PRIMARY KEY, repository_id varchar(50) UNIQUE NOT NULL, github_url varchar(2048) UNIQUE NOT NULL,
        owner varchar(255) NOT NULL, name varchar(255) NOT NULL, is_private bool NOT NULL,
        consecutive_failures int NOT NULL DEFAULT 0, circuit_open_until timestamptz,
        created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL
    );
    CREATE TABLE app_repositories (
        id uuid PRIMARY KEY, app_id {id} NOT NULL, repository_id {id} NOT NULL, github_token_encrypted varchar(500),
        status varchar(30) NOT NULL, retry_count int NOT NULL DEFAULT 0, last_error text, last_scanned_at timestamptz,
        created_at timestamptz NOT NULL, UNIQUE (app_id, repository_id)
    );
    CREATE TABLE app_delivered_files (
        app_id {id} NOT NULL, repository_id {id} NOT NULL, file_path varchar(1024) NOT NULL,
        file_sha varchar(64) NOT NULL, delivered_at timestamptz NOT NULL,
        PRIMARY KEY (app_id, repository_id, file_path)
    );
"""


@dataclass(frozen=True)
class ExistingApp:
    id: str
    app_id: str
    token: str
    key: str


@dataclass(frozen=True)
class ExistingRepository:
    id: str
    repository_id: str
    url: str


@dataclass
class ExistingService:
    """An empty database on the tests' server. With `public_ids`, tables reference each other by public id."""

    server: PostgresServer
    public_ids: bool = False
    key: str = field(default_factory=lambda: secrets.token_hex(32))

    def __post_init__(self) -> None:
        if unused := _unused.get(self.server):
            self._name = unused.pop()
        else:
            self._name = f"existing_{secrets.token_hex(6)}"
            self.server.create_database(self._name)
        self.url = self.server.url_of(self._name).replace("postgresql://", "postgres://")
        self.connection = psycopg.connect(self.url, autocommit=True)
        self.connection.execute(_SCHEMA.format(id="varchar(50)" if self.public_ids else "uuid"))

    def drop(self) -> None:
        self.connection.close()
        with psycopg.connect(self.server.url_of(self._name), autocommit=True) as connection:
            connection.execute(_EMPTY)
        _unused.setdefault(self.server, []).append(self._name)

    def encrypt(self, plain: str) -> str:
        """Return `iv:tag:ciphertext` in hex."""
        nonce = secrets.token_bytes(16)
        sealed = AESGCM(bytes.fromhex(self.key)).encrypt(nonce, plain.encode(), None)
        return ":".join(part.hex() for part in (nonce, sealed[-16:], sealed[:-16]))

    def app(self, base_url: str, name: str = "Portal", *, key: str = "", cost: int = 4, **changes: Any) -> ExistingApp:
        """Add an app. A low `cost` makes its bcrypt hash fast; deployed instances use 12."""
        token = new_token()
        app = ExistingApp(str(uuid.uuid4()), f"app_{secrets.token_hex(12)}", token, key or secrets.token_hex(16))
        fields = {
            "id": app.id, "app_id": app.app_id, "app_name": name, "base_url": base_url, "email": "ops@portal.example",
            "token_hash": bcrypt.hashpw(token.encode(), bcrypt.gensalt(cost)).decode(),
            "client_auth_key_encrypted": self.encrypt(app.key), "created_at": LONG_AGO, "updated_at": LONG_AGO,
        }  # fmt: skip
        self._insert("apps", fields | changes)
        return app

    def repository(self, url: str, **changes: Any) -> ExistingRepository:
        repository = ExistingRepository(str(uuid.uuid4()), f"repo_{secrets.token_hex(12)}", url)
        owner, name = url.removesuffix(".git").split("/")[-2:]
        fields = {
            "id": repository.id, "repository_id": repository.repository_id, "github_url": url, "owner": owner,
            "name": name, "is_private": False, "created_at": LONG_AGO, "updated_at": LONG_AGO,
        }  # fmt: skip
        self._insert("repositories", fields | changes)
        return repository

    def watch(
        self,
        app: ExistingApp,
        repository: ExistingRepository,
        files: Mapping[str, bytes] | None = None,
        *,
        token: str = "",
        **changes: Any,
    ) -> None:
        """Add a watch, `synced` by default, with delivery records for these files."""
        fields = {
            "id": str(uuid.uuid4()), "app_id": self.ref(app), "repository_id": self.ref(repository),
            "github_token_encrypted": self.encrypt(token) if token else None, "status": "synced",
            "last_scanned_at": LONG_AGO + timedelta(days=1), "created_at": LONG_AGO,
        }  # fmt: skip
        self._insert("app_repositories", fields | changes)
        self.deliver(app, repository, ((path, sha(content)) for path, content in (files or {}).items()))

    def deliver(self, app: ExistingApp, repository: ExistingRepository, files: Iterable[tuple[str, str]]) -> None:
        """Add delivery records for these paths and SHA-256 digests."""
        copy = "COPY app_delivered_files (app_id, repository_id, file_path, file_sha, delivered_at) FROM STDIN"
        with self.connection.cursor() as cursor, cursor.copy(copy) as rows:
            for path, digest in files:
                rows.write_row((self.ref(app), self.ref(repository), path, digest, LONG_AGO))

    def ref(self, row: ExistingApp | ExistingRepository) -> str:
        if not self.public_ids:
            return row.id
        return row.app_id if isinstance(row, ExistingApp) else row.repository_id

    def _insert(self, table: str, fields: Mapping[str, Any]) -> None:
        placeholders = ", ".join(["%s"] * len(fields))
        self.connection.execute(
            f"INSERT INTO {table} ({', '.join(fields)}) VALUES ({placeholders})", list(fields.values())
        )
