from tests.deliveries.conftest import world
from tests.faults.conftest import daemons, mirror_folder

__all__ = ["daemons", "mirror_folder", "world"]
