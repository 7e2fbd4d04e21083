"""The audit log: Django's admin log for users, `AppAction` for client apps. Runs and operations record who requested them."""

from collections.abc import Sequence

from django.contrib.admin.models import CHANGE, LogEntry
from django.db.models import Model

from deliveries_app.actors import Actor
from deliveries_app.models import AppAction, AppRepository


def record(actor: Actor, objects: Sequence[Model], message: str, flag: int = CHANGE) -> None:
    """Write one entry for each object. Actions of commands and of Docora itself are not recorded here.

    Everyone who can view an object can read its entries, so `message` must not contain secrets.
    """
    if actor.user is not None:
        LogEntry.objects.log_actions(actor.user.pk, objects, flag, message)
    elif actor.app is not None:
        AppAction.objects.bulk_create(
            AppAction(
                app=actor.app,
                watch=changed if isinstance(changed, AppRepository) else None,
                subject=str(changed.repository if isinstance(changed, AppRepository) else changed),
                message=message[:200],
                address=actor.address,
            )
            for changed in objects
        )
