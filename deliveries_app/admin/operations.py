"""Bulk operations: the list with outcomes, the page of one operation with its repositories, the CSV export."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.http import HttpRequest
from django.urls import reverse
from django.utils.safestring import SafeString

from deliveries_app import actors
from deliveries_app.admin import history_filters as filters
from deliveries_app.admin.history import HistoryAdmin, HistoryList
from deliveries_app.models import AppRepository, BulkOperation, SyncRun
from deliveries_app.progress import context as progress_context
from deliveries_app.progress import live
from deliveries_app.reports import history
from docora.templatetags.docora import badge, number
from docora.web.csv_export import Cell

RUNS_PER_PAGE = 100


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
    list_display = (
        "title", "state", "outcome_summary", "requested", "took", "requester", "repositories", "files",
    )  # fmt: skip
    list_filter = (filters.OperationAppFilter, filters.StateFilter, filters.KindFilter, filters.PeriodFilter)
    search_fields = ("operation_id",)  # only shows the search box: see history.search_operations
    search_help_text = "Operation ID, or part of its title or requester"
    empty_text = "No bulk operations yet. Re-syncs, retries and resends are listed here."
    page_template = "admin/deliveries_app/bulkoperation/change_form.html"
    csv_name = "bulk-operations"
    csv_header = (
        "bulk_operation_id", "kind", "title", "app", "requested_by", "requested_at", "ended_at", "seconds", "state",
        "cancelled_at", "cancelled_by", "repositories", *history.PARTS, "files_total", "files_done", "bytes_total",
        "bytes_done",
    )  # fmt: skip

    def search(self, term: str) -> history.Search:
        return history.search_operations(term)

    def related_link(self, request: HttpRequest) -> tuple[str, str] | None:
        app = request.GET.get("app", "")
        if not app.isdecimal() or not request.user.has_perm("deliveries_app.view_syncrun"):
            return None
        return "Sync runs", f"{reverse('admin:deliveries_app_syncrun_changelist')}?watch__app={app}"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        list_class = super().get_changelist(request, **kwargs)
        return OperationList if list_class is HistoryList else list_class

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return actors.can_view_operations(request.user)

    @admin.display(description="by")
    def requester(self, operation: BulkOperation) -> str:
        return operation.requested_by

    @admin.display(description="repositories")
    def repositories(self, operation: BulkOperation) -> str:
        return number(operation.total)

    @admin.display(description="repositories by result")
    def outcome_summary(self, operation: BulkOperation) -> str:
        return _outcomes(operation).summary

    @admin.display(description="files")
    def files(self, operation: BulkOperation) -> str:
        outcomes = _outcomes(operation)
        return f"{number(outcomes.files_done)} of {number(outcomes.files_total)}"

    @admin.display(description="result")
    def state(self, operation: BulkOperation) -> SafeString:
        result = _outcomes(operation).result_of(operation)
        return badge(result.value, result.label)

    def page_context(self, request: HttpRequest, operation: BulkOperation) -> dict[str, Any]:
        """Return the operation's progress, its facts, and its repositories, all or those with one outcome."""
        runs = operation.runs.order_by("app_name", "repository_name", "pk")
        part = request.GET.get("part", "")
        if part in history.PARTS:
            runs = runs.filter(history.PARTS[part][1])
        page = Paginator(runs, RUNS_PER_PAGE).get_page(request.GET.get("p"))
        return {
            **progress_context.of_operation(operation),
            **page_facts(request, operation),
            "part": part if part in history.PARTS else "",
            "page": page,
            "rows": rows_of(page.object_list),
            "open_ids": progress_context.joined(run.pk for run in page.object_list if not run.outcome),
            "can_view_runs": request.user.has_perm("deliveries_app.view_syncrun"),
            "can_view_watches": request.user.has_perm("deliveries_app.view_apprepository"),
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
                outcomes[operation.pk].bytes_total, outcomes[operation.pk].bytes_done,
            )
            for operation in page
        ]  # fmt: skip


def page_facts(request: HttpRequest, operation: BulkOperation) -> dict[str, Any]:
    """Return what a poll of the operation's page refreshes besides its progress."""
    outcomes = history.outcomes([operation])[operation.pk]
    return {
        "on_page": True,
        "took": history.seconds(operation),
        "parts": [(name, label, outcomes.counts[name]) for name, (label, _) in history.PARTS.items()],
        "can_view_app": request.user.has_perm("deliveries_app.view_app"),
    }


def rows_of(runs: Iterable[SyncRun]) -> list[dict[str, Any]]:
    """Return the rows of an operation's page: each run with its progress and, while it is open, its watch."""
    runs = list(runs)
    progress_of = live.of_runs(runs)
    open_watches = [run.watch_id for run in runs if not run.outcome]
    watches = AppRepository.objects.with_state().select_related("repository").in_bulk(open_watches)
    return [{"run": run, "progress": progress_of[run.pk], "watch": watches.get(run.watch_id or 0)} for run in runs]


def _outcomes(operation: BulkOperation) -> history.Outcomes:
    """Return the outcomes that `OperationList` has attached."""
    outcomes: history.Outcomes = operation.outcomes  # type: ignore[attr-defined]
    return outcomes
