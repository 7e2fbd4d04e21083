"""What re-sync and retry have in common: a request for one watched repository or for several, and taking it back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction
from django.db.models import Case, Exists, F, Max, OuterRef, Q, QuerySet, Subquery, Value, When
from django.db.models.functions import Coalesce, Now
from django.utils import timezone

from deliveries_app import runs
from deliveries_app.actors import Actor
from deliveries_app.clock import from_now
from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    BulkOperation,
    OperationKind,
    Outcome,
    Reason,
    Status,
    SyncRun,
)
from deliveries_app.services import audit, waking
from docora import queueing
from docora.text import counted

RESYNC_PERMISSION = "deliveries_app.resync_apprepository"
RETRY_PERMISSION = "deliveries_app.retry_apprepository"
CONTROL_PERMISSION = "deliveries_app.control_queue"

_PERMISSIONS = {OperationKind.RESYNC: RESYNC_PERMISSION, OperationKind.RETRY: RETRY_PERMISSION}
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
    pairs: AppRepositoryQuerySet,
    request: Request,
    *,
    title: str,
    app: App | None,
    nothing: str,
) -> BulkOperation:
    """Ask for all of these pairs as one operation that can be watched and cancelled. `request` locks those that it is
    true for and makes their runs. `NotFound`, with `nothing` as its words, where there is none."""
    actor.require(_PERMISSIONS[kind])
    actor.require_pairs(pairs)
    with transaction.atomic():
        pks = list(pairs.order_by("pk").values_list("pk", flat=True))
        operation = BulkOperation(kind=kind, app=app, requested_by=actor.name, user_id=actor.user_pk, total=len(pks))
        operation.save()
        made = request(actor, pks, operation) if pks else []
        if not made:
            raise NotFound(nothing)
        count = counted(len(made), "repository", "repositories")
        operation.title, operation.total = (title or f"{kind.label.capitalize()} · {count}")[:200], len(made)
        operation.save(update_fields=["title", "total"])
        if len(made) <= runs.LOGGED_ONE_BY_ONE:
            touched = [run.pair for run in made if run.pair]
            audit.record(actor, touched, f"{_WORDS[kind]}, {operation.operation_id}")
        else:
            audit.record(actor, [operation], f"{_WORDS[kind]} of {count}")
        transaction.on_commit(waking.enqueue_due, robust=True)
    return operation


def lock(pks: Sequence[int], among: AppRepositoryQuerySet) -> list[int]:
    """Lock those of the pairs that are `among` these, for a request of a person. Which they are.

    Somebody may just have mended an endpoint that was down: one pair asks it now rather than after the back-off. Apps
    are locked before pairs, as in the claim.
    """
    down = App.objects.filter(watches__in=pks, down_count__gt=0).order_by("pk").distinct().values_list("pk", flat=True)
    resting = App.objects.filter(pk__in=list(down)).select_for_update().order_by("pk")
    App.objects.filter(pk__in=[app.pk for app in resting]).update(not_before=None)
    rows = among.filter(pk__in=pks).order_by("pk")
    return list(rows.select_for_update(of=("self",)).values_list("pk", flat=True))


def open_runs(
    actor: Actor,
    pks: Sequence[int],
    reason: Reason,
    operation: BulkOperation | None,
    left: Mapping[int, runs.Left] | None = None,
) -> list[SyncRun]:
    """One open run for each of the pairs, at the generation that they have now. `left`: what some have to send."""
    left = left or {}
    pairs = AppRepository.objects.filter(pk__in=pks).select_related("app", "repository").order_by("pk")
    made = SyncRun.objects.bulk_create(
        [
            runs.open_run(
                pair,
                reason,
                requested_by=actor.name,
                user_pk=actor.user_pk,
                operation=operation,
                left=left.get(pair.pk),
            )
            for pair in pairs
        ]
    )
    if made:
        runs.tell_requested(made)
    return made


def cancel_operation(actor: Actor, operation: BulkOperation) -> int:
    """Take back what has not been finished. How many repositories that concerns; 0 when it had ended already."""
    actor.require(_PERMISSIONS[OperationKind(operation.kind)])
    actor.require_app(operation.app)
    with transaction.atomic():
        cancelled = _cancel(operation.runs.filter(outcome=""))
        BulkOperation.objects.filter(pk=operation.pk, cancelled_at=None, ended_at=None).update(
            cancelled_at=timezone.now(), cancelled_by=actor.name
        )
        runs.close_operations([operation.pk])
        if cancelled:
            audit.record(actor, [operation], f"Cancelled; {cancelled} repositories had not finished")
    operation.refresh_from_db()
    return cancelled


def cancel_request(actor: Actor, pair: AppRepository) -> int:
    """Take back the newest open re-sync or retry of one pair. 0 when there is none."""
    actor.require_pair(pair)
    asked = SyncRun.objects.filter(pair=pair, outcome="", reason__in=[Reason.RESYNC, Reason.RETRY])
    with transaction.atomic():
        newest = asked.order_by("-generation", "-pk").first()
        if newest is None:
            actor.require(RESYNC_PERMISSION, RETRY_PERMISSION)
            return 0
        actor.require(RETRY_PERMISSION if newest.reason == Reason.RETRY else RESYNC_PERMISSION)
        cancelled = _cancel(SyncRun.objects.filter(pk=newest.pk))
        if newest.operation_id:
            runs.close_operations([newest.operation_id])
        audit.record(actor, [pair], f"Cancelled the {newest.get_reason_display()}")
    return cancelled


def stop_sync(actor: Actor, pair: AppRepository) -> bool:
    """Stop what is going on about one pair, or waits to: its worker leaves at its next batch, its requests are taken
    back, and it rests until the next rescan. False when nothing was going on."""
    actor.require(CONTROL_PERMISSION)
    actor.require_pair(pair)
    with transaction.atomic():
        rows = AppRepository.objects.alive().filter(pk=pair.pk)
        locked = rows.select_for_update(of=("self",)).first()
        if locked is None or not rows.filter(_going_on()).exists():
            return False
        asked = SyncRun.objects.filter(pair=pair, outcome="")
        operations = set(asked.exclude(operation=None).values_list("operation_id", flat=True))
        _cancel(asked, f"Stopped by {actor.name}.")
        AppRepository.objects.filter(pk=pair.pk).update(generation=F("generation") + 1, **_resting())
        runs.close_operations(operations)
        audit.record(actor, [pair], "Stopped the sync")
        transaction.on_commit(lambda: queueing.drop([pair.job_id]), robust=True)
    return True


def _going_on() -> Q:
    """A worker is at it, it is due, it waits for a slot or for its next attempt, or somebody asked for it.

    Of a pair that was stopped nothing of this is true: its worker may still let requests settle, but it is fenced, and
    the status is not `scanning` any more.
    """
    return (
        Q(status=Status.SCANNING)
        | Q(next_sync_at__lte=Now())
        | Q(slots_wanted_at__isnull=False)
        | Q(status=Status.PENDING, failing_since__isnull=False)
        | Q(Exists(SyncRun.objects.filter(pair=OuterRef("pk"), outcome="")))
    )


def _cancel(open_runs: QuerySet[SyncRun], words: str = "") -> int:
    """End these runs as cancelled, with `words` about it. The generation goes on in any case, so that a worker of the cancelled request can
    record nothing for the next one.

    After a re-sync the floor goes back to the newest re-sync that is not cancelled, and the pair is due at once as an
    ordinary check; after a retry it is failing as before, until the next rescan, unless a later request for it goes on.
    Pairs are locked before runs, as everywhere.
    """
    pks = sorted({pk for pk in open_runs.values_list("pair_id", flat=True) if pk is not None})
    pairs = AppRepository.objects.filter(pk__in=pks)
    list(pairs.select_for_update().order_by("pk").values_list("pk", flat=True))
    chosen = list(open_runs.filter(outcome=""))
    runs.cancel_runs(chosen, words)
    resynced = {run.pair_id for run in chosen if run.pair_id and run.reason == Reason.RESYNC}
    still_asked = (
        SyncRun.objects.filter(pair=OuterRef("pk"), reason=Reason.RESYNC)
        .exclude(outcome=Outcome.CANCELLED)
        .order_by()
        .values("pair")
        .annotate(highest=Max("generation"))
        .values("highest")
    )
    pairs.filter(pk__in=resynced).update(
        generation=F("generation") + 1,
        resend_floor=Coalesce(Subquery(still_asked), Value(1)),
        wanted=F("wanted") + 1,
        next_sync_at=Now(),
    )
    others = {run.pair_id for run in chosen if run.pair_id} - resynced
    others -= set(SyncRun.objects.filter(pair__in=others, outcome="").values_list("pair_id", flat=True))
    pairs.filter(pk__in=others).update(generation=F("generation") + 1, **_resting())
    transaction.on_commit(waking.enqueue_due, robust=True)
    return len(chosen)


def _resting() -> dict[str, object]:
    """Columns of a pair that is left alone until the next rescan, with the status that it had before."""
    unequal = Q(base_commit="") | Q(files_failing__gt=0)  # something was announced, refused, or never sent
    return {
        "next_sync_at": from_now(settings.RESCAN_INTERVAL_SECONDS),
        "slots_wanted_at": None,
        "retry_count": Case(
            When(failing_since=None, then=Value(0)), default=Value(max(0, settings.MAX_RETRY_ATTEMPTS - 1))
        ),
        "status": Case(
            When(failing_since__isnull=False, then=Value(Status.FAILED)),
            When(unequal, then=Value(Status.PENDING)),
            default=Value(Status.SYNCED),
        ),
    }


def dismiss_operation(actor: Actor, operation: BulkOperation) -> None:
    """Take the finished operation's box off the pages."""
    actor.require(_PERMISSIONS[OperationKind(operation.kind)])  # it goes for everybody who watches
    actor.require_app(operation.app)
    BulkOperation.objects.filter(pk=operation.pk, ended_at__isnull=False).update(dismissed_at=timezone.now())
