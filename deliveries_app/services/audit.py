"""Write Django's admin log for actions of users. Actions of apps and commands are recorded in runs and operations."""

from collections.abc import Sequence

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model

from deliveries_app.actors import Actor


def record(actor: Actor, objects: Sequence[Model], message: str, flag: int = CHANGE) -> None:
    """Write one log entry for each object.

    Everyone who can view an object can read its entries. So `message` must not contain secrets, and the entry leaves out
    `actor.address`.
    """
    if actor.user is None:
        return
    LogEntry.objects.bulk_create(
        LogEntry(
            user_id=actor.user.pk,
            content_type=ContentType.objects.get_for_model(item),
            object_id=str(item.pk),
            object_repr=str(item)[:200],
            action_flag=flag,
            change_message=message,
        )
        for item in objects
    )
