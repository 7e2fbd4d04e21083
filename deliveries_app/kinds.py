"""The three kinds of file notification, and the order in which they are sent."""

from enum import StrEnum


class Kind(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


PHASES = (Kind.DELETE, Kind.CREATE, Kind.UPDATE)
"""Every delete is settled before the first create, every create before the first update."""
