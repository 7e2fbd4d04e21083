"""Pausing all syncing, and letting it go on: nothing is checked or sent meanwhile, and nothing that is due is lost."""

from django.db import transaction

from deliveries_app.actors import Actor
from deliveries_app.models import SyncPause
from deliveries_app.services import audit, waking
from deliveries_app.services.operations import CONTROL_PERMISSION


def pause_syncing(actor: Actor) -> SyncPause:
    """Workers hand over what they are at within a second; requests and pushes are recorded and wait."""
    actor.require(CONTROL_PERMISSION)
    actor.require_app(None)
    with transaction.atomic():
        pause, is_new = SyncPause.objects.get_or_create(defaults={"paused_by": actor.name})
        if is_new:
            audit.record(actor, [pause], "Paused all syncing")
    return pause


def resume_syncing(actor: Actor) -> bool:
    """Everything that is due goes on. False when nothing was paused."""
    actor.require(CONTROL_PERMISSION)
    actor.require_app(None)
    with transaction.atomic():
        pause = SyncPause.objects.select_for_update().first()
        if pause is None:
            return False
        audit.record(actor, [pause], "Resumed all syncing")
        pause.delete()
        transaction.on_commit(waking.enqueue_due, robust=True)
    return True


def current_pause() -> SyncPause | None:
    return SyncPause.objects.first()
