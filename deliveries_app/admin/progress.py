"""Fragments that show the progress of operations and of single watches."""

from typing import Any

from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django_htmx.http import trigger_client_event

from deliveries_app import actors, services
from deliveries_app.admin.fragments import can_view_watches, fragment, page_context_of, polling_page, row_ids
from deliveries_app.admin.operations import page_fields, poll_query, rows_to_poll
from deliveries_app.admin.watches import has_changed, live_query, of_watch, refreshed_cells
from deliveries_app.models import AppRepository, AppRepositoryQuerySet, BulkOperation, SyncRun
from deliveries_app.permissions import Permission
from deliveries_app.progress import context as progress_context
from deliveries_app.reports import app_detail
from docora.db.compiled import compiled_and_prepared
from docora.text import parse_pks


@fragment(actors.can_view_operations)
def operation_progress(request: HttpRequest, operation_id: str) -> HttpResponse:
    """Return the progress of a bulk operation. Its box polls this until the operation has ended.

    On the operation's own page (`page=1`), the poll also refreshes the tab's title, the fields and the counts.
    """
    found = _operation(operation_id)
    if not found:
        raise Http404
    [operation] = found
    context = {**progress_context.of_operation(operation), "polled": True, "here": polling_page(request)}
    context["announces"] = request.GET.get("announced") != str(context["progress"].tens)
    context["turned"] = request.GET.get("held", "0") != str(int(operation.is_held))
    if request.GET.get("page") != "1":
        return render(request, "docora/progress.html#bulk_progress", context)
    context |= page_fields(request, operation)
    return render(request, "admin/deliveries_app/bulkoperation/change_form.html#polled", context)


@compiled_and_prepared
def _operation(operation_id: str) -> QuerySet[BulkOperation]:
    return BulkOperation.objects.filter(operation_id=operation_id).select_related("app")


@fragment(actors.can_view_operations)
def operation_rows(request: HttpRequest, operation_id: str) -> HttpResponse:
    """Return the rows of the runs `ids` and of the `watches` on an operation's page.

    The runs were open at the previous poll. The watches were not released when the page was rendered.
    """
    operation = get_object_or_404(BulkOperation, operation_id=operation_id)
    rows = rows_to_poll(operation, row_ids(request), row_ids(request, "watches"))
    context = {"operation": operation, "rows": rows, "poll_query": poll_query(rows)}
    return render(request, "docora/progress.html#run_rows", context)


@fragment(can_view_watches)
def live_watches(request: HttpRequest) -> HttpResponse:
    """Return the status cells of the watches `ids`, and the other cells of rows that settled, failed or recovered.

    An app's page, which refreshes all rows itself, wants the progress cells instead (`files=1`). Cells are swapped one by
    one, so that checkboxes and focus are kept.
    """
    asked = row_ids(request)
    watches = list(_watches().filter(pk__in=asked))
    failing, page = set(row_ids(request, "failing")), polling_page(request)
    with_files = request.GET.get("files") == "1"
    rights = {
        "can_retry": request.user.has_perm(Permission.RETRY),
        "can_resync": request.user.has_perm(Permission.RESYNC),
    }
    changed = [] if with_files else [watch for watch in watches if has_changed(watch, failing)]
    context = {
        "rows": app_detail.rows_of(watches),
        "live_query": live_query(watches, with_files=with_files),
        "with_files": with_files,
        "cells": [cell for watch in changed for cell in refreshed_cells(watch, page, **rights)],
        "settled": [watch for watch in watches if not watch.is_active],
        "gone": set(asked).difference(watch.pk for watch in watches),
    }
    return render(request, "docora/progress.html#live_cells", context)


@fragment(can_view_watches)
def watch_progress(request: HttpRequest, pk: int) -> HttpResponse:
    """Return the progress of one watch, for its own page or that of its `run`.

    When the watch settles, its page refreshes the other parts too. The response for a run's page is its whole content once
    the run has ended.
    """
    watch = get_object_or_404(_watches(), pk=pk)
    context = {**of_watch(watch), "polled": True, "here": polling_page(request)}
    progress = context["progress"]
    context["announces"] = progress is not None and request.GET.get("announced") != str(progress.tens)
    if page_run := request.GET.get("run"):
        return _run_progress(request, watch, page_run, context)
    response = render(request, "docora/progress.html#watch_progress", context)
    return response if watch.is_active else trigger_client_event(response, "docora:refresh", {"target": "#watch-live"})


@fragment(can_view_watches)
def live_watch(request: HttpRequest, pk: int) -> HttpResponse:
    """Return the content of a watch's page.

    `active=1` says that the page shows the watch as active. Then the progress polls for itself, more often.
    """
    watch = get_object_or_404(_watches(), pk=pk)
    context = page_context_of(request, watch)
    context |= {"sync_pause": services.current_pause(), "here": polling_page(request)}
    context["polls_progress"] = request.GET.get("active") == "1"
    return render(request, "admin/deliveries_app/apprepository/change_form.html#live", context)


def _run_progress(request: HttpRequest, watch: AppRepository, pk: str, context: dict[str, Any]) -> HttpResponse:
    """Return the progress of the run's watch, or once the run has ended, the content of its page."""
    newest = context["run"]
    run = newest if newest and str(newest.pk) == pk else watch.runs.filter(pk__in=parse_pks(pk)).first()
    if run is None or not run.outcome or not actors.can_view(request.user, SyncRun):
        return render(request, "docora/progress.html#watch_progress", {**context, "page_run": run and run.pk})
    page = page_context_of(request, run)
    return render(request, "admin/deliveries_app/syncrun/change_form.html#ended", context | page)


def _watches() -> AppRepositoryQuerySet:
    return AppRepository.objects.alive().with_state().for_list()
