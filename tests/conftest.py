"""The servers that the whole suite runs on, and the fixtures that hand them out.

Settings are read when Django is set up, so the environment is made while this file is imported, before any test module
and any other conftest. Under pytest-xdist every worker does this for itself; of the others it takes nothing but a copy of the
migrated database. The process that hands out the tests starts no server.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from redis import Redis

from tests.support import emptying
from tests.support.environment import TestEnvironment
from tests.support.nursery import nursery
from tests.support.postgres import PostgresServer
from tests.support.shared import SharedFolder
from tests.support.time_limit import TimeLimit
from tests.support.valkey import ValkeyServer

environment = TestEnvironment()
environment.install()
emptying.install()
settings.PASSWORD_HASHERS = ["tests.support.passwords.QuickHasher"]  # the real one takes a quarter of a second


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: children would ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "browser: drives a real Chromium; `make test` runs these on PostgreSQL only")
    config.pluginmanager.register(TimeLimit(config))
    if shared := getattr(config, "workerinput", {}).get("shared"):
        environment.shared = SharedFolder(Path(shared))


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_configure_node(node: Any) -> None:
    """Hand every worker the folder that they share; it is in the scratch folder of the process that starts them."""
    if environment.shared is None:
        environment.shared = SharedFolder(environment.scratch.make("shared"))
    node.workerinput["shared"] = str(environment.shared.path)


def pytest_sessionstart(session: pytest.Session) -> None:
    hands_out_tests = session.config.getoption("dist", "no") != "no" and not hasattr(session.config, "workerinput")
    if not hands_out_tests and not session.config.getoption("collectonly"):
        environment.valkey.start()


def pytest_unconfigure() -> None:
    nursery.close()
    environment.close()


@pytest.fixture(autouse=True)
def _reset_servers() -> Iterator[None]:
    """Each test finds an empty Valkey and running servers, whatever the one before did to them."""
    yield
    environment.reset()


@pytest.fixture(scope="session")
def django_db_keepdb() -> bool:
    """A test database that came as a copy is used as it is; it ends with its server."""
    return True


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """pytest-django asks for this before it creates the test database: the moment to start its server."""
    environment.use_test_database(settings.DATABASES["default"])


@pytest.fixture(scope="session")
def postgres_server() -> PostgresServer:
    """The running PostgreSQL of this process, for a test that stops it, or wants a database beside the test database."""
    if environment.postgres is None:
        pytest.skip("needs PostgreSQL; this run is on SQLite")
    environment.postgres.start()
    return environment.postgres


@pytest.fixture(scope="session")
def source_server() -> Iterator[PostgresServer]:
    """A running PostgreSQL for the database of another service, also where Docora's own is on SQLite."""
    if environment.postgres is not None:
        environment.postgres.start()
        yield environment.postgres
        return
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> ValkeyServer:
    """The running Valkey of this process; a test may stop it, and it is up again for the next one."""
    return environment.valkey


@pytest.fixture
def redis_client(valkey_server: ValkeyServer) -> Iterator[Redis]:
    with valkey_server.client() as client:
        yield client


@pytest.fixture(scope="session")
def committed_environment(django_db_setup: None) -> dict[str, str]:
    """The environment for a process that works on the test database and the Valkey of this process."""
    return os.environ | {"DATABASE_URL": environment.database_url(str(connection.settings_dict["NAME"]))}


@pytest.fixture
def instance_environment(transactional_db: None, committed_environment: dict[str, str]) -> dict[str, str]:
    """The same for a `manage.py` process of one test.

    Rows must be committed to be seen by it, hence the transactional database.
    """
    return os.environ | {"DATABASE_URL": committed_environment["DATABASE_URL"]}
