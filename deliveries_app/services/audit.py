"""Write Django's admin log for actions of users. Actions of apps and commands are recorded in runs and operations."""

from collections.abc import Sequence

from django.contrib.admin.models import CHANGE, LogEntry
from django.db.models import Model

from deliveries_app.actors import Actor


def record(actor: Actor, objects: Sequence[Model], message: str, flag: int = CHANGE) -> None:
    """Write one log entry for each object.

    Everyone who can view an object can read its entries. So `message` must not contain secrets, and the entry leaves out
    `actor.address`.
    """
    if actor.user is not None:
        LogEntry.objects.log_actions(actor.user.pk, objects, flag, message)
