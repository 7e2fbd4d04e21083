"""Template context for the progress fragments, on first render and when polled."""

from collections.abc import Iterable
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest

from deliveries_app.actors import can_view_operations
from deliveries_app.models import App, AppRepository, BulkOperation, OperationKind, Outcome, SyncRun
from deliveries_app.progress import live
from deliveries_app.progress.live import Progress
from deliveries_app.progress.runs import newest_open_runs
from docora.text import counted, format_bytes, format_seconds

MAX_OPERATIONS = 5
_NAMED = 3


def of_operation(operation: BulkOperation) -> dict[str, Any]:
    """Return the context for `docora/progress.html#bulk_progress`."""
    progress = live.of_operation(operation)
    return {
        "operation": operation,
        "progress": progress,
        "summary": summary(operation, progress) if progress.finished else "",
    }


def of_watch(watch: AppRepository) -> dict[str, Any]:
    """Return the context for `docora/progress.html#watch_progress`: the watch's newest run, open or ended."""
    run = watch.runs.order_by("-generation", "-pk").first()
    return {"watch": watch, "run": run, "progress": live.of_runs([run])[run.pk] if run else None}


def operation_contexts(request: HttpRequest, queryset: QuerySet[BulkOperation]) -> list[dict[str, Any]]:
    """Return a context for each of the `visible_operations`."""
    return [of_operation(operation) for operation in visible_operations(request.user, queryset)]


def visible_operations(
    user: AbstractBaseUser | AnonymousUser, queryset: QuerySet[BulkOperation]
) -> list[BulkOperation]:
    """Return open operations and ended ones that were not dismissed, newest first, if the user can view operations."""
    if not can_view_operations(user):
        return []
    newest = queryset.filter(Q(ended_at=None) | Q(dismissed_at=None)).order_by("-created_at", "-pk")
    return list(newest[:MAX_OPERATIONS])


def involving(app: App) -> QuerySet[BulkOperation]:
    """Return operations requested for this app, or for several apps including it."""
    its_runs = SyncRun.objects.filter(operation=OuterRef("pk"), watch__app=app)
    return BulkOperation.objects.filter(Q(app=app) | Q(app=None) & Exists(its_runs))


def open_progress(watches: Iterable[AppRepository]) -> dict[int, Progress]:
    """Return the progress of each watch's newest open run, by watch primary key."""
    newest = newest_open_runs(watches)
    progress = live.of_runs(newest.values())
    return {watch_pk: progress[run.pk] for watch_pk, run in newest.items()}


def live_ids(watches: Iterable[AppRepository]) -> str:
    """Return the comma-separated ids of active watches, which the list polls."""
    return joined(watch.pk for watch in watches if watch.is_active)


def joined(pks: Iterable[int]) -> str:
    return ",".join(map(str, pks))


def summary(operation: BulkOperation, progress: Progress) -> str:
    """Summarize a finished operation in up to three sentences."""
    if operation.cancelled_at is not None:
        return _after_cancel(operation, progress)
    counts = [f"{progress.succeeded:,} synced"]
    counts += [f"{progress.failed:,} failed"] if progress.failed else []
    counts += [f"{progress.cancelled:,} cancelled"] if progress.cancelled else []
    counts += [f"{progress.superseded:,} taken over by a later request"] if progress.superseded else []
    sent = f"{progress.files_done:,} files ({format_bytes(progress.bytes_done)}) in {format_seconds(progress.seconds)}"
    return f"{_repositories(progress.total)}: {', '.join(counts)} · {sent}"


def _after_cancel(operation: BulkOperation, progress: Progress) -> str:
    """Summarize a cancelled operation. After a cancelled re-sync, started repositories continue with an ordinary sync."""
    cancelled = operation.runs.filter(outcome=Outcome.CANCELLED)
    started = list(cancelled.filter(started_at__isnull=False).order_by("pk")[: _NAMED + 1])
    untouched = cancelled.filter(started_at=None).count()
    is_retry = operation.kind == OperationKind.RETRY
    were = "was" if progress.succeeded == 1 else "were"
    parts = [f"{_repositories(progress.succeeded)} {were} {'synced' if is_retry else 'sent again in full'}"]
    parts += [
        f"{_name_of(operation, run)} had {run.files_done:,} of {run.files_total:,} files sent"
        f"{'' if is_retry else ' and continues syncing'}"
        for run in started[:_NAMED]
    ]
    if len(started) > _NAMED:
        parts.append("others had started too" if is_retry else "others continue too")
    if untouched:
        parts.append(f"{untouched:,} {'was' if untouched == 1 else 'were'} not touched")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    text = f"Cancelled by {operation.cancelled_by}. {'; '.join(parts)}."
    if is_retry and (started or untouched):
        text += " Repositories whose retry was cancelled keep failing until the next rescan."
    return text


def _name_of(operation: BulkOperation, run: SyncRun) -> str:
    """Name the repository, with its app if the operation spans several."""
    return run.repository_name if operation.app_id else f"{run.repository_name} → {run.app_name}"


def _repositories(count: int) -> str:
    return counted(count, "repository", "repositories")
