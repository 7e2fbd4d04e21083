from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client

from deliveries_app.models import AppRepository
from tests.deliveries.sender import KEY, Sender
from tests.support.existing import ExistingService
from tests.support.postgres import PostgresServer
from tests.support.receiver import Receiver
from tests.support.staff import VIEWS, make_app, make_watch, staff
from tests.support.world import World


@pytest.fixture
def world(transactional_db: None, tmp_path: Path, settings) -> Iterator[World]:
    settings.REPOS_DIR = tmp_path / "repos"
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def existing(source_server: PostgresServer) -> Iterator[ExistingService]:
    """An empty database of the existing service."""
    existing = ExistingService(source_server)
    yield existing
    existing.drop()


@pytest.fixture
def admin(db) -> Client:
    """The superuser root."""
    client = Client()
    client.force_login(User.objects.create_superuser("root", password="x"))
    return client


@pytest.fixture
def operator(db) -> Client:
    """A staff user who can view everything and re-sync, but change nothing."""
    return staff("anna", *(f"view_{model}" for model in VIEWS), "resync_apprepository")


@pytest.fixture
def viewer(db) -> Client:
    return staff("victor", *(f"view_{model}" for model in VIEWS))


@pytest.fixture
def watches(db) -> list[AppRepository]:
    """Portal watches acme/docs and acme/site, Search watches acme/docs."""
    portal, search = make_app("Portal"), make_app("Search")
    return [make_watch(portal, "docs"), make_watch(portal, "site"), make_watch(search, "docs")]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with Receiver(tmp_path / "copies", KEY) as running:
        yield running


@pytest.fixture
def sender(receiver: Receiver) -> Iterator[Sender]:
    sender = Sender(receiver)
    yield sender
    sender.connection.close()
