from tests.deliveries.conftest import world

__all__ = ["world"]
