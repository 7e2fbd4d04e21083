"""Force re-sync: clear the delivery records, queue a fresh snapshot job, send everything again (`engine.md` §3).

Clearing is one number: the floor below which no row counts as delivered. The old rows stay, because they tell which
files the app may hold and has to be told to delete.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import F, Max, OuterRef, QuerySet, Subquery, Value
from django.db.models.functions import Coalesce, Now
from django.utils import timezone

from deliveries_app import runs
from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    BulkOperation,
    Outcome,
    Reason,
    Status,
    SyncRun,
)
from deliveries_app.services import audit, waking

PERMISSION = "deliveries_app.resync_apprepository"
LOGGED_ONE_BY_ONE = 100


class NotFound(LookupError):
    """What should be re-synced is not there; the message is the wire contract's."""


@dataclass(frozen=True)
class Resynced:
    """A re-sync that is queued: its run, and the id of the job that will do it."""

    run: SyncRun
    job_id: str


def resync_single(actor: Actor, pair: AppRepository, *, checked: bool = False) -> Resynced:
    """Send everything of one pair again, whatever it is doing now. `checked`: the caller had its own permission."""
    if not checked:
        actor.require(PERMISSION)
    actor.require_pair(pair)
    with transaction.atomic():
        made = _request(actor, [pair.pk], None)
        if not made:
            raise NotFound("App-repository link not found")
        pair.refresh_from_db()
        audit.record(actor, [pair], f"Forced re-sync of {pair}")
        waking.enqueue(pair, "high")
    return Resynced(made[0], pair.job_id)


def resync_by_app(actor: Actor, app: App) -> BulkOperation:
    """Send everything of every repository of one app again."""
    actor.require_app(app)
    pairs = AppRepository.objects.filter(app=app)
    return resync_many(actor, pairs, f"Re-sync all · {app.name}", app=app, nothing="No repositories for this app")


def resync_many(
    actor: Actor,
    pairs: AppRepositoryQuerySet,
    title: str = "",
    *,
    app: App | None = None,
    nothing: str = "No watched repositories are selected",
) -> BulkOperation:
    """Send everything of these pairs again, as one operation that can be watched and cancelled."""
    actor.require(PERMISSION)
    actor.require_pairs(pairs)
    with transaction.atomic():
        pks = list(pairs.alive().order_by("pk").values_list("pk", flat=True))
        if not pks:
            raise NotFound(nothing)
        count = f"{len(pks):,} {'repository' if len(pks) == 1 else 'repositories'}"
        operation = BulkOperation.objects.create(
            title=(title or f"Re-sync · {count}")[:200],
            app=app,
            requested_by=actor.name,
            user_id=actor.user_pk,
            total=len(pks),
        )
        made = _request(actor, pks, operation)
        BulkOperation.objects.filter(pk=operation.pk).update(total=len(made))
        operation.total = len(made)
        if len(made) <= LOGGED_ONE_BY_ONE:
            audit.record(actor, [run.pair for run in made if run.pair], f"Forced re-sync, {operation.operation_id}")
        else:
            audit.record(actor, [operation], f"Forced re-sync of {count}")
        transaction.on_commit(waking.enqueue_due, robust=True)
    return operation


def _request(actor: Actor, pks: Sequence[int], operation: BulkOperation | None) -> list[SyncRun]:
    """The re-sync itself: one UPDATE clears the records and fences whoever is at work; one open run for each pair."""
    # Somebody may just have mended an endpoint that was down: one pair asks it now rather than after the back-off.
    # Apps are locked before pairs, as in the claim.
    down = App.objects.filter(watches__in=pks, down_count__gt=0).order_by("pk").distinct().values_list("pk", flat=True)
    resting = App.objects.filter(pk__in=list(down)).select_for_update().order_by("pk")
    App.objects.filter(pk__in=[app.pk for app in resting]).update(not_before=None)
    rows = AppRepository.objects.alive().filter(pk__in=pks)
    locked = list(rows.select_for_update(of=("self",)).order_by("pk").values_list("pk", flat=True))
    AppRepository.objects.filter(pk__in=locked).update(
        generation=F("generation") + 1,
        resend_floor=F("generation") + 1,
        status=Status.PENDING,
        retry_count=0,
        last_error="",
        last_error_cause="",
        wanted=F("wanted") + 1,
        next_sync_at=Now(),
    )
    pairs = AppRepository.objects.filter(pk__in=locked).select_related("app", "repository").order_by("pk")
    return SyncRun.objects.bulk_create(
        [
            runs.open_run(pair, Reason.RESYNC, requested_by=actor.name, user_pk=actor.user_pk, operation=operation)
            for pair in pairs
        ]
    )


def cancel_operation(actor: Actor, operation: BulkOperation) -> int:
    """Take back what has not been finished. How many repositories that concerns; 0 when it had ended already."""
    actor.require(PERMISSION)
    actor.require_app(operation.app)
    with transaction.atomic():
        open_runs = operation.runs.filter(outcome="")
        cancelled = _cancel(open_runs)
        BulkOperation.objects.filter(pk=operation.pk, cancelled_at=None, ended_at=None).update(
            cancelled_at=timezone.now(), cancelled_by=actor.name
        )
        runs.close_operations([operation.pk])
        if cancelled:
            audit.record(actor, [operation], f"Cancelled; {cancelled} repositories had not finished")
    operation.refresh_from_db()
    return cancelled


def cancel_resync(actor: Actor, pair: AppRepository) -> int:
    """Take back the newest open re-sync of one pair. 0 when there is none."""
    actor.require(PERMISSION)
    actor.require_pair(pair)
    with transaction.atomic():
        newest = SyncRun.objects.filter(pair=pair, outcome="", reason=Reason.RESYNC).order_by("-generation").first()
        if newest is None:
            return 0
        cancelled = _cancel(SyncRun.objects.filter(pk=newest.pk))
        if newest.operation_id:
            runs.close_operations([newest.operation_id])
        audit.record(actor, [pair], "Cancelled the re-sync")
    return cancelled


def _cancel(open_runs: QuerySet[SyncRun]) -> int:
    """The pairs' floors go back to the newest re-sync that is not cancelled; the generation goes on, so that a worker
    of the cancelled request can record nothing for the next one. Pairs are locked before runs, as everywhere."""
    pks = sorted({pk for pk in open_runs.values_list("pair_id", flat=True) if pk is not None})
    pairs = AppRepository.objects.filter(pk__in=pks)
    list(pairs.select_for_update().order_by("pk").values_list("pk", flat=True))
    chosen = list(open_runs.filter(outcome=""))
    runs.cancel_runs(chosen)
    still_asked = (
        SyncRun.objects.filter(pair=OuterRef("pk"), reason=Reason.RESYNC)
        .exclude(outcome=Outcome.CANCELLED)
        .order_by()
        .values("pair")
        .annotate(highest=Max("generation"))
        .values("highest")
    )
    pairs.filter(pk__in=[run.pair_id for run in chosen]).update(
        generation=F("generation") + 1,
        resend_floor=Coalesce(Subquery(still_asked), Value(1)),
        wanted=F("wanted") + 1,
        next_sync_at=Now(),
    )
    transaction.on_commit(waking.enqueue_due, robust=True)
    return len(chosen)


def dismiss_operation(actor: Actor, operation: BulkOperation) -> None:
    """Take the finished operation's box off the pages."""
    actor.require(PERMISSION)  # it goes for everybody who watches
    actor.require_app(operation.app)
    BulkOperation.objects.filter(pk=operation.pk, ended_at__isnull=False).update(dismissed_at=timezone.now())
