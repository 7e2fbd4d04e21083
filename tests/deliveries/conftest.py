from collections.abc import Iterator
from pathlib import Path

import pytest
from django.test import Client

from tests.support.staff import VIEWS, staff
from tests.support.world import World


@pytest.fixture
def world(transactional_db: None, tmp_path: Path, settings) -> Iterator[World]:
    settings.REPOS_DIR = tmp_path / "repos"
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def operator(db) -> Client:
    """Sees everything and may re-sync; may change nothing."""
    return staff("anna", *(f"view_{model}" for model in VIEWS), "resync_apprepository")


@pytest.fixture
def viewer(db) -> Client:
    return staff("victor", *(f"view_{model}" for model in VIEWS))
