from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.world import World


@pytest.fixture
def world(transactional_db: None, tmp_path: Path, settings) -> Iterator[World]:
    settings.REPOS_DIR = tmp_path / "repos"
    world = World(tmp_path)
    yield world
    world.close()
