"""Bulk operations: the list with outcomes, the page of one operation with its repositories, the CSV export."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib import admin
from django.core.paginator import Page, Paginator
from django.db.models import Min, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, reverse
from django.views.decorators.http import require_POST

from deliveries_app import actors, services
from deliveries_app.actors import Actor
from deliveries_app.admin import filters
from deliveries_app.admin.base import column
from deliveries_app.admin.confirmation import next_url
from deliveries_app.admin.history import HistoryAdmin, HistoryList
from deliveries_app.models import (
    App,
    AppRepository,
    BulkOperation,
    Canary,
    CanaryState,
    PendingRelease,
    StateDetail,
    SyncRun,
    WatchState,
)
from deliveries_app.permissions import Permission
from deliveries_app.progress import context as progress_context
from deliveries_app.progress import live
from deliveries_app.progress.live import Progress
from deliveries_app.reports import history
from docora.templatetags.docora import number, state_badge
from docora.text import counted, parse_pk
from docora.web.csv_export import Cell

RUNS_PER_PAGE = 100
UNRELEASED = "unreleased"
"""Value of `part` in URLs: the repositories that have no run yet."""


class OperationList(HistoryList):
    """Count the outcomes of all operations on the page in one query."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        outcomes = history.outcomes(self.result_list)
        for operation in self.result_list:
            operation.outcomes = outcomes[operation.pk]


@admin.register(BulkOperation)
class BulkOperationAdmin(HistoryAdmin[BulkOperation]):
    list_class = OperationList
    list_display = (
        "title", "state", "outcome_summary", "requested", "took", "requester", "repositories", "files",
    )  # fmt: skip
    list_filter = (filters.OperationAppFilter, filters.ProgressFilter, filters.KindFilter, filters.PeriodFilter)
    search_help_text = "Operation ID, or part of its title or requester"
    empty_text = "No bulk operations yet. Re-syncs, retries and resends are listed here."
    page_template = "admin/deliveries_app/bulkoperation/change_form.html"
    search = staticmethod(history.search_operations)
    csv_name = "bulk-operations"
    csv_header = (
        "bulk_operation_id", "kind", "title", "app", "requested_by", "requested_at", "ended_at", "seconds", "state",
        "cancelled_at", "cancelled_by", "repositories", *history.PARTS, "files_total", "files_done", "bytes_total",
        "bytes_done", "unreleased", "reason",
    )  # fmt: skip

    def related_link(self, request: HttpRequest) -> tuple[str, str] | None:
        app = request.GET.get("app", "")
        if parse_pk(app) is None or not request.user.has_perm(Permission.VIEW_RUNS):
            return None
        return "Sync runs", f"{reverse('admin:deliveries_app_syncrun_changelist')}?watch__app={app}"

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return actors.can_view_operations(request.user)

    def get_urls(self) -> list[URLPattern]:
        return [
            self.object_page("cancel", require_POST(self.cancel)),
            self.object_page("continue", require_POST(self.continue_held)),
            *super().get_urls(),
        ]

    def cancel(self, request: HttpRequest, operation: BulkOperation) -> HttpResponse:
        cancelled = services.cancel_operation(Actor.of_request(request), operation)
        return self._redirect(
            request, operation, "Cancelled the sync of", cancelled, "The operation had already ended."
        )

    def continue_held(self, request: HttpRequest, operation: BulkOperation) -> HttpResponse:
        continued = services.continue_operation(Actor.of_request(request), operation)
        return self._redirect(request, operation, "Continuing with", continued, "The operation is not held.")

    def _redirect(
        self, request: HttpRequest, operation: BulkOperation, done: str, count: int, nothing: str
    ) -> HttpResponse:
        """Redirect with a message: `done` and the `count` of repositories, or `nothing` if there are none."""
        page = next_url(request, self.page_of(operation))
        if not count:
            return self.redirect_with_warning(request, page, nothing)
        message = f"{done} {counted(count, 'repository')}."
        return self.redirect_with_message(request, page, message)

    requester = column("by", lambda operation: operation.requested_by)
    repositories = column("repositories", lambda operation: number(operation.total))
    outcome_summary = column("repositories by result", lambda operation: operation.outcomes.summary)

    files = column(
        "files",
        lambda operation: f"{number(operation.outcomes.files_done)} of {number(operation.outcomes.files_total)}",
    )
    state = column("result", lambda operation: state_badge(operation.outcomes.result_of(operation)))

    def page_context(self, request: HttpRequest, operation: BulkOperation) -> dict[str, Any]:
        """Return the operation's progress, its fields, and its repositories, all or those with one outcome."""
        runs = operation.runs.with_result().order_by("app_name", "repository_name", "pk")
        pending = operation.pending.order_by("position") if operation.is_gradual else PendingRelease.objects.none()
        part = request.GET.get("part", "")
        if part == UNRELEASED:
            runs = runs.none()
        elif part in history.PARTS:
            runs, pending = runs.filter(history.PARTS[part][1]), pending.none()
        everything: Any = _RunsThenPending(runs, pending)
        page: Page[Any] = Paginator(everything, RUNS_PER_PAGE).get_page(request.GET.get("p"))
        rows = rows_of(operation, *page.object_list)
        return {
            **progress_context.of_operation(operation),
            **page_fields(operation),
            "part": part if part in {*history.PARTS, UNRELEASED} else "",
            "page": page,
            "rows": rows,
            "poll_query": poll_query(rows),
        }

    def csv_rows(self, page: list[BulkOperation]) -> list[Sequence[Cell]]:
        outcomes = history.outcomes(page)
        apps = dict(BulkOperation.objects.filter(pk__in=outcomes).order_by().values_list("pk", "app__name"))
        return [
            (
                operation.operation_id, operation.kind, operation.title, apps.get(operation.pk), operation.requested_by,
                operation.created_at, operation.ended_at, history.seconds(operation), outcomes[operation.pk].result_of(operation).label,
                operation.cancelled_at, operation.cancelled_by, operation.total, *outcomes[operation.pk].counts.values(),
                outcomes[operation.pk].files_total, outcomes[operation.pk].files_done,
                outcomes[operation.pk].bytes_total, outcomes[operation.pk].bytes_done, outcomes[operation.pk].unreleased,
                operation.reason,
            )
            for operation in page
        ]  # fmt: skip


class _RunsThenPending:
    """An operation's runs, followed by its unreleased watches. A slice returns a list of each."""

    def __init__(self, runs: QuerySet[SyncRun], pending: QuerySet[PendingRelease]) -> None:
        self._runs, self._pending = runs, pending
        self._first = runs.count()

    def __len__(self) -> int:
        return self._first + self._pending.count()

    def __getitem__(self, part: slice) -> tuple[list[SyncRun], list[PendingRelease]]:
        runs = list(self._runs[part.start : part.stop])
        first, last = (max(0, number - self._first) for number in (part.start, part.stop))
        return runs, list(self._pending[first:last])


def page_fields(operation: BulkOperation) -> dict[str, Any]:
    """Return what a poll of the operation's page refreshes besides its progress."""
    outcomes = history.outcomes([operation])[operation.pk]
    parts = [(name, label, outcomes.counts[name]) for name, (label, _) in history.PARTS.items()]
    return {
        "on_page": True,
        "took": history.seconds(operation),
        "all_rows": sum(outcomes.counts.values()) + (0 if operation.ended_at else outcomes.unreleased),
        "parts": [
            *parts,
            (UNRELEASED, "not released" if operation.ended_at else "not released yet", outcomes.unreleased),
        ],
        "deleted_app": _deleted_app(operation),
    }


def _deleted_app(operation: BulkOperation) -> str:
    """Return the name of the operation's only app if that was deleted, from its runs; empty for several apps."""
    if operation.app_id or operation.ended_at is None or operation.runs.exclude(watch=None).exists():
        return ""
    names = list(operation.runs.order_by().values_list("app_name", flat=True).distinct()[:2])
    return f"{names[0]} (deleted)" if len(names) == 1 else ""


@dataclass(frozen=True)
class Row:
    """A repository on an operation's page.

    - `key` is part of the ids of its cells, and stays the same when the watch is released.
    - `watch` is set while the run is open, and `is_superseded` while a later request is in progress in its place.
    - Without a run, the repository is not released yet and `waits_for` says why, or it was never released.
    """

    key: str
    repository: str
    app: str
    watch_pk: int | None
    run: SyncRun | None = None
    progress: Progress | None = None
    watch: AppRepository | None = None
    is_superseded: bool = False
    state: WatchState = WatchState.QUEUED
    waits_for: str = ""

    @property
    def error(self) -> str:
        """The last error of the watch while the run is open and failing; otherwise the error that the run ended with."""
        if self.watch is not None and self.watch.is_failing:
            return self.watch.last_error
        return self.run.error if self.run else ""


def rows_of(
    operation: BulkOperation,
    runs: Sequence[SyncRun],
    pending: Sequence[PendingRelease],
    *,
    keys: Mapping[int, str] = {},
) -> list[Row]:
    """Return the rows of an operation's page. `keys` replaces the keys of runs, by their primary keys."""
    progress_of = live.of_runs(runs)
    shown = [*(run.watch_id for run in runs if not run.outcome), *(row.watch_id for row in pending)]
    watches = AppRepository.objects.with_state().for_list().in_bulk(shown)
    released = [
        Row(
            keys.get(run.pk, str(run.pk)), run.repository_name, run.app_name, run.watch_id,
            run=run, progress=progress_of[run.pk], watch=watches.get(run.watch_id or 0),
            is_superseded=run.is_superseded,
        )
        for run in runs
    ]  # fmt: skip
    return [
        *released,
        *_waiting_rows(operation, {row: watches[row.watch_id] for row in pending if row.watch_id in watches}),
    ]


def _waiting_rows(operation: BulkOperation, pending: Mapping[PendingRelease, AppRepository]) -> Iterator[Row]:
    """Yield the rows of unreleased watches, with what each is waiting for: for the end of a pause, or for its turn."""
    apps = {watch.app_id for watch in pending.values()}
    of_apps = operation.canaries.select_related("run").filter(app__in=apps) if operation.canary and apps else []
    canaries = {canary.app_id: canary for canary in of_apps}
    in_order = operation.pending.filter(
        watch__app__in=[pk for pk in canaries if canaries[pk].state == CanaryState.WAITING]
    )
    # Positions of the first repository of each app whose canary is not released yet.
    first = set(in_order.order_by().values("watch__app").annotate(at=Min("position")).values_list("at", flat=True))
    for row, watch in pending.items():
        if watch.state == WatchState.PAUSED or watch.detail == StateDetail.IMPORTING:
            state, waits_for = watch.state, str(watch.detail.label)
        else:
            state = WatchState.QUEUED
            waits_for = _waits_for(canaries.get(watch.app_id), watch.app, is_first=row.position in first)
        yield Row(f"w{watch.pk}", str(watch.repository), watch.app.name, watch.pk, state=state, waits_for=waits_for)


def _waits_for(canary: Canary | None, app: App, *, is_first: bool) -> str:
    first = canary.run.repository_name if canary and canary.run else ""
    match canary.state if canary else None:
        case CanaryState.WAITING:
            return f"first repository of {app}" if is_first else f"waiting for the first repository of {app}"
        case CanaryState.RUNNING:
            return f"waiting for {first}, the first repository of {app}"
        case CanaryState.HELD:
            return f"held, because {first} did not succeed"
    return "waiting to be released"


def rows_to_poll(operation: BulkOperation, run_pks: Sequence[int], watch_pks: Sequence[int]) -> list[Row]:
    """Return the rows of these runs, and of these watches, which were not released when the page was rendered."""
    all_runs = operation.runs.with_result()
    runs = list(all_runs.filter(pk__in=run_pks))
    released = list(all_runs.filter(watch__in=watch_pks))
    pending = list(operation.pending.filter(watch__in=watch_pks))
    keys = {run.pk: f"w{run.watch_id}" for run in released}
    rows = rows_of(operation, [*runs, *released], pending, keys=keys)
    dropped = {f"w{pk}" for pk in watch_pks}.difference(row.key for row in rows)
    return [*rows, *(Row(key, "", "", None) for key in sorted(dropped))]


def poll_query(rows: Iterable[Row]) -> str:
    """Return the query of the next poll, for the rows that can still change; empty if there are none."""
    open_rows = [row for row in rows if (not row.run.outcome if row.run else row.waits_for)]
    runs = [row.key for row in open_rows if not row.key.startswith("w")]
    watches = [row.key.removeprefix("w") for row in open_rows if row.key.startswith("w")]
    return f"ids={','.join(runs)}&watches={','.join(watches)}" if open_rows else ""
