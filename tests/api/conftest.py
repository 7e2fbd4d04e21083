import pytest

from deliveries_app.models import AppRepository
from tests.api.caller import Caller
from tests.deliveries.conftest import existing, watches, world
from tests.support.world import World

__all__ = ["existing", "watches", "world"]


@pytest.fixture
def portal(watches: list[AppRepository]) -> Caller:
    """Portal, which watches acme/docs and acme/site; Search watches acme/docs too."""
    return Caller(watches[0].app)


@pytest.fixture
def caller(world: World) -> Caller:
    """The world's app, which watches real repositories."""
    return Caller(world.app)
