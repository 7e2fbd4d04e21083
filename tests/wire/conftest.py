from collections.abc import Iterator
from typing import Any

import pytest

from tests.deliveries.conftest import world
from tests.wire.clients import Node

__all__ = ["world"]


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.close()


@pytest.fixture(scope="session")
def receivers() -> Iterator[dict[str, Any]]:
    """The receivers that run, by the name of their sample."""
    receivers: dict[str, Any] = {}
    yield receivers
    for receiver in receivers.values():
        receiver.close()
