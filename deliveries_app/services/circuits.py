"""A repository's circuit, as a person operates it."""

from django.db import transaction

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Status
from deliveries_app.services import audit, waking
from deliveries_app.services.operations import RETRY_PERMISSION
from repositories_app import services as repositories
from repositories_app.models import Repository


def close_circuit(repository: Repository, *, but: AppRepository | None = None) -> None:
    """The repository can be read: its circuit closes, and the watches that it held back need not wait for the end of the
    cool-down; `but` the one that has just read it."""
    with transaction.atomic():
        if repositories.close_circuit(repository):
            watches = AppRepository.objects.alive().filter(repository=repository)
            waking.wish(watches.exclude(pk=but.pk) if but else watches)
            transaction.on_commit(waking.enqueue_due, robust=True)


def reset_circuit(actor: Actor, repository: Repository) -> int:
    """Close the circuit and let every watch try at once. How many watches that wakes; the count of failures starts over,
    so that only another series of them opens it again."""
    actor.require(RETRY_PERMISSION)
    actor.require_pairs(AppRepository.objects.filter(repository=repository))
    with transaction.atomic():
        repositories.close_circuit(repository)
        woken = waking.wish(AppRepository.objects.alive().filter(repository=repository))
        rows = AppRepository.objects.filter(pk__in=woken)
        rows.update(retry_count=0)  # a person asks: the attempts start over too
        rows.filter(status=Status.FAILED).update(status=Status.PENDING)
        audit.record(actor, [repository], "Reset the circuit")
        transaction.on_commit(waking.enqueue_due, robust=True)
    return len(woken)
