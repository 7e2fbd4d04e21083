import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deliveries_app.models import App
from tests.deliveries.conftest import world
from tests.support.processes import Daemons
from tests.support.world import World

__all__ = ["world"]

RECORD_BATCH, MAX_IN_FLIGHT = 20, 4


@pytest.fixture(scope="session")
def mirror_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder for every test, so that their processes have the same environment, and start quickly."""
    return tmp_path_factory.mktemp("mirrors") / "repos"


@pytest.fixture
def daemons(
    world: World, instance_environment: dict[str, str], mirror_folder: Path, tmp_path: Path, settings
) -> Iterator[Daemons]:
    """Real processes with a short lease and small batches, stopped after the test."""
    App.objects.update(max_in_flight=MAX_IN_FLIGHT)
    world.app.refresh_from_db()
    settings.REPOS_DIR = mirror_folder
    changed = {
        "REPOS_DIR": str(settings.REPOS_DIR),
        "LEASE_SECONDS": "6",
        "RECORD_BATCH": str(RECORD_BATCH),
        "SWEEP_INTERVAL_SECONDS": "1",
    }
    daemons = Daemons(tmp_path, instance_environment | changed)
    yield daemons
    daemons.close()
    shutil.rmtree(mirror_folder, ignore_errors=True)
