from tests.deliveries.conftest import world
from tests.faults.conftest import daemons

__all__ = ["daemons", "world"]
