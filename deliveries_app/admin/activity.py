"""What happened: sync runs, bulk operations, deliveries. Lists to read."""

from typing import Any

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from deliveries_app import fragments, tallies
from deliveries_app.admin import components, words
from deliveries_app.admin.base import ReadOnlyAdmin
from deliveries_app.models import BulkOperation, Delivery, SyncRun
from docora.templatetags.docora import ago, badge, number, size

RUNS_PER_PAGE = 100


@admin.register(SyncRun)
class SyncRunAdmin(ReadOnlyAdmin[SyncRun]):
    list_display = (
        "repository_name", "app_name", "why", "requested_by", "started", "result", "files", "failed", "left_out_count",
        "error",
    )  # fmt: skip
    fields = (
        "run_id", "repository_name", "app_name", "why", "requested_by", "created_at", "started_at", "ended_at", "result",
        "attempts", "commit_sha", "files", "failed", "left_out_words", "bytes", "error",
    )  # fmt: skip
    list_filter = ("outcome", "reason")
    search_fields = ("run_id", "repository_name", "app_name", "requested_by")
    search_help_text = "Repository, app, who requested it, or a run id"
    paginator = components.BoundedPaginator

    @admin.display(description="reason")
    def why(self, run: SyncRun) -> str:
        return run.get_reason_display()

    @admin.display(description="requested", ordering="created_at")
    def started(self, run: SyncRun) -> str:
        return ago(run.created_at)

    @admin.display(description="outcome")
    def result(self, run: SyncRun) -> SafeString:
        return badge(run.outcome, run.get_outcome_display()) if run.outcome else badge("scanning", "open")

    @admin.display(description="files")
    def files(self, run: SyncRun) -> str:
        return f"{number(run.files_done)} of {number(run.files_total)}"

    @admin.display(description="failed")
    def failed(self, run: SyncRun) -> str:
        return number(run.files_failed) if run.files_failed else ""

    @admin.display(description="left out")
    def left_out_count(self, run: SyncRun) -> str:
        return number(left) if (left := words.number_left_out(run.left_out)) else ""

    @admin.display(description="left out")
    def left_out_words(self, run: SyncRun) -> str:
        return words.sentence(words.left_out(run.left_out))

    @admin.display(description="sent")
    def bytes(self, run: SyncRun) -> str:
        return f"{size(run.bytes_done)} of {size(run.bytes_total)}"


@admin.register(BulkOperation)
class BulkOperationAdmin(ReadOnlyAdmin[BulkOperation]):
    list_display = ("title", "requested_by", "requested", "repositories", "state")
    search_fields = ("title", "operation_id", "requested_by")
    paginator = components.BoundedPaginator
    page_template = "admin/deliveries_app/bulkoperation/change_form.html"

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return fragments.may_see_operations(request.user)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return fragments.may_see_operations(request.user)

    @admin.display(description="requested", ordering="created_at")
    def requested(self, operation: BulkOperation) -> str:
        return ago(operation.created_at)

    @admin.display(description="repositories", ordering="total")
    def repositories(self, operation: BulkOperation) -> str:
        return number(operation.total)

    @admin.display(description="state")
    def state(self, operation: BulkOperation) -> SafeString:
        if operation.ended_at is None:
            return badge("scanning", "running")
        return badge("cancelled", "cancelled") if operation.cancelled_at else badge("succeeded", "finished")

    def page_context(self, request: HttpRequest, operation: BulkOperation) -> dict[str, Any]:
        """The operation's progress, and each of its repositories."""
        runs = operation.runs.order_by("app_name", "repository_name", "pk")
        page = Paginator(runs, RUNS_PER_PAGE).get_page(request.GET.get("p"))
        found = tallies.of_runs(page.object_list)
        return {
            **fragments.of_operation(operation),
            "page": page,
            "rows": [{"run": run, "tally": found[run.pk]} for run in page.object_list],
            "open_ids": fragments.joined(run.pk for run in page.object_list if not run.outcome),
        }


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin[Delivery]):
    list_display = ("path", "repository", "app", "state", "kind", "bytes", "updated", "short_sha")
    list_select_related = ("pair__app", "pair__repository")
    search_fields = ("path",)  # what it really asks for stands in get_search_results
    search_help_text = "The beginning of a path, an app id or a repository id"
    paginator = components.BoundedPaginator
    sortable_by = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        return super().get_queryset(request).filter(pair__ended_at=None)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Delivery], search_term: str
    ) -> tuple[QuerySet[Delivery], bool]:
        """By the exact beginning of a path, as a range: SQLite's LIKE ignores case, and `_` means `_`."""
        if not search_term:
            return queryset, False
        path = Q(path__gte=search_term, path__lt=f"{search_term}\U0010ffff")
        ids = Q(pair__app__app_id=search_term) | Q(pair__repository__repository_id=search_term)
        return queryset.filter(path | ids), False

    @admin.display(description="repository")
    def repository(self, delivery: Delivery) -> str:
        return str(delivery.pair.repository)

    @admin.display(description="app")
    def app(self, delivery: Delivery) -> str:
        return delivery.pair.app.name

    @admin.display(description="state")
    def state(self, delivery: Delivery) -> SafeString:
        if not delivery.acknowledged:
            return badge("in doubt", "in doubt")
        if delivery.generation < delivery.pair.resend_floor:
            return badge("cleared", "cleared")
        return badge("delivered", "delivered")

    @admin.display(description="size")
    def bytes(self, delivery: Delivery) -> str:
        return size(delivery.size)

    @admin.display(description="SHA-256")
    def short_sha(self, delivery: Delivery) -> str:
        return delivery.sha[:12]

    @admin.display(description="last told")
    def updated(self, delivery: Delivery) -> str:
        return ago(delivery.updated_at)
