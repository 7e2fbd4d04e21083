"""The environment of one test process: its own PostgreSQL (or SQLite), Valkey and data directory.

The addresses are known before any server starts, so Django can read its settings at once. Valkey starts with the session,
PostgreSQL with the first test that uses the database.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import django
from django.conf import settings

from tests.support.nursery import read_by_python
from tests.support.postgres import PostgresServer
from tests.support.servers import ScratchFolder
from tests.support.shared import SharedFolder, copy
from tests.support.valkey import ValkeyServer

PROJECT = Path(__file__).resolve().parents[2]
TEST_DATABASE = "test_docora"


class TestEnvironment:
    """The servers of this process. `DOCORA_TEST_DATABASE=sqlite` replaces PostgreSQL with a SQLite file."""

    __test__ = False  # pytest would take a class named Test… for tests

    def __init__(self) -> None:
        choice = os.environ.get("DOCORA_TEST_DATABASE") or "postgres"
        if choice not in {"postgres", "sqlite"}:
            raise ValueError(f"DOCORA_TEST_DATABASE must be postgres or sqlite, but is {choice!r}.")
        self.scratch = ScratchFolder()
        self.data_dir = self.scratch.make("data")
        self.valkey = ValkeyServer(self.scratch)
        self._redis = self.valkey.client()  # connects again after a restart
        self.postgres = PostgresServer(self.scratch) if choice == "postgres" else None
        self.shared: SharedFolder | None = None  # set if this run has several processes

    def variables(self) -> dict[str, str]:
        """Return the settings that differ from their defaults, as environment variables."""
        return {
            "DATA_DIR": str(self.data_dir),
            "DATABASE_URL": self.postgres.url if self.postgres else self.sqlite_url(self.data_dir / "docora.sqlite3"),
            "REDIS_URL": self.valkey.url,
            "ALLOWED_GIT_HOSTS": "127.0.0.1:*",
            "ALLOWED_PRIVATE_NETWORKS": "127.0.0.0/8",
            "ALLOW_HTTP": "yes",
            "LOG_FORMAT": "json",
        }

    def install(self) -> None:
        """Use these settings in this process and in those it starts, and set up Django.

        The developer's own settings are removed, and so are the variables that Python itself reads: the nursery can only
        start children that have the same ones. `DJANGO_SETTINGS_MODULE` does not stay in the environment: an xdist worker
        would inherit it, and pytest-django would read the settings before that worker has its own.
        """
        if settings.configured or "DJANGO_SETTINGS_MODULE" in os.environ:
            raise RuntimeError("Unset DJANGO_SETTINGS_MODULE: the tests set it themselves.")
        for name in {*setting_names(), *filter(read_by_python, os.environ)}:
            os.environ.pop(name, None)
        os.environ.update(self.variables())
        os.environ["DOCORA_ENV_FILE"] = os.devnull
        os.environ["DJANGO_SETTINGS_MODULE"] = "docora.settings"
        django.setup()
        del os.environ["DJANGO_SETTINGS_MODULE"]

    def use_test_database(self, database: dict[str, Any]) -> None:
        """Point Django's `database` settings at the test database, and start its server.

        SQLite uses a file, because in-memory databases that threads share lock whole tables and have no write-ahead log.
        If the run has several processes, the first one migrates a database and each uses a copy of it. A single process
        lets Django create the test database.
        """
        if self.postgres:
            database.setdefault("TEST", {})["NAME"] = TEST_DATABASE
            if self.shared and not self.postgres.started:
                self.postgres.template = self.shared.once("postgres", migrate_postgres)
            self.postgres.start()
        else:
            file = self.data_dir / "test.sqlite3"
            database.setdefault("TEST", {})["NAME"] = str(file)
            if self.shared:
                copy(self.shared.once("sqlite", migrate_sqlite), file)

    def database_url(self, name: str) -> str:
        """Return the URL of the database that Django calls `name` (on SQLite: its file)."""
        return self.postgres.url_of(name) if self.postgres else self.sqlite_url(Path(name))

    @staticmethod
    def sqlite_url(path: Path) -> str:
        return f"sqlite:///{path}"

    def reset(self) -> None:
        """Empty Valkey and restart servers that a test has stopped."""
        if self.postgres and self.postgres.started:
            self.postgres.start()
        if self.valkey.started:
            self.valkey.start()
            self._redis.flushall()

    def close(self) -> None:
        self.valkey.stop()
        if self.postgres:
            self.postgres.stop()
        self.scratch.close()


def setting_names() -> list[str]:
    """Return the names of all settings, as `.env.example` lists them."""
    return re.findall(r"(?m)^# ([A-Z_]+)=", (PROJECT / ".env.example").read_text())


def migrate_postgres(data: Path) -> None:
    """Fill `data` with the data directory of a PostgreSQL that has a migrated test database."""
    with PostgresServer() as server:
        _migrate(server.create_database(TEST_DATABASE))
        server.stop()
        copy(server.data, data)


def migrate_sqlite(file: Path) -> None:
    """Create a migrated database in `file`."""
    _migrate(TestEnvironment.sqlite_url(file))


def _migrate(url: str) -> None:
    """Migrate an empty database."""
    subprocess.run(
        [sys.executable, str(PROJECT / "manage.py"), "migrate", "--verbosity", "0"],
        env=os.environ | {"DATABASE_URL": url},
        stdin=subprocess.DEVNULL,
        check=True,
    )
