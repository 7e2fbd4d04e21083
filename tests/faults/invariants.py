"""What must hold at any time, after each round of the sweep, and once nothing is due. One function each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from django.conf import settings
from django.db.models import Case, Count, F, Q, When
from django.db.models.functions import Now

from deliveries_app.models import (
    App,
    AppRepository,
    BulkOperation,
    Canary,
    Delivery,
    DeliveryAttempt,
    DriftCheck,
    DriftState,
    Notice,
    PendingRelease,
    Reason,
    Status,
    SyncRun,
)
from deliveries_app.models.deliveries import ATTEMPTS_PER_PATH
from deliveries_app.models.runs import SWEEP
from deliveries_app.planning.delivery_rows import count_remarks, delivery_rules_of
from deliveries_app.planning.planner import full_plan
from deliveries_app.progress import live
from deliveries_app.sync import drift
from repositories_app.git.exceptions import GitError
from repositories_app.git.protocol import Head
from repositories_app.models import HostOutage
from repositories_app.services import mirror_of
from tests.faults.hosts import GOOD

if TYPE_CHECKING:
    from tests.faults.universe import Universe


def check_always(universe: Universe) -> None:
    universe.journal.check(universe.clients.log)
    check_progress()
    check_attempts()
    check_drift_checks()
    check_announced_trees(universe)
    check_ended_runs(universe)
    check_rows_were_sent(universe)
    for watch in universe.alive():
        check_shown_as_synced(universe, watch)
        check_no_way_back(universe, watch)
    universe.host_lagged = universe.host.fault.lags


def check_after_sweep(universe: Universe, *, has_checked_all: bool) -> None:
    check_syncing_is_leased()
    check_operations(universe)
    if has_checked_all and universe.host.fault is GOOD:
        for watch in universe.alive():
            check_knows_head(universe, watch)


def check_at_rest(universe: Universe) -> None:
    check_always(universe)
    for watch in universe.alive():
        check_delivered(universe, watch)
    assert not SyncRun.objects.filter(outcome="").exists(), "a run is still open"
    assert not DriftCheck.objects.open().exists(), "a check for differences is still open"
    assert not BulkOperation.objects.filter(ended_at=None).exists(), "an operation is still open"
    assert not PendingRelease.objects.exists(), "a watch was not released"
    assert not Canary.objects.exists(), "a canary of an operation that has ended"
    assert not Notice.objects.exists(), f"a notice was not sent: {list(Notice.objects.all())}"
    ended = Q(ended_at__isnull=False)
    assert not AppRepository.objects.filter(ended).exists(), "an ended watch was not removed"
    assert not App.objects.filter(ended).exists(), "a deleted app was not removed"


# --- At any time -----------------------------------------------------------------------------------------------------


def check_progress() -> None:
    """No bar passes 100%."""
    for run in SyncRun.objects.filter(outcome=""):
        assert run.started_at is None or run.files_done <= run.files_total, f"past 100%: {run}"


def check_attempts() -> None:
    """Of each path, at most ten failed attempts are kept, and of each app as many as the setting says. Workers of one app
    that record at the same time may keep a batch more each."""
    rows = DeliveryAttempt.objects.order_by()
    assert not rows.exclude(app=F("watch__app")).exists(), "an attempt belongs to another app"
    of_paths = rows.values_list("watch", "path_digest").annotate(count=Count("pk")).filter(count__gt=ATTEMPTS_PER_PATH)
    assert not of_paths, f"too many attempts of one path: {list(of_paths)}"
    most = settings.ATTEMPTS_PER_APP + settings.RECORD_BATCH + settings.MAX_IN_FLIGHT
    of_apps = rows.values_list("app").annotate(count=Count("pk")).filter(count__gt=most)
    assert not of_apps, f"too many attempts of one app: {list(of_apps)}"


def check_ended_runs(universe: Universe) -> None:
    """The numbers of a run that has ended no longer change, unless the sweep opens its failed retry again and ends it later."""
    numbers = ("files_done", "files_total", "files_failed", "bytes_done", "bytes_total")
    of_sweep = Q(reason=Reason.RETRY, requested_by=SWEEP)
    ended = SyncRun.objects.exclude(outcome="").annotate(end=Case(When(of_sweep, then="ended_at"), default=None))
    for pk, end, *counts in ended.values_list("pk", "end", *numbers):
        final = universe.ended_runs.setdefault((pk, end), counts)
        assert counts == final, f"run {pk} has ended with {final}, and has {counts} now"


def check_rows_were_sent(universe: Universe) -> None:
    """An acknowledged row shows a notification that the client got. Those of an import have no sequence."""
    got = {(record.sequence, record.path, record.kind) for record in universe.clients.log}
    rows = Delivery.objects.filter(acknowledged=True, sequence__gt=0, watch__ended_at=None)
    invented = set(rows.values_list("sequence", "path", "kind")) - got
    assert not invented, f"these notifications were never sent: {invented}"


def check_drift_checks() -> None:
    """A check that has ended with a result has its files, and any other has none."""
    for check in DriftCheck.objects.all():
        assert check.files.count() == check.listed, f"{check}: {check.files.count()} of {check.listed} files are listed"
        assert check.state == DriftState.DIFFERS or not check.listed, f"{check} is {check.state} and lists files"
        assert 0 <= check.attempts <= drift.MAX_ATTEMPTS + 1, f"{check} was started {check.attempts} times"


def check_announced_trees(universe: Universe) -> None:
    """A `sync_completed` states what the client holds, unless the client has dropped it meanwhile."""
    for record in universe.clients.log:
        if record.kind == "sync_completed" and record.outcome == "differs":
            name = record.app_id, record.repository
            is_old = record.sequence <= universe.dropped_at.get(name, 0)
            folds = universe.clients.kind_of(record.app_id).fold("E\u0301") != "E\u0301"
            assert is_old or folds or name in universe.ever_damaged, f"sync_completed of another tree: {record}"


def check_shown_as_synced(universe: Universe, watch: AppRepository) -> None:
    """A watch that is shown as synced, with nothing due, really is: the copy equals the tree of its last commit."""
    has_current_rules = watch.base_rules == delivery_rules_of(watch).fingerprint
    if watch.status == Status.SYNCED and watch.last_commit and has_current_rules and not _is_due(watch):
        check_copy(universe, watch)


def check_copy(universe: Universe, watch: AppRepository) -> None:
    """The client holds the tree of the last commit, as far as its file system can tell the names apart.

    This is not checked for a copy that was damaged and has not been repaired.
    """
    if (watch.app.app_id, str(watch.repository)) in universe.damaged:
        return
    if not universe.expected(watch, watch.last_commit) and not _was_heard_of(universe, watch):
        return  # an empty repository sends nothing, so a client that kept its copy cannot know that the watch is a new one
    kind = universe.clients.kind_of(watch.app.app_id)
    tainted = universe.tainted[str(watch.repository), kind]
    copy, expected = (
        {key: sha for path, sha in files.items() if (key := kind.fold(path)) not in tainted}
        for files in (universe.clients.holds(watch), universe.expected(watch, watch.last_commit))
    )
    assert copy == expected, (
        f"{watch} at {watch.last_commit[:8]}, {kind.name} client: missing {sorted(expected.keys() - copy.keys())},"
        f" left {sorted(copy.keys() - expected.keys())},"
        f" other {sorted(key for key in copy.keys() & expected.keys() if copy[key] != expected[key])}"
    )


def _was_heard_of(universe: Universe, watch: AppRepository) -> bool:
    return any(record.webhook_id.split("_")[1] == watch.watch_id for record in universe.clients.log)


def check_stop(universe: Universe, watch: AppRepository, stop: Callable[[], bool]) -> None:
    """Cancelling a watch that was not up to date does not make it appear as synced.

    Its worker may have ended a moment before (seed 5120). Then there was nothing to cancel. Or it may have been due only for a
    check for differences, whose worker had died (seed 52438). Then it stays synced.
    """
    is_due_for_check = watch.drift_checks.open().exists() and universe.head_of(watch) == watch.last_commit
    was_synced = watch.status == Status.SYNCED and (is_due_for_check or not _is_due(watch))
    has_stopped = stop()
    watch.refresh_from_db()
    assert was_synced or not has_stopped or watch.status != Status.SYNCED, (
        f"{watch} is shown as synced because it was stopped"
    )


def check_untouched(operation: BulkOperation, cancel: Callable[[], object]) -> None:
    """A cancel leaves the watches that were not released as they are, and they never had a run of the operation."""
    columns = ("pk", "generation", "resend_floor")  # a worker may be syncing the watch for another reason
    unreleased = AppRepository.objects.filter(pk__in=list(operation.pending.values_list("watch_id", flat=True)))
    assert not operation.runs.filter(watch__in=unreleased).exists(), f"{operation}: an unreleased watch has a run"
    before = list(unreleased.order_by("pk").values(*columns))
    cancel()
    assert list(unreleased.order_by("pk").values(*columns)) == before, (
        f"{operation}: a cancel has changed unreleased watches"
    )
    operation.refresh_from_db()
    assert operation.ended_at is not None, f"{operation} is still open after its cancellation"


def check_no_way_back(universe: Universe, watch: AppRepository) -> None:
    """A watch never goes back to an older commit, unless the host does. It is not at rest at another commit than it saw."""
    if universe.followed.get(watch.pk, "") != watch.ref:  # it still has the commit of another ref
        universe.reached.pop(watch.pk, None)
        if not is_at_rest(watch):
            return
        universe.followed[watch.pk] = watch.ref
    heads = universe.heads_of(watch)
    if len(set(heads)) < len(heads):
        return  # the host went back
    if watch.last_commit and (watch.last_commit in heads or is_at_rest(watch)):
        assert watch.last_commit in heads, f"{watch} is at rest at a commit that {watch.ref or 'HEAD'} never named"
        number = len(heads) - 1 - heads[::-1].index(watch.last_commit)
        before = universe.reached.get(watch.pk, 0)
        assert number >= before or universe.host_lagged, f"{watch} went back to {watch.last_commit[:8]}"
        universe.reached[watch.pk] = number
    if is_at_rest(watch):
        assert watch.seen_commit in {"", watch.last_commit}, f"{watch} is at rest, but saw {watch.seen_commit[:8]}"


# --- After a round of the sweep --------------------------------------------------------------------------------------


def check_syncing_is_leased() -> None:
    """A watch is shown as syncing only while a lease lives."""
    stuck = AppRepository.objects.alive().filter(status=Status.SCANNING).free()
    assert not stuck.exists(), f"shown as syncing without a lease: {list(stuck)}"


def check_knows_head(universe: Universe, watch: AppRepository) -> None:
    """A watch that is shown as synced, with nothing due, has the HEAD that the sweep has just seen."""
    is_paused = watch.app.paused or watch.is_paused
    is_held = is_paused or watch.arriving or watch.repository.circuit_open_until or HostOutage.objects.exists()
    head = universe.head_of(watch)
    if is_at_rest(watch) and not is_held and not universe.paused_everything():
        assert watch.last_commit == head, f"{watch} is shown as synced at {watch.last_commit[:8]}, HEAD is {head[:8]}"


def check_operations(universe: Universe) -> None:
    """An operation counts its runs, and ends with the last of them."""
    for operation in BulkOperation.objects.exclude(pk__in=universe.counted):
        rows, pending = operation.runs.all(), operation.pending.count()
        is_gradual = operation.is_gradual
        counted_ones = rows.count() + pending
        assert operation.total == counted_ones or (is_gradual and operation.total > counted_ones), (
            f"{operation} counts {operation.total} of {counted_ones} repositories"
        )
        is_open = pending > 0 or rows.filter(outcome="").exists()
        assert (operation.ended_at is None) == is_open, f"{operation} has ended: {not is_open}"
        assert pending or not operation.is_held, f"{operation} is held although nothing is left to release"
        shown, counted = live.of_operation(operation), live._counted([operation])[operation.pk]
        if operation.ended_at or operation.pk > universe.uncounted:
            for name in live._ENDINGS:
                assert getattr(shown, name) == counted[name], f"{operation} shows {name} as {getattr(shown, name)}"
        if operation.ended_at:
            universe.counted.add(operation.pk)


def is_at_rest(watch: AppRepository) -> bool:
    """Return whether a watch is shown as synced, and nothing is due now or later."""
    return watch.status == Status.SYNCED and watch.next_sync_at is None and watch.lease_until is None


def _is_due(watch: AppRepository) -> bool:
    return AppRepository.objects.filter(pk=watch.pk, next_sync_at__lte=Now()).exists()


# --- At rest ---------------------------------------------------------------------------------------------------------


def check_delivered(universe: Universe, watch: AppRepository) -> None:
    """Everything is delivered, and the rows say so."""
    head = universe.head_of(watch)
    assert (watch.status, watch.last_commit, watch.files_failing) == (Status.SYNCED, head, 0), str(watch)
    assert (watch.lease_until, watch.lease_slots, watch.next_sync_at) == (None, 0, None)
    check_copy(universe, watch)
    expected = universe.expected(watch, head)
    held = Delivery.objects.filter(watch=watch)
    assert dict(held.values_list("path", "sha")) == expected, f"{watch}: the rows differ from the tree"
    answered = held.filter(delivered_at__isnull=False)
    refused = answered.exclude(delivered_status__range=(200, 299), delivered_ms__gte=0)
    assert not refused.exists(), f"{watch}: {list(refused)} count as delivered"
    doubted = held.exclude(acknowledged=True, acknowledged_sha=F("sha"), generation__gte=watch.resend_floor)
    assert not doubted.exists(), f"{watch}: {list(doubted)} are in doubt"
    listed = watch.failures.filter(kind="failed")
    assert not listed.exists(), f"{watch}: {[failure.path for failure in listed]} stay listed as failed"
    assert watch.tree_files == len(expected)
    check_totals(watch)


def check_totals(watch: AppRepository) -> None:
    """The shown totals of the tree, which fast plans update, are those of a full plan, which has nothing to send."""
    mirror = mirror_of(watch.repository)
    if not (mirror.directory / "HEAD").exists():
        return  # it has been removed since
    head = Head(watch.last_commit, watch.branch)
    with mirror.blobs() as reader:
        try:
            plan = full_plan(head, watch, delivery_rules_of(watch), reader, lambda: None)
        except GitError:
            return  # it has been damaged since
    assert plan.files == 0, f"{watch} still has {plan.files} files to send"
    shown = watch.tree_files, watch.tree_bytes, watch.left_out
    left_out = dict(plan.left_out) | dict(count_remarks(watch.pk))
    assert shown == (plan.tree_files, plan.tree_bytes, left_out), f"{watch} shows {shown} instead of {left_out}"
