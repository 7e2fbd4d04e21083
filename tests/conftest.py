"""The servers that the whole suite runs on, and the fixtures that hand them out.

Django reads its settings when it is set up, so the environment is created while this file is imported, before any test
module and any other conftest. Under pytest-xdist every worker does this for itself; the workers share only the migrated
database, of which each uses a copy. The process that distributes the tests starts no server.
"""

import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from redis import Redis

from docora.stack import with_large_stack
from tests.support import fast_flush, forget_compiled
from tests.support.environment import TestEnvironment, migrate_postgres, migrate_sqlite
from tests.support.memory import use_memory_for_temporary_files
from tests.support.nursery import nursery
from tests.support.postgres import PostgresServer
from tests.support.shared import SharedFolder
from tests.support.time_limit import TimeLimit
from tests.support.valkey import ValkeyServer

gc.disable()  # until the tests are collected: nothing is thrown away meanwhile
use_memory_for_temporary_files()
environment = TestEnvironment()
environment.install()
fast_flush.install()
forget_compiled.install()
pytest.Function.runtest = with_large_stack(pytest.Function.runtest)  # type: ignore[method-assign]
settings.WHITENOISE_AUTOREFRESH = True  # otherwise each test client looks for all static files first
settings.PASSWORD_HASHERS = ["tests.support.passwords.QuickHasher"]  # the real one takes a quarter of a second


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: children would ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "browser: drives a real Chromium; `make test` runs these on PostgreSQL only")
    config.addinivalue_line(
        "markers", "early(process): takes long; runs first, in this process of the six of `make test`"
    )
    config.pluginmanager.register(TimeLimit(config))
    if shared := getattr(config, "workerinput", {}).get("shared"):
        environment.shared = SharedFolder(Path(shared))


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_configure_node(node: Any) -> None:
    """Give every worker the path of the shared folder, which lies in the scratch folder of the process that starts them."""
    if environment.shared is None:
        environment.shared = SharedFolder(environment.scratch.make("shared"))
    node.workerinput["shared"] = str(environment.shared.path)


def pytest_sessionstart(session: pytest.Session) -> None:
    hands_out_tests = session.config.getoption("dist", "no") != "no" and not hasattr(session.config, "workerinput")
    if not hands_out_tests and not session.config.getoption("collectonly"):
        environment.valkey.start()


def pytest_collection(session: pytest.Session) -> None:
    """Import the test modules before they are collected, each worker in another order.

    In a fresh clone pytest has to rewrite the assertions of every module, which takes twice as long as the collection. So the
    workers share this work instead of all doing it at the same time.
    """
    if worker := getattr(session.config, "workerinput", None):
        files = sorted(session.config.rootpath.glob("tests/**/test_*.py"))
        if not all(file.with_name("__pycache__").exists() for file in files):
            first = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
            for file in files[first:] + files[:first]:
                with contextlib.suppress(Exception):  # the collection reports it
                    import_module(".".join(file.relative_to(session.config.rootpath).with_suffix("").parts))


@pytest.hookimpl(trylast=True)  # after pytest-django, which sorts the tests by how they use the database
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each process begin with its early tests.

    Otherwise, the last of them would run alone at the end. Most of them wait: one after another they leave the processors to the
    other processes. pytest-xdist gives each process an equal part of the list.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    early: list[list[pytest.Item]] = [[] for _ in range(processes)]
    others: list[pytest.Item] = []
    for item in items:
        marker = item.get_closest_marker("early")
        (early[marker.args[0] % processes] if marker else others).append(item)
    ordered: list[pytest.Item] = []
    for number, first in enumerate(early):
        end = len(items) * (number + 1) // processes
        ordered += first
        taken = max(0, end - len(ordered))
        ordered += others[:taken]
        del others[:taken]
    items[:] = ordered


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()  # no collection looks at the thousands of tests again, in this process or in one that it forks


def pytest_unconfigure() -> None:
    nursery.close()
    environment.close()


@pytest.fixture(autouse=True)
def _reset_servers() -> Iterator[None]:
    """After each test, empty Valkey and restart servers that the test stopped."""
    yield
    environment.reset()


@pytest.fixture(scope="session")
def django_db_keepdb() -> bool:
    """Use the copied test database as it is, and don't destroy it: its server is temporary."""
    return True


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """Start the database server. pytest-django requests this fixture before it creates the test database."""
    environment.use_test_database(settings.DATABASES["default"])


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> SharedFolder:
    """What the processes of this run create once."""
    return environment.shared or SharedFolder(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def migrated_sqlite(shared_folder: SharedFolder) -> Path:
    """A SQLite database that `manage.py migrate` has created. Copy it before you write to it."""
    return shared_folder.once("sqlite", migrate_sqlite)


@pytest.fixture(scope="session")
def migrated_postgres(shared_folder: SharedFolder) -> Path:
    """The data of a stopped PostgreSQL, for `PostgresServer.template`: `docora` is empty, `TEST_DATABASE` is migrated."""
    return shared_folder.once("postgres", migrate_postgres)


@pytest.fixture(scope="session")
def postgres_server() -> PostgresServer:
    """The PostgreSQL of this process, for tests that stop it or need another database."""
    if environment.postgres is None:
        pytest.skip("needs PostgreSQL; this run is on SQLite")
    environment.postgres.start()
    return environment.postgres


@pytest.fixture(scope="session")
def source_server() -> Iterator[PostgresServer]:
    """A PostgreSQL for the database of another service, even if Docora itself runs on SQLite."""
    if environment.postgres is not None:
        environment.postgres.start()
        yield environment.postgres
        return
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> ValkeyServer:
    """The Valkey of this process. A test may stop it; it is restarted before the next one."""
    return environment.valkey


@pytest.fixture
def redis_client(valkey_server: ValkeyServer) -> Iterator[Redis]:
    with valkey_server.client() as client:
        yield client


@pytest.fixture(scope="session")
def committed_environment(django_db_setup: None) -> dict[str, str]:
    """Environment variables for a process that uses the test database and the Valkey of this process."""
    return os.environ | {"DATABASE_URL": environment.database_url(str(connection.settings_dict["NAME"]))}


@pytest.fixture
def instance_environment(transactional_db: None, committed_environment: dict[str, str]) -> dict[str, str]:
    """The same for the `manage.py` processes of one test, which only see committed rows: hence `transactional_db`."""
    return os.environ | {"DATABASE_URL": committed_environment["DATABASE_URL"]}
