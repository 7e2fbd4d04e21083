"""Open sync runs, count what they send, and end them with an outcome.

When a sync finishes at generation G, every open run of the watch up to G ends. A run that a later re-sync has replaced is
marked as superseded (`engine.md` §10).
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import batched
from typing import Any, NamedTuple

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Case, F, Q, QuerySet, When, Window
from django.db.models.functions import Coalesce, Now, RowNumber
from django.utils import timezone

from deliveries_app.models import (
    AppRepository,
    AppRepositoryQuerySet,
    BulkOperation,
    Canary,
    Outcome,
    PendingRelease,
    Reason,
    SyncRun,
    bulk_sql,
)
from deliveries_app.models.runs import SWEEP
from deliveries_app.progress import live
from docora.db.compiled import compiled_and_prepared
from docora.db.connection import CONNECTION_ERRORS, close_broken_connections
from docora.redis import counters, live_counters

logger = logging.getLogger(__name__)

LOGGED_ONE_BY_ONE = 100
_TOTALS_OF_UNSTARTED = {
    total: Case(When(started_at=None, then=F(done)), default=F(total))
    for total, done in (("files_total", "files_done"), ("bytes_total", "bytes_done"))
}
_STARTED_AT = Coalesce("started_at", Now())
_ROWS_AT_ONCE = 1000


class Remaining(NamedTuple):
    """What a run still has to send."""

    files: int
    size: int


def whole_trees(watches: AppRepositoryQuerySet) -> dict[int, Remaining]:
    """Return what a re-sync of each of these watches has to send, in their order; 0 if its number of files is unknown."""
    sized: Any = watches.with_sizes()
    return {pk: Remaining(files or 0, size or 0) for pk, files, size in sized.values_list("pk", "files", "size")}


def open_run(
    watch: AppRepository,
    reason: Reason,
    *,
    is_resend: bool = False,
    requested_by: str,
    user: User | None = None,
    operation: BulkOperation | None = None,
    remaining: Remaining | None = None,
) -> SyncRun:
    """Return a new unsaved run at the watch's generation, which the caller has just read or raised.

    Totals start as estimates: `remaining` if given, otherwise the files that failed last, or the whole tree.
    """
    if remaining is None:
        is_retry = reason == Reason.RETRY
        remaining = Remaining(watch.files_failing, 0) if is_retry else Remaining(watch.tree_files, watch.tree_bytes)
    return SyncRun(
        watch=watch,
        app_name=watch.app.name,
        repository_name=str(watch.repository),
        operation=operation,
        reason=reason,
        is_resend=is_resend,
        requested_by=requested_by,
        user=user,
        generation=watch.generation,
        files_total=remaining.files,
        bytes_total=remaining.size,
    )


def add_unreleased(operation: BulkOperation, watch_pks: Sequence[int]) -> None:
    """Store these watches as not released yet, in their order of release, and one canary for each app if canaries are used.

    The apps take turns. The first watch of each app is healthy if possible and has few files, but at least one.
    """
    healthy_first = [
        Q(failing_since__isnull=False),
        Q(arriving=True),
        Q(repository__circuit_open_until__gt=Now()),
        Q(tree_files=0),
    ]
    order = [Case(When(condition, then=1), default=0) for condition in healthy_first]
    turn = Window(RowNumber(), partition_by="app_id", order_by=[*order, F("tree_files"), F("pk")])
    watches = AppRepository.objects.filter(pk__in=watch_pks).annotate(turn=turn).order_by("turn", "app", "pk")
    PendingRelease.objects.bulk_create(
        [
            PendingRelease(operation=operation, watch_id=pk, position=position, files=tree.files, size=tree.size)
            for position, (pk, tree) in enumerate(whole_trees(watches).items())
        ],
        batch_size=_ROWS_AT_ONCE,
    )
    if operation.canary:
        apps = AppRepository.objects.filter(pk__in=watch_pks).order_by("app").values_list("app", flat=True).distinct()
        Canary.objects.bulk_create([Canary(operation=operation, app_id=app) for app in apps])


def log_fields(run: SyncRun) -> dict[str, str]:
    """Return the log fields of a run when it is requested and when it starts."""
    return {"reason": str(run.reason)} | ({"operation_id": run.operation.operation_id} if run.operation else {})


def log_requested(runs: Sequence[SyncRun]) -> None:
    """Log on commit who requested these runs: one run by its own id, several once by their operation's id.

    Each run logs the operation's id again when it starts.
    """
    first = runs[0]
    subject = {"runs": len(runs)} if first.operation else {"run_id": first.run_id, "watch": first.watch_id}
    fields = {**log_fields(first), "requested_by": first.requested_by, **subject}
    transaction.on_commit(lambda: logger.info("sync_requested", extra=fields), robust=True)


@compiled_and_prepared
def open_runs(watch_pk: int, generation: int) -> QuerySet[SyncRun]:
    """Return open runs up to a generation, newest first."""
    query = SyncRun.objects.filter(watch_id=watch_pk, outcome="", generation__lte=generation)
    return query.select_related("operation").order_by("-generation", "-pk")


def newest_open_runs(watches: Iterable[AppRepository]) -> dict[int, SyncRun]:
    """Return each watch's newest open run, by watch primary key."""
    runs = SyncRun.objects.filter(watch__in=[watch.pk for watch in watches], outcome="").order_by("generation", "pk")
    return {run.watch_id: run for run in runs if run.watch_id}


def current_run(watch: AppRepository) -> SyncRun | None:
    """Return the run that a watch's progress is about: its newest open one, or else the one that ended last."""
    return watch.runs.with_result().order_by(F("ended_at").desc(nulls_first=True), "-generation", "-pk").first()


def reopen_retry(watch: AppRepository, commit: str) -> SyncRun | None:
    """Open the watch's last run again if the sweep started it as a retry and it failed at this commit. Otherwise return None.

    A file that the app always refuses would add an equal run at each rescan. Call inside the plan's transaction.
    """
    run = current_run(watch)
    failed_retry = (Reason.RETRY, SWEEP, Outcome.FAILED, watch.generation, commit)
    if run is None or (run.reason, run.requested_by, run.outcome, run.generation, run.commit_sha) != failed_retry:
        return None
    run.outcome, run.ended_at, run.error = "", None, ""
    reopened = SyncRun.objects.filter(pk=run.pk).update(outcome=run.outcome, ended_at=run.ended_at, error=run.error)
    return run if reopened else None


def set_totals(run: SyncRun, *, files: int, size: int, left_out: Mapping[str, int], commit: str) -> None:
    """Set the totals after planning: the recorded files plus the planned ones. Saves the run, which may be new.

    Call inside the plan's transaction.
    """
    run.files_total, run.bytes_total = run.files_done + files, run.bytes_done + size
    run.files_failed, run.files_skipped, run.commit_sha = 0, sum(left_out.values()), commit
    run.left_out = dict(left_out)
    run.attempts += 1
    changed = ["files_total", "bytes_total", "files_failed", "files_skipped", "left_out", "commit_sha", "attempts"]
    # By the database's clock, like the end: the clocks of two workers may differ.
    if run.pk:
        _run.update(run.pk, started_at=_STARTED_AT, **{name: getattr(run, name) for name in changed})
        run.started_at = run.started_at or timezone.now()
    else:
        run.started_at = Now()  # `save` replaces it with the time
        run.save()


def give_attempt_back(run: SyncRun) -> None:
    """Uncount the attempt: it was interrupted and does not count, or it starts over and is counted again."""
    SyncRun.objects.filter(pk=run.pk).update(attempts=F("attempts") - 1)


def set_left_out(run: SyncRun, left_out: Mapping[str, int]) -> None:
    """Set the final left-out counts. Call inside the transaction that ends the run."""
    if run.left_out == left_out:
        return
    run.left_out = dict(left_out)
    SyncRun.objects.filter(pk=run.pk).update(left_out=run.left_out)


def seed(run: SyncRun) -> bool:
    """Set the live counters from the rows. Call after the commit. Return False if the run must be seeded again."""
    is_shown = live_counters.start(run.run_id, live.run_counts(run))
    if run.operation:
        live.show_in_operation(run, run.operation)
    return is_shown


def show_attempt(run: SyncRun) -> None:
    """Show that an attempt begins, so that progress bars don't call the run or its operation stalled because of the wait before."""
    if run.started_at:
        seed(run)
    elif run.operation:
        live.show_in_operation(run, run.operation)


def count(run: SyncRun, *, files_done: int, bytes_done: int, files_failed: int) -> SyncRun:
    """Add a recorded batch to the row, and return the run that counts it.

    A retry may have ended the run. Then the retry's run counts what the attempt sends from now on. Call inside the batch's
    transaction, which keeps others from changing the watch.
    """
    added = {"files_done": files_done, "bytes_done": bytes_done, "files_failed": files_failed}
    if not bulk_sql.count(run.pk, **added):
        open_now = SyncRun.objects.filter(watch=run.watch_id, outcome="").select_related("operation")
        for newest in open_now.order_by("-generation", "-pk")[:1]:
            files, size = _remaining_of(run)
            set_totals(newest, files=files, size=size, left_out=run.left_out, commit=run.commit_sha)
            bulk_sql.count(newest.pk, **added)
            run = newest
    run.files_done += files_done
    run.bytes_done += bytes_done
    run.files_failed += files_failed
    return run


def show(run: SyncRun, *, files_done: int, bytes_done: int, files_failed: int) -> bool:
    """Advance the live counters. Call after the batch's commit. Return False if the run must be seeded again."""
    is_shown = live_counters.advance(
        run.run_id, files_done=files_done, bytes_done=bytes_done, files_failed=files_failed
    )
    if run.operation:
        live.show_in_operation(run, run.operation)
    return is_shown


def end_runs(watch_pk: int, generation: int, outcome: Outcome, error: str = "") -> None:
    """End every open run of the watch up to `generation`, and close operations that have no open runs left.

    Only the newest ends with `outcome` and `error`, the others as superseded. There are others only if it is a re-sync: any
    other request takes over the open runs.
    """
    runs = open_runs(watch_pk, generation)
    _end(runs[1:], Outcome.SUPERSEDED)
    open_runs.update(watch_pk, generation, **_end_fields(runs[:1], outcome, error))
    close_operations({run.operation_id for run in runs if run.operation_id})
    transaction.on_commit(partial(_log_and_show_ended, runs), robust=True)


def cancel_runs(runs: Sequence[SyncRun], error: str) -> None:
    """End these runs as cancelled. The caller closes their operations."""
    _end(runs, Outcome.CANCELLED, error)
    transaction.on_commit(partial(_log_and_show_ended, runs), robust=True)


def end_all_runs(watch_pks: Sequence[int], outcome: Outcome, *, also_close: Iterable[int] = ()) -> list[SyncRun]:
    """End every open run of these watches, which the caller has locked, and close operations that have no open runs left.

    `also_close` are operations that have lost unreleased watches. Return the ended runs, oldest first.
    """
    open_now = list(SyncRun.objects.filter(watch__in=watch_pks, outcome="").order_by("generation", "pk"))
    _end(open_now, outcome)
    close_operations({run.operation_id for run in open_now if run.operation_id}.union(also_close))
    transaction.on_commit(partial(_log_and_show_ended, open_now), robust=True)
    return open_now


def supersede(watch_pks: Sequence[int]) -> dict[int, Remaining]:
    """Supersede the open runs of these watches. Return what the newest still had to send, by watch.

    Call inside the new request's transaction, before it opens its own runs.
    """
    ended = end_all_runs(watch_pks, Outcome.SUPERSEDED)
    return {run.watch_id: _remaining_of(run) for run in ended if run.watch_id}


def _remaining_of(run: SyncRun) -> Remaining:
    return Remaining(max(0, run.files_total - run.files_done), max(0, run.bytes_total - run.bytes_done))


def _end(runs: Sequence[SyncRun], outcome: Outcome, error: str = "") -> None:
    """End those of these runs that are still open."""
    fields = _end_fields(runs, outcome, error)
    for some in batched(runs, _ROWS_AT_ONCE):
        SyncRun.objects.filter(pk__in=[run.pk for run in some], outcome="").update(**fields)


def _end_fields(runs: Sequence[SyncRun], outcome: Outcome, error: str) -> dict[str, Any]:
    """Set the end of these runs in the objects, and return the changes to their rows.

    The rows get the database's time, because the run that ended last is looked up by it (`current_run`).
    """
    fields: dict[str, Any] = {"outcome": outcome, "ended_at": Now(), "error": error}
    now = timezone.now()
    for run in runs:
        run.outcome, run.ended_at, run.error = outcome, now, error
    if outcome == Outcome.SUCCEEDED:  # an unstarted run has estimates, and another run sent its files
        for run in runs:
            if run.started_at is None:
                run.files_total, run.bytes_total = run.files_done, run.bytes_done
        fields |= _TOTALS_OF_UNSTARTED
    return fields


def _log_and_show_ended(runs: Sequence[SyncRun]) -> None:
    """Log ended runs, count them, and update operations still open."""
    if len(runs) <= LOGGED_ONE_BY_ONE:
        for run in runs:
            logger.info("run_ended", extra={"run_id": run.run_id, "watch": run.watch_id, "outcome": str(run.outcome)})
    else:
        logger.info("runs_ended", extra=dict(Counter(str(run.outcome) for run in runs)))
    counters.add(Counter(counters.field(counters.SYNCS, run.outcome) for run in runs))
    live_counters.finish(*(run.run_id for run in runs))
    try:
        _show_ended_in_operations(runs)
    except CONNECTION_ERRORS:  # the database ended the session right after the commit
        close_broken_connections()
        # If the database is down, only the operation's progress is out of date. The next statement reports the outage.
        with contextlib.suppress(*CONNECTION_ERRORS):
            _show_ended_in_operations(runs)


def _show_ended_in_operations(runs: Sequence[SyncRun]) -> None:
    for operation_pk in {run.operation_id for run in runs if run.operation_id}:
        for operation in _open_operation(operation_pk):
            for run in runs:
                if run.operation_id == operation.pk:
                    live.show_in_operation(run, operation)


def close_operations(operation_pks: Iterable[int]) -> None:
    """Close the operations whose runs have all ended, unless they have unreleased watches.

    Lock the operation's row first: two workers that end its last two runs at once do not see each other's uncommitted
    row, and both would leave it open. Remove the counters only after the commit: until then, readers without them would
    count outdated rows.
    """
    for operation_pk in sorted(operation_pks):
        with transaction.atomic(savepoint=False):
            for operation in _locked_open_operation(operation_pk):
                _close_if_done(operation)


def _close_if_done(operation: BulkOperation) -> None:
    if operation.is_gradual and operation.pending.exists():
        return
    if _an_open_run(operation.pk):
        if operation.is_held:  # what it was held for is no longer watched, and the sweep has nothing to release
            _open_operation.update(operation.pk, held_at=None)
        return
    if operation.canary:
        operation.canaries.all().delete()
    _open_operation.update(operation.pk, ended_at=Now())
    transaction.on_commit(partial(live_counters.finish, operation.operation_id), robust=True)


@compiled_and_prepared
def _run(run_pk: int) -> QuerySet[SyncRun]:
    return SyncRun.objects.filter(pk=run_pk)


@compiled_and_prepared
def _an_open_run(operation_pk: int) -> QuerySet[SyncRun]:
    return SyncRun.objects.filter(operation_id=operation_pk, outcome="").order_by().only("pk")[:1]


@compiled_and_prepared
def _open_operation(operation_pk: int) -> QuerySet[BulkOperation]:
    return BulkOperation.objects.filter(pk=operation_pk, ended_at=None)


@compiled_and_prepared
def _locked_open_operation(operation_pk: int) -> QuerySet[BulkOperation]:
    return BulkOperation.objects.filter(pk=operation_pk, ended_at=None).select_for_update(no_key=True)


def close_abandoned_operations() -> None:
    """Close operations without open runs whose worker died before closing them."""
    abandoned = BulkOperation.objects.filter(ended_at=None, pending=None).exclude(runs__outcome="")
    close_operations(abandoned.values_list("pk", flat=True)[:100])
