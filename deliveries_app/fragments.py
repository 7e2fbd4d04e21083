"""What the progress fragments show, for the pages that hold them and for the polls that refresh them."""

from collections.abc import Iterable
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.template.loader import get_template

from deliveries_app import followed, tallies
from deliveries_app.models import App, AppRepository, BulkOperation, OperationKind, Outcome, SyncRun
from deliveries_app.services import RESYNC_PERMISSION, RETRY_PERMISSION
from deliveries_app.tallies import Tally
from docora.text import counted, format_bytes, format_seconds

SHOWN_OPERATIONS = 5
KEPT_SECONDS = 5
_NAMED = 3


def may_see_operations(user: AbstractBaseUser | AnonymousUser) -> bool:
    """Who may start an operation may follow it, whatever else they see."""
    enough = ("deliveries_app.view_bulkoperation", RESYNC_PERMISSION, RETRY_PERMISSION)
    return any(user.has_perm(permission) for permission in enough)  # type: ignore[union-attr]


def polled(operation_id: str, *, said: str | None) -> dict[str, Any] | None:
    """`of_operation` for a poll; None when there is no such operation.

    Screen readers read out whatever is put into the page, so it `speaks` only when ten percent more are done than `said`.
    """
    bar = followed.read(operation_id, _draw)
    return _polled(bar.operation, bar.tally, speaks=said != str(bar.tally.tens)) if bar else None


def running(operation_id: str, *, said: str | None) -> str | None:
    """The same, drawn, of an operation that is under way; None when it is not."""
    bar = followed.read(operation_id, _draw)
    if bar is None or bar.tally.finished:
        return None
    if said == str(bar.tally.tens):
        return bar.drawn or _draw(bar.operation, bar.tally)
    return _draw(bar.operation, bar.tally, speaks=True)


def _draw(operation: BulkOperation, tally: Tally, *, speaks: bool = False) -> str:
    return get_template("docora/progress.html#bulk_progress").render(_polled(operation, tally, speaks=speaks))


def _polled(operation: BulkOperation, tally: Tally, *, speaks: bool) -> dict[str, Any]:
    return of_operation(operation, tally) | {"polled": True, "speaks": speaks}


def of_operation(operation: BulkOperation, tally: Tally | None = None) -> dict[str, Any]:
    """For `docora/progress.html#bulk_progress`."""
    tally = tally or tallies.of_operation(operation)
    return {"operation": operation, "tally": tally, "summary": summary(operation, tally) if tally.finished else ""}


def of_pair(pair: AppRepository) -> dict[str, Any]:
    """For `docora/progress.html#pair_progress`: the pair's newest run, open or not."""
    run = pair.runs.order_by("-generation", "-pk").first()
    return {"pair": pair, "run": run, "tally": tallies.of_runs([run])[run.pk] if run else None}


def shown_operations(request: HttpRequest, queryset: QuerySet[BulkOperation]) -> list[dict[str, Any]]:
    """The contexts of those that `shown` finds."""
    return [of_operation(operation) for operation in shown(request.user, queryset)]


def shown(user: AbstractBaseUser | AnonymousUser, queryset: QuerySet[BulkOperation]) -> list[BulkOperation]:
    """Operations that run, and finished ones until they are dismissed, the newest first, for whoever may follow them."""
    if not may_see_operations(user):
        return []
    newest = queryset.filter(Q(ended_at=None) | Q(dismissed_at=None)).order_by("-created_at", "-pk")
    return list(newest[:SHOWN_OPERATIONS])


def touching(app: App) -> QuerySet[BulkOperation]:
    """Operations that were asked for this app, or for several of which it is one."""
    its_runs = SyncRun.objects.filter(operation=OuterRef("pk"), pair__app=app)
    return BulkOperation.objects.filter(Q(app=app) | Q(app=None) & Exists(its_runs))


def open_tallies(pairs: Iterable[AppRepository]) -> dict[int, Tally]:
    """The tally of the newest open run of each pair that has one, by the pair's primary key."""
    runs = SyncRun.objects.filter(pair__in=list(pairs), outcome="").order_by("generation", "pk")
    newest = {run.pair_id: run for run in runs if run.pair_id is not None}
    found = tallies.of_runs(newest.values())
    return {pair_pk: found[run.pk] for pair_pk, run in newest.items()}


def live_ids(pairs: Iterable[AppRepository]) -> str:
    """The ids that a list's poller asks for: rows where something is going on."""
    return joined(pair.pk for pair in pairs if pair.is_active)


def joined(pks: Iterable[int]) -> str:
    return ",".join(map(str, pks))


def summary(operation: BulkOperation, tally: Tally) -> str:
    """What came of a finished operation, in a sentence or three."""
    if operation.cancelled_at is not None:
        return _after_cancel(operation, tally)
    counts = [f"{tally.succeeded:,} synced"]
    counts += [f"{tally.failed:,} failed"] if tally.failed else []
    counts += [f"{tally.cancelled:,} cancelled"] if tally.cancelled else []
    counts += [f"{tally.superseded:,} taken over by a later request"] if tally.superseded else []
    sent = f"{tally.files_done:,} files ({format_bytes(tally.bytes_done)}) in {format_seconds(tally.seconds)}"
    return f"{_repositories(tally.total)}: {', '.join(counts)} · {sent}"


def _after_cancel(operation: BulkOperation, tally: Tally) -> str:
    cancelled = operation.runs.filter(outcome=Outcome.CANCELLED)
    begun = list(cancelled.filter(started_at__isnull=False).order_by("pk")[: _NAMED + 1])
    untouched = cancelled.filter(started_at=None).count()
    is_retry = operation.kind == OperationKind.RETRY
    were = "was" if tally.succeeded == 1 else "were"
    parts = [f"{_repositories(tally.succeeded)} {were} {'synced' if is_retry else 'sent again in full'}"]
    parts += [
        f"{_of_run(operation, run)} had {run.files_done:,} of {run.files_total:,} files sent"
        f"{'' if is_retry else ' and goes on'}"
        for run in begun[:_NAMED]
    ]
    if len(begun) > _NAMED:
        parts.append("others were begun too" if is_retry else "so do others")
    if untouched:
        parts.append(f"{untouched:,} {'was' if untouched == 1 else 'were'} not touched")
    if tally.failed:
        parts.append(f"{tally.failed:,} failed")
    said = f"Stopped by {operation.cancelled_by}. {'; '.join(parts)}."
    stopped = is_retry and (begun or untouched)
    return f"{said} What was stopped goes on failing until the next rescan." if stopped else said


def _of_run(operation: BulkOperation, run: SyncRun) -> str:
    """The repository; with its app where an operation touches several."""
    return run.repository_name if operation.app_id else f"{run.repository_name} → {run.app_name}"


def _repositories(count: int) -> str:
    return counted(count, "repository", "repositories")
