"""Sync runs: the list, the page of one run, the CSV export."""

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from deliveries_app import actors
from deliveries_app.admin import history_filters as filters
from deliveries_app.admin.history import HistoryAdmin
from deliveries_app.admin.widgets import failures_context
from deliveries_app.models import BulkOperation, SyncRun
from deliveries_app.progress import live
from deliveries_app.reports import help_texts, history
from docora.templatetags.docora import number, outcome_badge, size
from docora.text import visible
from docora.web.csv_export import Cell

MAX_ERROR_CHARS = 100  # in the list; the page of a run shows all


@admin.register(SyncRun)
class SyncRunAdmin(HistoryAdmin[SyncRun]):
    list_display = (
        "repository_name", "app_name", "result", "trigger", "requested", "took", "commit", "files", "failed", "left_out_count",
        "bytes", "problem",
    )  # fmt: skip
    list_filter = (
        filters.AppFilter, filters.RepositoryFilter, filters.WatchFilter, filters.OperationFilter,
        filters.OutcomeFilter, filters.ReasonFilter, filters.PeriodFilter,
    )  # fmt: skip
    search_fields = ("run_id",)  # only shows the search box: see history.search_runs
    search_help_text = (
        "The id of a run or of a bulk operation, or part of the name of an app or a repository. "
        f"For repositories that are no longer watched, only the newest {history.WINDOW:,} runs are searched."
    )
    empty_text = "Nothing has been synced yet. Let an app watch a repository: its first sync is the first run here."
    page_template = "admin/deliveries_app/syncrun/change_form.html"
    csv_name = "sync-runs"
    csv_header = (
        "run_id", "requested_at", "started_at", "ended_at", "seconds", "app", "repository", "trigger", "requested_by",
        "outcome", "attempts", "commit", "files_total", "files_done", "files_failed", "files_left_out", "bytes_total",
        "bytes_done", "bulk_operation_id", "error",
    )  # fmt: skip

    def search(self, term: str) -> history.Search:
        return history.search_runs(term)

    def related_link(self, request: HttpRequest) -> tuple[str, str] | None:
        app = request.GET.get("watch__app", "")
        if not app.isdecimal() or not actors.can_view_operations(request.user):
            return None
        return "Its bulk operations", f"{reverse('admin:deliveries_app_bulkoperation_changelist')}?app={app}"

    @admin.display(description="trigger")
    def trigger(self, run: SyncRun) -> str:
        return f"{run.get_reason_display()}, {run.requested_by}"

    @admin.display(description="outcome")
    def result(self, run: SyncRun) -> SafeString:
        return outcome_badge(run)

    @admin.display(description="commit")
    def commit(self, run: SyncRun) -> str:
        return run.commit_sha[:8]

    @admin.display(description="files")
    def files(self, run: SyncRun) -> str:
        done, total = number(run.files_done), number(run.files_total)
        return done if done == total else f"{done} of {total}"

    @admin.display(description="failed")
    def failed(self, run: SyncRun) -> str:
        return number(run.files_failed) if run.files_failed else ""

    @admin.display(description="left out")
    def left_out_count(self, run: SyncRun) -> str:
        return number(left) if (left := help_texts.number_left_out(run.left_out)) else ""

    @admin.display(description="sent")
    def bytes(self, run: SyncRun) -> str:
        return size(run.bytes_done)

    @admin.display(description="error")
    def problem(self, run: SyncRun) -> SafeString | str:
        short = Truncator(visible(run.error)).chars(MAX_ERROR_CHARS)
        return format_html('<span class="problem">{}</span>', short) if short else ""

    def page_context(self, request: HttpRequest, run: SyncRun) -> dict[str, Any]:
        """Return the run's details, and the files of its watch that are not delivered now."""
        watch = run.watch
        can_view_watch = watch is not None and request.user.has_perm("deliveries_app.view_apprepository")
        newest = watch.runs.order_by("-generation", "-pk").first() if watch else None
        return {
            "run": run,
            "watch": watch,
            "is_live": can_view_watch and not run.outcome and run == newest,
            "progress": live.of_runs([run])[run.pk],
            "took": history.seconds(run),
            "left_out": help_texts.left_out(run.left_out),
            "can_view_watch": can_view_watch,
            "can_view_app": watch is not None and request.user.has_perm("deliveries_app.view_app"),
            "can_view_operations": actors.can_view_operations(request.user),
            **failures_context(watch if can_view_watch else None),
        }

    def csv_rows(self, page: list[SyncRun]) -> list[Sequence[Cell]]:
        named = BulkOperation.objects.filter(pk__in={run.operation_id for run in page if run.operation_id})
        operations = dict(named.order_by().values_list("pk", "operation_id"))
        return [
            (
                run.run_id, run.created_at, run.started_at, run.ended_at, history.seconds(run), run.app_name,
                run.repository_name, run.get_reason_display(), run.requested_by, run.get_outcome_display() or "open",
                run.attempts, run.commit_sha, run.files_total, run.files_done, run.files_failed,
                help_texts.number_left_out(run.left_out), run.bytes_total, run.bytes_done,
                operations.get(run.operation_id or 0), run.error,
            )
            for run in page
        ]  # fmt: skip
