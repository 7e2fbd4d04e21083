"""Sync runs: the list, the page of one run, the CSV export."""

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse

from deliveries_app import actors
from deliveries_app.admin import filters, widgets
from deliveries_app.admin.base import column
from deliveries_app.admin.history import HistoryAdmin
from deliveries_app.models import AppRepository, BulkOperation, SyncRun
from deliveries_app.permissions import Permission
from deliveries_app.progress import activity, live
from deliveries_app.progress.runs import current_run
from deliveries_app.reports import failing_files, help_texts, history
from deliveries_app.reports.next_attempt import next_attempt_of
from docora.templatetags.docora import number, state_badge, trigger
from docora.text import parse_pk
from docora.web.csv_export import Cell


@admin.register(SyncRun)
class SyncRunAdmin(HistoryAdmin[SyncRun]):
    list_display = (
        "repository_name", "app_name", "result", "problem", "requested", "took", "trigger", "files",
    )  # fmt: skip
    list_filter = (
        filters.RunAppFilter, filters.RepositoryFilter, filters.WatchFilter, filters.OperationFilter,
        filters.OutcomeFilter, filters.ReasonFilter, filters.PeriodFilter,
    )  # fmt: skip
    search_help_text = (
        "Run ID, operation ID, or part of an app or repository name. "
        f"For repositories that are no longer watched, only the newest {history.WINDOW:,} runs are searched."
    )
    empty_text = "No sync runs yet. The first sync of each watched repository appears here."
    page_template = "admin/deliveries_app/syncrun/change_form.html"
    search = staticmethod(history.search_runs)
    csv_name = "sync-runs"
    csv_header = (
        "run_id", "requested_at", "started_at", "ended_at", "seconds", "app", "repository", "trigger", "requested_by",
        "outcome", "attempts", "commit", "files_total", "files_done", "files_failed", "files_left_out", "bytes_total",
        "bytes_done", "bulk_operation_id", "error",
    )  # fmt: skip

    def related_link(self, request: HttpRequest) -> tuple[str, str] | None:
        app = request.GET.get("watch__app", "")
        if parse_pk(app) is None or not actors.can_view_operations(request.user):
            return None
        return "Bulk operations", f"{reverse('admin:deliveries_app_bulkoperation_changelist')}?app={app}"

    def get_queryset(self, request: HttpRequest) -> QuerySet[SyncRun]:
        return SyncRun.objects.with_result()

    trigger = column("trigger", trigger)
    result = column("result", lambda run: state_badge(run.result))

    @admin.display(description="files")
    def files(self, run: SyncRun) -> str:
        done, total = number(run.files_done), number(run.files_total)
        return done if done == total else f"{done} of {total}"

    problem = column("error", lambda run: widgets.problem(run.error))

    def page_context(self, request: HttpRequest, run: SyncRun) -> dict[str, Any]:
        """Return the run's details, and the files of its watch that are not delivered now."""
        watches = AppRepository.objects.with_state().for_list()
        watch = watches.get(pk=run.watch_id) if run.watch_id else None
        can_view_watch = watch is not None and request.user.has_perm(Permission.VIEW_WATCHES)
        progress = live.of_run(run)
        current = current_run(watch) if watch else None
        return {
            "run": run,
            "watch": watch,
            "page_run": run.pk,
            "is_live": can_view_watch and not run.outcome and run == current,
            "next_attempt": next_attempt_of(watch) if watch and not run.outcome else None,
            "activity": activity.of_run(run, watch, progress) if watch else None,
            "progress": progress,
            "took": history.seconds(run),
            "left_out": help_texts.left_out(run.left_out),
            "can_view_watch": can_view_watch,
            "can_view_operations": actors.can_view_operations(request.user),
            "failing_files": failing_files.of_watch(watch if can_view_watch else None),
        }

    def csv_rows(self, page: list[SyncRun]) -> list[Sequence[Cell]]:
        named = BulkOperation.objects.filter(pk__in={run.operation_id for run in page if run.operation_id})
        operations = dict(named.order_by().values_list("pk", "operation_id"))
        return [
            (
                run.run_id, run.created_at, run.started_at, run.ended_at, history.seconds(run), run.app_name,
                run.repository_name, run.reason_label, run.requested_by, str(run.result.label),
                run.attempts, run.commit_sha, run.files_total, run.files_done, run.files_failed,
                help_texts.number_left_out(run.left_out), run.bytes_total, run.bytes_done,
                operations.get(run.operation_id or 0), run.error,
            )
            for run in page
        ]  # fmt: skip
