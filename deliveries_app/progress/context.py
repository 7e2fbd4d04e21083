"""Template context for the progress fragments, on first render and when polled."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Exists, OuterRef, Q, QuerySet

from deliveries_app.actors import can_view_operations
from deliveries_app.models import App, AppRepository, BulkOperation, OperationKind, Outcome, PendingRelease, SyncRun
from deliveries_app.progress import activity, live
from deliveries_app.progress.live import Progress
from deliveries_app.progress.runs import current_run, newest_open_runs
from docora.text import counted, format_bytes, format_counts, format_seconds

MAX_OPERATIONS = 5
_NAMED = 3


def of_operation(operation: BulkOperation) -> dict[str, Any]:
    """Return the context for `docora/progress.html#bulk_progress`."""
    return _context(operation, live.of_operation(operation))


def of_ended_operations(operations: Sequence[BulkOperation]) -> list[dict[str, Any]]:
    """Return the same for operations that have ended: with one query, and two more for each cancelled one."""
    progress = live.of_ended_operations(operations)
    return [_context(operation, progress[operation.pk]) for operation in operations]


def _context(operation: BulkOperation, progress: Progress) -> dict[str, Any]:
    return {
        "operation": operation,
        "progress": progress,
        "activity": activity.of_operation(operation, progress),
        "result": operation.result_of(
            succeeded=progress.succeeded, failed=progress.failed, superseded=progress.superseded
        ),
        "summary": summary(operation, progress) if progress.finished else "",
    }


def of_watch(watch: AppRepository) -> dict[str, Any]:
    """Return the context for `docora/progress.html#watch_progress`: the watch's current run, open or ended.

    `synced_since` says that the run did not succeed but a later sync did. It had nothing to send, so it has no run of its own.
    `failed_since` says that the run succeeded but a later attempt failed. It had no plan, so it has no run either.
    The watch must be read `with_state`.
    """
    run = current_run(watch)
    progress = live.of_run(run) if run else None
    doing = activity.of_run(run, watch, progress) if run and progress else None
    synced_since = bool(
        run
        and run.ended_at
        and run.outcome != Outcome.SUCCEEDED
        and watch.last_synced_at
        and watch.last_synced_at > run.ended_at
    )
    return {
        "watch": watch,
        "run": run,
        "progress": progress,
        "activity": doing,
        "synced_since": synced_since,
        "failed_since": bool(run and run.outcome == Outcome.SUCCEEDED and watch.is_failing),
    }


def open_operations(user: User | AnonymousUser) -> list[dict[str, Any]]:
    """Return a context for each of the newest open operations, if the user can view operations."""
    return [of_operation(operation) for operation in newest_open(user, BulkOperation.objects.all())]


def newest_open(user: User | AnonymousUser, queryset: QuerySet[BulkOperation]) -> list[BulkOperation]:
    if not can_view_operations(user):
        return []
    return list(queryset.filter(ended_at=None).order_by("-created_at", "-pk")[:MAX_OPERATIONS])


def involving(app: App) -> QuerySet[BulkOperation]:
    """Return operations requested for this app, or for several apps including it."""
    its_runs = SyncRun.objects.filter(operation=OuterRef("pk"), watch__app=app)
    its_unreleased = PendingRelease.objects.filter(operation=OuterRef("pk"), watch__app=app)
    return BulkOperation.objects.filter(Q(app=app) | Q(app=None) & (Exists(its_runs) | Exists(its_unreleased)))


def open_progress(watches: Iterable[AppRepository]) -> dict[int, Progress]:
    """Return the progress of each watch's newest open run, by watch primary key."""
    newest = newest_open_runs(watches)
    progress = live.of_runs(newest.values())
    return {watch_pk: progress[run.pk] for watch_pk, run in newest.items()}


def live_query(watches: Iterable[AppRepository], *, with_files: bool = False) -> str:
    """Return the query of the next poll: the active rows, and which of them are shown as failing; empty if none is active."""
    active = [watch for watch in watches if watch.is_active]
    if not active:
        return ""
    values = {
        "ids": joined(watch.pk for watch in active),
        "files": "1" if with_files else "",
        "failing": joined(watch.pk for watch in active if watch.is_failing),
    }
    return "&".join(f"{name}={value}" for name, value in values.items() if value)


def joined(pks: Iterable[int]) -> str:
    return ",".join(map(str, pks))


def summary(operation: BulkOperation, progress: Progress) -> str:
    """Summarize a finished operation in a few words, or a cancelled one in up to three sentences."""
    if operation.cancelled_at is not None:
        return _after_cancel(operation, progress)
    counts = {"succeeded": progress.succeeded, "failed": progress.failed, "cancelled": progress.cancelled}
    counts["superseded by a later request"] = progress.superseded
    counts["not released"] = progress.unreleased or 0
    sent = f"{counted(progress.files_done, 'file')} ({format_bytes(progress.bytes_done)})"
    took = (progress.ended_at - operation.created_at).total_seconds() if progress.ended_at else 0.0
    return f"{counted(progress.total, 'repository')}: {format_counts(counts)} · {sent} in {format_seconds(took)}"


def _after_cancel(operation: BulkOperation, progress: Progress) -> str:
    """Summarize a cancelled operation. After a cancelled re-sync, started repositories continue with an ordinary sync."""
    cancelled = operation.runs.filter(outcome=Outcome.CANCELLED)
    started = list(cancelled.filter(started_at__isnull=False).order_by("pk")[: _NAMED + 1])
    untouched = cancelled.filter(started_at=None).count()
    is_resync = operation.kind == OperationKind.RESYNC
    done = "had been sent in full" if is_resync else "succeeded before that"
    parts = [f"{counted(progress.succeeded, 'repository') if progress.succeeded else 'No repository'} {done}"]
    parts += [
        f"{_name_of(operation, run)} stopped after {run.files_done:,} of {run.files_total:,} files"
        for run in started[:_NAMED]
    ]
    if len(started) > _NAMED:
        parts.append("others were also stopped partway")
    if untouched:
        parts.append(f"{untouched:,} had not started")
    if progress.unreleased:
        they_were = "it was" if progress.unreleased == 1 else "they were"
        parts.append(f"{progress.unreleased:,} had not been released and stayed as {they_were}")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    text = f"Cancelled by {operation.cancelled_by}. {'; '.join(parts)}."
    if operation.kind == OperationKind.RETRY and (started or untouched):
        return f"{text} Repositories whose retry was cancelled are synced again later."
    if operation.kind == OperationKind.RESEND and (started or untouched):
        return f"{text} Files that were not resent are sent at the next sync."
    if started:
        return f"{text} For repositories that were stopped partway, only changed files are sent from now on."
    return text


def _name_of(operation: BulkOperation, run: SyncRun) -> str:
    """Name the repository, with its app if the operation spans several."""
    return run.repository_name if operation.app_id else f"{run.repository_name} → {run.app_name}"
