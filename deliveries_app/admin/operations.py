"""Bulk operations: the list with outcomes, the page of one operation with its repositories, the CSV export."""

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries_app import actors
from deliveries_app.admin import history_filters as filters
from deliveries_app.admin.history import HistoryAdmin, HistoryList
from deliveries_app.models import BulkOperation
from deliveries_app.progress import context as progress_context
from deliveries_app.progress import live
from deliveries_app.reports import history
from docora.templatetags.docora import badge, icon, number, size
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
    list_display = ("title", "kind_badge", "state", "requested_by", "requested", "took", "repositories", "outcome_summary",
        "files", "bytes")  # fmt: skip
    list_filter = (filters.OperationAppFilter, filters.StateFilter, filters.KindFilter, filters.PeriodFilter)
    search_fields = ("operation_id",)  # only shows the search box: see history.search_operations
    search_help_text = "The id of an operation, or part of its title or of the requester's name"
    empty_text = "None yet. Re-syncing or retrying several repositories at once makes one."
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
        return "Its sync runs", f"{reverse('admin:deliveries_app_syncrun_changelist')}?watch__app={app}"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        list_class = super().get_changelist(request, **kwargs)
        return OperationList if list_class is HistoryList else list_class

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return actors.can_view_operations(request.user)

    @admin.display(description="kind")
    def kind_badge(self, operation: BulkOperation) -> SafeString:
        label = operation.get_kind_display()
        return format_html('<span class="kind kind-{}">{}{}</span>', operation.kind, icon(operation.kind), label)

    @admin.display(description="repositories")
    def repositories(self, operation: BulkOperation) -> str:
        return number(operation.total)

    @admin.display(description="outcome")
    def outcome_summary(self, operation: BulkOperation) -> str:
        return _outcomes(operation).summary

    @admin.display(description="files")
    def files(self, operation: BulkOperation) -> str:
        outcomes = _outcomes(operation)
        return f"{number(outcomes.files_done)} of {number(outcomes.files_total)}"

    @admin.display(description="sent")
    def bytes(self, operation: BulkOperation) -> str:
        return size(_outcomes(operation).bytes_done)

    @admin.display(description="state")
    def state(self, operation: BulkOperation) -> SafeString:
        state = state_of(operation)
        return badge({"running": "scanning", "finished": "succeeded"}.get(state, state), state)

    def page_context(self, request: HttpRequest, operation: BulkOperation) -> dict[str, Any]:
        """Return the operation's progress, its outcomes, and its repositories, all or those with one outcome."""
        outcomes = history.outcomes([operation])[operation.pk]
        part = request.GET.get("part", "")
        runs = operation.runs.order_by("app_name", "repository_name", "pk")
        if part in history.PARTS:
            runs = runs.filter(history.PARTS[part][1])
        page = Paginator(runs, RUNS_PER_PAGE).get_page(request.GET.get("p"))
        progress_of = live.of_runs(page.object_list)
        return {
            **progress_context.of_operation(operation),
            "state": state_of(operation),
            "took": history.seconds(operation),
            "outcomes": outcomes,
            "parts": [(name, label, outcomes.counts[name]) for name, (label, _) in history.PARTS.items()],
            "part": part if part in history.PARTS else "",
            "page": page,
            "rows": [
                {"run": run, "progress": progress_of[run.pk], "sent": history.describe_sent(run)}
                for run in page.object_list
            ],
            "open_ids": progress_context.joined(run.pk for run in page.object_list if not run.outcome),
            "can_view_runs": request.user.has_perm("deliveries_app.view_syncrun"),
            "can_view_app": request.user.has_perm("deliveries_app.view_app"),
            "can_view_watches": request.user.has_perm("deliveries_app.view_apprepository"),
        }

    def csv_rows(self, page: list[BulkOperation]) -> list[Sequence[Cell]]:
        outcomes = history.outcomes(page)
        apps = dict(BulkOperation.objects.filter(pk__in=outcomes).order_by().values_list("pk", "app__name"))
        return [
            (
                operation.operation_id, operation.kind, operation.title, apps.get(operation.pk), operation.requested_by,
                operation.created_at, operation.ended_at, history.seconds(operation), state_of(operation),
                operation.cancelled_at, operation.cancelled_by, operation.total, *outcomes[operation.pk].counts.values(),
                outcomes[operation.pk].files_total, outcomes[operation.pk].files_done,
                outcomes[operation.pk].bytes_total, outcomes[operation.pk].bytes_done,
            )
            for operation in page
        ]  # fmt: skip


def state_of(operation: BulkOperation) -> str:
    if operation.ended_at is None:
        return "running"
    return "cancelled" if operation.cancelled_at else "finished"


def _outcomes(operation: BulkOperation) -> history.Outcomes:
    """Return the outcomes that `OperationList` has attached."""
    outcomes: history.Outcomes = operation.outcomes  # type: ignore[attr-defined]
    return outcomes
