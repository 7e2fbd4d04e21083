from collections.abc import Iterator

import pytest

from tests.deliveries.conftest import world
from tests.wire.clients import Node

__all__ = ["world"]


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.close()
