"""Release the repositories of a gradual re-sync: with a canary for each app, at a pace, or both (`engine.md` §14).

A gradual operation begins with a `PendingRelease` row for each of its watches and nothing else. Releasing a watch deletes
that row and requests its re-sync, in one transaction. The sweep calls `release_due` every second.

Changing a canary or removing a pending row requires the lock of the operation's row; an unwatch holds the lock of the watch
instead. So what `_plan` reads under both locks can't change.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from django.db import transaction
from django.db.models import Min, Q, QuerySet
from django.db.models.functions import Coalesce, Now

from deliveries_app import audit, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import (
    AppRepository,
    AuditAction,
    BulkOperation,
    Canary,
    CanaryState,
    Outcome,
    PendingRelease,
    Reason,
    SyncPause,
    SyncRun,
)
from deliveries_app.permissions import Permission
from deliveries_app.progress import runs
from deliveries_app.services import requests
from docora.db.compiled import compiled_and_prepared
from docora.text import counted

logger = logging.getLogger(__name__)

CANARY_SECONDS = 1800.0
"""How long a canary may take. The time starts over while it, its app, or all syncing is paused."""
_MINUTE = 60.0
_CATCH_UP_SECONDS = 5.0  # a late sweep makes up for at most this time
_PAUSE_SEEN_SECONDS = 60.0  # how often the time of a paused canary starts over
_OPEN = (CanaryState.PASSED, CanaryState.CONTINUED)
_REASONS = 3  # held canaries listed in the reason


def release_due() -> int:
    """Release the due watches of all gradual operations, and hold those whose canary failed. Return the number released."""
    return sum(map(release, _gradual_operations()))


@compiled_and_prepared
def _gradual_operations() -> "QuerySet[PendingRelease, int]":
    return PendingRelease.objects.order_by().values_list("operation_id", flat=True).distinct()


def release(operation_pk: int, *, by_person: bool = False) -> int:
    """Release the due watches of one operation. Return the number of released watches.

    Pass `by_person` for a person's request, which also tries endpoints that are down.
    """
    operation, now = _read(operation_pk)
    plan = _plan(operation, now)
    if not plan.has_changes(operation):
        return 0
    with transaction.atomic():
        locked = requests.lock_watches(plan.watches, AppRepository.objects.alive(), by_person=by_person)
        BulkOperation.objects.select_for_update(no_key=True).get(pk=operation_pk)
        operation, now = _read(operation_pk)
        if operation.ended_at is not None:
            return 0
        plan = _plan(operation, now)
        _record(operation, plan)
        return _release(operation, now, set(plan.watches).intersection(locked))


def continue_operation(actor: Actor, operation: BulkOperation) -> int:
    """Release the other repositories of the apps whose canary is held. Return their number: 0 if the operation is not held."""
    actor.require_app(operation.app, Permission.RESYNC)
    with transaction.atomic():
        operation.refresh_from_db(from_queryset=BulkOperation.objects.select_for_update(no_key=True))
        if not operation.is_held:
            return 0
        held = operation.canaries.filter(state=CanaryState.HELD)
        numbers = requests.count_by_app(operation.pending.filter(watch__app__in=held.values("app")))
        number = numbers.total()
        held.update(state=CanaryState.CONTINUED)
        BulkOperation.objects.filter(pk=operation.pk).update(held_at=None)
        why = f". It was held: {operation.held_reason}"
        audit.record_for_apps(actor, AuditAction.CONTINUE, operation, numbers, "Continued with", why)
        transaction.on_commit(partial(release, operation.pk, by_person=True), robust=True)
        fields = {"operation_id": operation.operation_id, "by": actor.name, "repositories": number}
        transaction.on_commit(lambda: logger.info("operation_continued", extra=fields), robust=True)
    operation.refresh_from_db()
    return number


@dataclass(frozen=True)
class _Plan:
    """What to do for an operation now.

    - `watches`: the watches to release, in order.
    - `states`: the new state of each canary that changes, with the reason, by primary key.
    - `restarted`: the canaries whose time starts over.
    - `held`: why the operation is held, or empty.
    """

    watches: Sequence[int]
    states: dict[int, tuple[CanaryState, str]]
    restarted: Sequence[int]
    held: str

    def has_changes(self, operation: BulkOperation) -> bool:
        return bool(self.watches or self.states or self.restarted) or bool(self.held) != (operation.held_at is not None)


def _read(operation_pk: int) -> tuple[BulkOperation, datetime]:
    """Return the operation and the database's time."""
    operation = BulkOperation.objects.annotate(now=Now()).select_related("user").get(pk=operation_pk)
    return operation, operation.now


def _plan(operation: BulkOperation, now: datetime) -> _Plan:
    """Decide from the rows what to do for the operation now. Writes nothing."""
    canaries = list(operation.canaries.select_related("app", "run__watch")) if operation.canary else []
    states, restarted = _update_running([canary for canary in canaries if canary.state == CanaryState.RUNNING], now)
    held = _held_among(operation, [canary for canary in canaries if canary.state == CanaryState.HELD])
    allowed = _allowance(operation, now)
    due = _due(operation, canaries)[:allowed] if allowed != 0 else []
    return _Plan(list(due), states, restarted, held)


def _update_running(running: Sequence[Canary], now: datetime) -> tuple[dict[int, tuple[CanaryState, str]], list[int]]:
    """Set the states of these canaries in the objects. Return `_Plan.states` and `_Plan.restarted`."""
    states: dict[int, tuple[CanaryState, str]] = {}
    restarted: list[int] = []
    all_paused = SyncPause.objects.exists()
    for canary in running:
        watch = canary.run.watch if canary.run and not canary.run.outcome else None
        if watch and (all_paused or canary.app.paused or watch.is_paused):
            if canary.since is None or now - canary.since > timedelta(seconds=_PAUSE_SEEN_SECONDS):
                restarted.append(canary.pk)
            continue
        if canary.since and canary.since > now + timedelta(seconds=_MINUTE):  # the database's clock was set back
            restarted.append(canary.pk)
        state, reason = _state_of(canary, now)
        if state != canary.state:
            states[canary.pk] = state, reason
            canary.state, canary.reason = state, reason
    return states, restarted


def _state_of(canary: Canary, now: datetime) -> tuple[CanaryState, str]:
    """Return the state of a released canary, with the reason. Without a result, another repository becomes the canary."""
    run = canary.run
    if run is None or run.outcome in {Outcome.SUPERSEDED, Outcome.ENDED}:
        return CanaryState.WAITING, ""
    if run.outcome == Outcome.SUCCEEDED:
        return CanaryState.PASSED, ""
    if run.outcome == Outcome.CANCELLED:
        return CanaryState.HELD, f"{run.repository_name} was cancelled."
    if run.outcome:
        return CanaryState.HELD, f"{run.repository_name} failed: {run.error}"
    if canary.since and now - canary.since >= timedelta(seconds=CANARY_SECONDS):
        return CanaryState.HELD, f"{run.repository_name} has not finished within {CANARY_SECONDS / 60:.0f} minutes."
    return CanaryState.RUNNING, ""


def _held_among(operation: BulkOperation, held: Sequence[Canary]) -> str:
    """Return the reasons of the held canaries whose app has unreleased watches; empty if there are none."""
    if not held:
        return ""
    waiting = set(operation.pending.order_by().values_list("watch__app_id", flat=True).distinct())
    reasons = [f"{canary.app}: {canary.reason}" for canary in held if canary.app_id in waiting]
    if len(reasons) > _REASONS:
        reasons[_REASONS:] = [f"And {counted(len(reasons) - _REASONS, 'more app')}."]
    return " ".join(reasons)


def _due(operation: BulkOperation, canaries: Sequence[Canary]) -> QuerySet[PendingRelease, int]:
    """Return the watches that can be released now, if the pace allows. Paused ones wait."""
    waiting = operation.pending.filter(watch__in=AppRepository.objects.alive().unpaused())
    if operation.canary:
        passed = [canary.app_id for canary in canaries if canary.state in _OPEN]
        tested = [canary.app_id for canary in canaries if canary.state == CanaryState.WAITING]
        of_tested = waiting.filter(watch__app__in=tested).order_by().values("watch__app")
        first = of_tested.annotate(first=Min("position")).values("first")
        waiting = waiting.filter(Q(watch__app__in=passed) | Q(position__in=first))
    return waiting.order_by("position").values_list("watch_id", flat=True)


def _allowance(operation: BulkOperation, now: datetime) -> int | None:
    """Return how many watches the pace allows now; None without a pace.

    Releases are spread evenly, and never more than `pace` fall into one minute, even if the sweep was late. A next release
    more than a minute away is ignored: it was set before the database's clock was set back.
    """
    if operation.pace is None:
        return None
    late = (now - (operation.next_release_at or now)).total_seconds()
    if -_MINUTE <= late < 0:
        return 0
    by_time = 1 + int(min(max(0.0, late), _CATCH_UP_SECONDS) * operation.pace / _MINUTE)
    minute = timedelta(seconds=_MINUTE)
    in_last_minute = operation.runs.filter(created_at__gt=now - minute, created_at__lte=now + minute).count()
    return max(0, min(by_time, operation.pace - in_last_minute))


def _record(operation: BulkOperation, plan: _Plan) -> None:
    """Write the new states of the canaries, and whether the operation is held."""
    for pk, (state, reason) in plan.states.items():
        operation.canaries.filter(pk=pk).update(state=state, reason=reason)
    operation.canaries.filter(pk__in=plan.restarted).update(since=Now())
    was_held = operation.held_at is not None
    if plan.held and (not was_held or plan.held != operation.held_reason):
        fields = {"held_at": Coalesce("held_at", Now()), "held_reason": plan.held}
        BulkOperation.objects.filter(pk=operation.pk).update(**fields)
        logged = {"operation_id": operation.operation_id, "reason": plan.held}
        transaction.on_commit(lambda: logger.warning("operation_held", extra=logged), robust=True)
    elif was_held and not plan.held:
        BulkOperation.objects.filter(pk=operation.pk).update(held_at=None)


def _release(operation: BulkOperation, now: datetime, watches: Collection[int]) -> int:
    """Release these watches and return their number. The watches and the operation must be locked."""
    rows = operation.pending.filter(watch__in=watches)
    estimates = {row.watch_id: runs.Remaining(row.files, row.size) for row in rows}
    if not estimates:
        return 0
    rows.delete()
    actor = Actor(operation.requested_by, user=operation.user)
    AppRepository.objects.filter(pk__in=estimates).update(**scheduling.RESYNC)
    opened = requests.open_runs(actor, sorted(estimates), Reason.RESYNC, operation, estimates)
    if operation.canary:
        _start_canaries(operation, opened)
    if operation.pace is not None:
        earliest = now - timedelta(seconds=_CATCH_UP_SECONDS)
        planned = min(max(operation.next_release_at or now, earliest), now)
        next_release_at = planned + timedelta(seconds=_MINUTE / operation.pace) * len(opened)
        BulkOperation.objects.filter(pk=operation.pk).update(next_release_at=next_release_at)
    requests.record_opened(actor, operation, opened)
    transaction.on_commit(scheduling.enqueue_due, robust=True)
    return len(opened)


def _start_canaries(operation: BulkOperation, opened: Sequence[SyncRun]) -> None:
    """Start the waiting canary of each app that has a released watch: give the canary that watch's run."""
    run_of_app = {run.watch.app_id: run for run in opened if run.watch}
    for canary in operation.canaries.filter(state=CanaryState.WAITING, app__in=run_of_app):
        run = run_of_app[canary.app_id]
        operation.canaries.filter(pk=canary.pk).update(state=CanaryState.RUNNING, run=run, since=Now())
