"""What re-sync and retry have in common: a request for one watched repository or for several, and taking it back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from django.db import transaction

from deliveries_app import scheduling
from deliveries_app.actors import RESYNC_PERMISSION, RETRY_PERMISSION, Actor
from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    BulkOperation,
    OperationKind,
    Reason,
    SyncRun,
)
from deliveries_app.progress import runs
from deliveries_app.services import audit
from docora.text import counted

PERMISSIONS = {OperationKind.RESYNC: RESYNC_PERMISSION, OperationKind.RETRY: RETRY_PERMISSION}
_WORDS = {OperationKind.RESYNC: "Forced re-sync", OperationKind.RETRY: "Retry"}


class NotFound(LookupError):
    """What something should be done about is not there; the message is the wire contract's."""


@dataclass(frozen=True)
class Requested:
    """A sync that is queued: its run, and the id of the job that will do it."""

    run: SyncRun
    job_id: str


type Request = Callable[[Actor, Sequence[int], BulkOperation], list[SyncRun]]


def start(
    actor: Actor,
    kind: OperationKind,
    watches: AppRepositoryQuerySet,
    request: Request,
    *,
    title: str,
    app: App | None,
    nothing: str,
) -> BulkOperation:
    """Ask for all of these watches as one operation that can be watched and cancelled. `request` locks those that it is
    true for and makes their runs. `NotFound`, with `nothing` as its words, where there is none."""
    actor.require(PERMISSIONS[kind])
    actor.require_watches(watches)
    with transaction.atomic():
        pks = list(watches.order_by("pk").values_list("pk", flat=True))
        operation = BulkOperation(kind=kind, app=app, requested_by=actor.name, user_id=actor.user_pk, total=len(pks))
        operation.save()
        made = request(actor, pks, operation) if pks else []
        if not made:
            raise NotFound(nothing)
        count = counted(len(made), "repository", "repositories")
        operation.title, operation.total = (title or f"{kind.label.capitalize()} · {count}")[:200], len(made)
        operation.save(update_fields=["title", "total"])
        if len(made) <= runs.LOGGED_ONE_BY_ONE:
            touched = [run.watch for run in made if run.watch]
            audit.record(actor, touched, f"{_WORDS[kind]}, {operation.operation_id}")
        else:
            audit.record(actor, [operation], f"{_WORDS[kind]} of {count}")
        transaction.on_commit(scheduling.enqueue_due, robust=True)
    return operation


def lock(pks: Sequence[int], among: AppRepositoryQuerySet) -> list[int]:
    """Lock those of the watches that are `among` these, for a request of a person. Which they are.

    Somebody may just have mended an endpoint that was down: one watch asks it now rather than after the back-off. Apps
    are locked before watches, as in the claim.
    """
    down = App.objects.filter(watches__in=pks, down_count__gt=0).order_by("pk").distinct().values_list("pk", flat=True)
    resting = App.objects.filter(pk__in=list(down)).select_for_update().order_by("pk")
    App.objects.filter(pk__in=[app.pk for app in resting]).update(cooldown_until=None)
    rows = among.filter(pk__in=pks).order_by("pk")
    return list(rows.select_for_update(of=("self",)).values_list("pk", flat=True))


def open_runs(
    actor: Actor,
    pks: Sequence[int],
    reason: Reason,
    operation: BulkOperation | None,
    left: Mapping[int, runs.Left] | None = None,
) -> list[SyncRun]:
    """One open run for each of the watches, at the generation that they have now. `left`: what some have to send."""
    left = left or {}
    watches = AppRepository.objects.filter(pk__in=pks).select_related("app", "repository").order_by("pk")
    made = SyncRun.objects.bulk_create(
        [
            runs.open_run(
                watch,
                reason,
                requested_by=actor.name,
                user_pk=actor.user_pk,
                operation=operation,
                left=left.get(watch.pk),
            )
            for watch in watches
        ]
    )
    if made:
        runs.log_requested(made)
    return made
