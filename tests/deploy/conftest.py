import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deployment import image_variables, unpack_image
from tests.support.instance import free_port
from tests.support.postgres import PostgresServer
from tests.support.processes import Daemons
from tests.support.shared import SharedFolder
from tests.support.valkey import ValkeyServer

_numbers = itertools.count(1)


@pytest.fixture
def fresh_database(postgres_server: PostgresServer) -> str:
    """The URL of a new database without tables."""
    return postgres_server.create_database(f"deploy_{os.getpid()}_{next(_numbers)}")


@pytest.fixture
def addresses(fresh_database: str, valkey_server: ValkeyServer, tmp_path: Path) -> dict[str, str]:
    """Environment variables that replace a deployment's own hosts, port and volume."""
    return {
        "DATABASE_URL": fresh_database,
        "REDIS_URL": valkey_server.url,
        "DATA_DIR": str(tmp_path / "data"),
        "REPOS_DIR": str(tmp_path / "data" / "repos"),
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
    }


@pytest.fixture
def image(shared_folder: SharedFolder, tmp_path: Path, addresses: dict[str, str]) -> Iterator[Daemons]:
    """Starts processes with the image's files and environment variables."""
    folder = shared_folder.once("image", unpack_image)
    base = {"PATH": os.environ["PATH"]} | {name: value for name, value in image_variables().items() if name != "PATH"}
    daemons = Daemons(tmp_path, base | addresses, project=folder)
    yield daemons
    daemons.close()
