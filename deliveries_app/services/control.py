"""Pause and resume all syncing, and reset a repository's circuit breaker."""

from django.db import transaction

from deliveries_app import scheduling
from deliveries_app.actors import CONTROL_PERMISSION, RETRY_PERMISSION, Actor
from deliveries_app.models import AppRepository, Status, SyncPause
from deliveries_app.services import audit
from repositories_app import services as repositories
from repositories_app.models import Repository


def reset_circuit(actor: Actor, repository: Repository) -> int:
    """Close the circuit and make all of the repository's watches due now. Return their number.

    The failure count starts over, so only a new series of failures opens the circuit again.
    """
    actor.require(RETRY_PERMISSION)
    actor.require_watches(AppRepository.objects.filter(repository=repository))
    with transaction.atomic():
        repositories.close_circuit(repository)
        woken = scheduling.request_sync(AppRepository.objects.alive().filter(repository=repository))
        rows = AppRepository.objects.filter(pk__in=woken)
        rows.update(retry_count=0)  # a manual reset grants all attempts again
        rows.filter(status=Status.FAILED).update(status=Status.PENDING)
        audit.record(actor, [repository], "Reset the circuit")
        transaction.on_commit(scheduling.enqueue_due, robust=True)
    return len(woken)


def pause_syncing(actor: Actor) -> SyncPause:
    """Pause all syncing. Workers stop within a second; requests and pushes are still recorded and wait."""
    actor.require(CONTROL_PERMISSION)
    actor.require_app(None)
    with transaction.atomic():
        pause, is_new = SyncPause.objects.get_or_create(defaults={"paused_by": actor.name})
        if is_new:
            audit.record(actor, [pause], "Paused all syncing")
    return pause


def resume_syncing(actor: Actor) -> bool:
    """Resume syncing and enqueue everything that is due. Return False if syncing was not paused."""
    actor.require(CONTROL_PERMISSION)
    actor.require_app(None)
    with transaction.atomic():
        pause = SyncPause.objects.select_for_update().first()
        if pause is None:
            return False
        audit.record(actor, [pause], "Resumed all syncing")
        pause.delete()
        transaction.on_commit(scheduling.enqueue_due, robust=True)
    return True


def current_pause() -> SyncPause | None:
    return SyncPause.objects.first()
