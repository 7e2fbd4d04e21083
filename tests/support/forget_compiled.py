"""Let queries whose SQL is built once follow a changed setting.

Settings never change in a process of Docora, only in tests. `LEASE_SECONDS` is the only one in the SQL of these queries
(`test_compiled.py`). Building it again takes longer than many tests, so other settings don't cause it.
"""

from django.core.signals import setting_changed

from docora.db import compiled


def install() -> None:
    """Forget the SQL in this process whenever a test changes `LEASE_SECONDS`."""
    setting_changed.connect(_forget)


def _forget(setting: str, **_: object) -> None:
    if setting == "LEASE_SECONDS":
        for query in list(compiled._queries):
            query._select = None
            query._updates = {}
