"""Pause and resume all syncing or single watches, and reset a repository's circuit breaker."""

from collections.abc import Iterable
from itertools import batched

from django.db import transaction
from django.db.models.functions import Now

from deliveries_app import audit, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, AppRepositoryQuerySet, AuditAction, SyncPause
from deliveries_app.permissions import Permission
from repositories_app import services as repositories
from repositories_app.models import Repository

RESET_AT_ONCE = 100


def reset_circuits(actor: Actor, selected: Iterable[Repository]) -> int:
    """Close the circuits of these repositories and make all of their watches due now. Return the number of watches.

    The failure count starts over, so only a new series of failures opens a circuit again. If a git host is down, the sweep's
    next round tries it. Up to `RESET_AT_ONCE` repositories are reset in one transaction, which locks them before their watches.
    """
    actor.require(Permission.RETRY)
    number = 0
    for some in batched(selected, RESET_AT_ONCE):
        watches = AppRepository.objects.filter(repository__in=[repository.pk for repository in some])
        actor.require_watches(watches)
        with transaction.atomic():
            repositories.close_circuits(some)
            repositories.try_hosts_now(some)
            number += len(scheduling.request_sync(watches.alive(), **scheduling.ALL_ATTEMPTS))
            audit.record(actor, AuditAction.CIRCUIT_RESET, some, "Reset the circuit")
            transaction.on_commit(scheduling.enqueue_due, robust=True)
    return number


def pause_syncing(actor: Actor) -> SyncPause:
    """Pause all syncing. Workers stop within a second; requests and pushes are still recorded and wait."""
    actor.require_app(None, Permission.CONTROL_QUEUE)
    with transaction.atomic():
        pause, is_new = SyncPause.objects.get_or_create(defaults={"paused_by": actor.name})
        if is_new:
            audit.record(actor, AuditAction.ALL_PAUSED, [pause], "Paused all syncing")
    return pause


def resume_syncing(actor: Actor) -> bool:
    """Resume syncing and enqueue everything that is due. Return False if syncing was not paused."""
    actor.require_app(None, Permission.CONTROL_QUEUE)
    with transaction.atomic():
        pause = SyncPause.objects.select_for_update().first()
        if pause is None:
            return False
        audit.record(actor, AuditAction.ALL_RESUMED, [pause], "Resumed all syncing")
        pause.delete()
        transaction.on_commit(scheduling.enqueue_due, robust=True)
    return True


def pause_watches(actor: Actor, watches: AppRepositoryQuerySet) -> list[AppRepository]:
    """Pause these watches, and return those that were not paused. A sync that is running stops within a second.

    Nothing is checked or sent until they are resumed; requests and pushes are still recorded and wait.
    """
    fields: dict[str, object] = {"paused_at": Now(), "paused_by": actor.name}
    return _set_paused(actor, watches.filter(paused_at=None), AuditAction.WATCH_PAUSED, "Paused", fields)


def resume_watches(actor: Actor, watches: AppRepositoryQuerySet) -> list[AppRepository]:
    """Resume these watches, enqueue what is due, and return those that were paused."""
    fields: dict[str, object] = {"paused_at": None, "paused_by": ""}
    resumed = _set_paused(actor, watches.exclude(paused_at=None), AuditAction.WATCH_RESUMED, "Resumed", fields)
    if resumed:
        transaction.on_commit(scheduling.enqueue_due, robust=True)
    return resumed


def _set_paused(
    actor: Actor, watches: AppRepositoryQuerySet, action: AuditAction, message: str, fields: dict[str, object]
) -> list[AppRepository]:
    actor.require_watches(watches, Permission.CHANGE_WATCHES)
    with transaction.atomic():
        rows = watches.alive().order_by("pk").for_list()
        changed = list(rows.select_for_update(no_key=True))
        AppRepository.objects.filter(pk__in=[watch.pk for watch in changed]).update(**fields)
        audit.record(actor, action, changed, message)
    return changed


def current_pause() -> SyncPause | None:
    return SyncPause.objects.first()
