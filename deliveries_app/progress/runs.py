"""The life of a `SyncRun`: opened by a request or a change, counted while files go out, ended with an outcome.

A finish at generation G ends every open run of the watch up to G; a run whose re-sync was taken over by a later one
ends as superseded (`engine.md` §10).
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.models import AppRepository, BulkOperation, Outcome, Reason, SyncRun, bulk_sql
from deliveries_app.progress import live
from docora.redis import counters, live_counters

logger = logging.getLogger(__name__)

LOGGED_ONE_BY_ONE = 100


class Left(NamedTuple):
    """What a run has still to send."""

    files: int
    size: int


def open_run(
    watch: AppRepository,
    reason: Reason,
    *,
    requested_by: str,
    user_pk: int | None = None,
    operation: BulkOperation | None = None,
    left: Left | None = None,
) -> SyncRun:
    """A new open run at the watch's generation (the caller has just raised or read it). Totals start as estimates: what
    is `left` where that is known, else the files that failed last, or the whole tree."""
    if left is None:
        left = Left(watch.files_failing, 0) if reason == Reason.RETRY else Left(watch.tree_files, watch.tree_bytes)
    return SyncRun(
        watch=watch,
        app_name=watch.app.name,
        repository_name=str(watch.repository),
        operation=operation,
        reason=reason,
        requested_by=requested_by,
        user_id=user_pk,
        generation=watch.generation,
        files_total=left.files,
        bytes_total=left.size,
    )


def facts_of(run: SyncRun) -> dict[str, str]:
    """What the log says of a run where it is asked for and where it starts, beside its id."""
    return {"reason": str(run.reason)} | ({"operation_id": run.operation.operation_id} if run.operation else {})


def log_requested(runs: Sequence[SyncRun]) -> None:
    """Log, once it is committed, who asked for these runs: of one with its id, of several with that of their operation,
    which each of them says again when it starts."""
    first = runs[0]
    which = {"runs": len(runs)} if first.operation else {"run_id": first.run_id, "watch": first.watch_id}
    facts = {**facts_of(first), "requested_by": first.requested_by, **which}
    transaction.on_commit(lambda: logger.info("sync_requested", extra=facts), robust=True)


def open_runs(watch_pk: int, generation: int) -> list[SyncRun]:
    """Open runs up to a generation, the newest first."""
    query = SyncRun.objects.filter(watch_id=watch_pk, outcome="", generation__lte=generation)
    return list(query.select_related("operation").order_by("-generation", "-pk"))


def set_totals(run: SyncRun, *, files: int, size: int, left_out: Mapping[str, int], commit: str) -> None:
    """At each plan: the total is what is recorded already plus what is planned now. Inside the plan's transaction."""
    run.files_total, run.bytes_total = run.files_done + files, run.bytes_done + size
    run.files_failed, run.files_skipped, run.commit_sha = 0, sum(left_out.values()), commit
    run.left_out = dict(left_out)
    run.attempts += 1
    run.started_at = run.started_at or timezone.now()
    run.save(
        update_fields=[
            "files_total", "bytes_total", "files_failed", "files_skipped", "left_out", "commit_sha", "attempts",
            "started_at",
        ]
    )  # fmt: skip


def set_left_out(run: SyncRun, left_out: Mapping[str, int]) -> None:
    """At the end, when the remarks on what was sent are known too; inside the transaction that ends it."""
    run.left_out = dict(left_out)
    SyncRun.objects.filter(pk=run.pk).update(left_out=run.left_out)


def seed(run: SyncRun) -> None:
    """Set the live counters from the rows; call it after the commit."""
    live.seed_run(run)
    if run.operation:
        live.show_in_operation(run, run.operation)


def count(run: SyncRun, *, files_done: int, bytes_done: int, files_failed: int) -> None:
    """Add a recorded batch to the row; call it inside the batch's transaction."""
    bulk_sql.count(run.pk, files_done=files_done, bytes_done=bytes_done, files_failed=files_failed)
    run.files_done += files_done
    run.bytes_done += bytes_done
    run.files_failed += files_failed


def show(run: SyncRun, *, files_done: int, bytes_done: int, files_failed: int) -> None:
    """Advance the live counters; call it after the batch's commit."""
    deltas = {"files_done": files_done, "bytes_done": bytes_done, "files_failed": files_failed}
    if not live_counters.advance(run.run_id, **deltas):
        live.seed_run(run)
    if run.operation and any(deltas.values()):
        live.show_in_operation(run, run.operation)


def end_runs(watch_pk: int, generation: int, outcome: Outcome, error: str = "") -> None:
    """End every open run of the watch up to `generation`, and the operations that have none left."""
    runs = open_runs(watch_pk, generation)
    takeover = (
        SyncRun.objects.filter(watch_id=watch_pk, reason=Reason.RESYNC)
        .exclude(outcome=Outcome.CANCELLED)
        .order_by("-generation", "-pk")
        .first()
    )
    for index, run in enumerate(runs):
        superseded = index > 0 and takeover is not None and takeover.generation > run.generation
        _end(run, Outcome.SUPERSEDED if superseded else outcome, error)
    close_operations({run.operation_id for run in runs if run.operation_id})
    transaction.on_commit(partial(_tell_ended, runs), robust=True)


def cancel_runs(runs: Sequence[SyncRun], words: str = "") -> None:
    """End these runs as cancelled; their operations are closed by the caller."""
    for run in runs:
        _end(run, Outcome.CANCELLED, words)
    transaction.on_commit(partial(_tell_ended, runs), robust=True)


def supersede(watch_pks: Sequence[int]) -> dict[int, Left]:
    """A request takes over what is open about these watches; inside its transaction, before it opens its own runs. What
    the newest of them had still to send, by watch."""
    taken = list(SyncRun.objects.filter(watch__in=watch_pks, outcome="").order_by("generation", "pk"))
    for run in taken:
        _end(run, Outcome.SUPERSEDED, "")
    close_operations({run.operation_id for run in taken if run.operation_id})
    transaction.on_commit(partial(_tell_ended, taken), robust=True)
    return {run.watch_id: _left_of(run) for run in taken if run.watch_id}


def _left_of(run: SyncRun) -> Left:
    return Left(max(0, run.files_total - run.files_done), max(0, run.bytes_total - run.bytes_done))


def _end(run: SyncRun, outcome: Outcome, error: str) -> None:
    run.outcome, run.ended_at, run.error = outcome, timezone.now(), error
    ending = {"outcome": outcome, "ended_at": run.ended_at, "error": error}
    if outcome == Outcome.SUCCEEDED and run.started_at is None:  # what its estimate spoke of was sent by another run
        run.files_total, run.bytes_total = run.files_done, run.bytes_done
        ending |= {"files_total": F("files_done"), "bytes_total": F("bytes_done")}
    SyncRun.objects.filter(pk=run.pk, outcome="").update(**ending)


def _tell_ended(runs: Sequence[SyncRun]) -> None:
    """In the log, in the counters, and in the operations that go on without them."""
    if len(runs) <= LOGGED_ONE_BY_ONE:
        for run in runs:
            logger.info("run_ended", extra={"run_id": run.run_id, "watch": run.watch_id, "outcome": str(run.outcome)})
    else:
        logger.info("runs_ended", extra=dict(Counter(str(run.outcome) for run in runs)))
    counters.add(Counter(counters.field(counters.SYNCS, run.outcome) for run in runs))
    live_counters.finish(*(run.run_id for run in runs))
    for operation in BulkOperation.objects.filter(pk__in={run.operation_id for run in runs}, ended_at=None):
        for run in runs:
            if run.operation_id == operation.pk:
                live.show_in_operation(run, operation)


def close_operations(operation_pks: Iterable[int]) -> None:
    """Close those of the operations whose runs have all ended.

    The operation's row is locked first: of two workers that end its last two runs at the same moment, neither sees the
    other's before it is committed, and both would leave it open. The counters are removed after the commit: until then
    every reader must find them, for the rows that it would count in their place are still the old ones.
    """
    with transaction.atomic():
        rows = BulkOperation.objects.filter(pk__in=list(operation_pks), ended_at=None)
        for operation in rows.select_for_update().order_by("pk"):
            if operation.runs.filter(outcome="").exists():
                continue
            BulkOperation.objects.filter(pk=operation.pk).update(ended_at=Now())
            transaction.on_commit(partial(live_counters.finish, operation.operation_id), robust=True)


def close_abandoned_operations() -> None:
    """Operations without open runs, whatever became of the worker that should have closed them."""
    abandoned = BulkOperation.objects.filter(ended_at=None).exclude(runs__outcome="")
    close_operations(abandoned.values_list("pk", flat=True)[:100])
