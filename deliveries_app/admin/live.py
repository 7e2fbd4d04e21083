"""Fragments that pages load: progress, panels polled every five seconds, and the suggestions of text fields."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils.html import format_html_join
from django_htmx.http import trigger_client_event

from deliveries_app.actors import can_view, can_view_operations
from deliveries_app.admin import failed, operations, watches
from deliveries_app.admin.failed import CellOptions
from deliveries_app.admin.filters import apps_named
from deliveries_app.admin.fragments import can_view_watches, fragment, page_context_of, polling_page, row_ids
from deliveries_app.models import App, AppRepository, AppRepositoryQuerySet, BulkOperation, Delivery, SyncRun
from deliveries_app.permissions import Permission
from deliveries_app.progress import context as progress_context
from deliveries_app.reports import app_detail, overview
from deliveries_app.reports import queue as queue_report
from deliveries_app.services import current_pause
from docora.db.compiled import compiled_and_prepared
from docora.text import parse_pk, parse_pks

SUGGESTED_NAMES = 20
can_view_apps = partial(can_view, model=App)


@fragment(can_view_operations)
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
    context |= {**operations.page_fields(operation), "part": request.GET.get("part", "")}
    return render(request, "admin/deliveries_app/bulkoperation/change_form.html#polled", context)


@compiled_and_prepared
def _operation(operation_id: str) -> QuerySet[BulkOperation]:
    return BulkOperation.objects.filter(operation_id=operation_id).select_related("app")


@fragment(can_view_operations)
def operation_rows(request: HttpRequest, operation_id: str) -> HttpResponse:
    """Return the rows of the runs `ids` and of the `watches` on an operation's page.

    The runs were open at the previous poll. The watches were not released when the page was rendered.
    """
    operation = get_object_or_404(BulkOperation, operation_id=operation_id)
    rows = operations.rows_to_poll(operation, row_ids(request), row_ids(request, "watches"))
    context = {"operation": operation, "rows": rows, "poll_query": operations.poll_query(rows)}
    return render(request, "docora/progress.html#run_rows", context)


@fragment(can_view_watches)
def live_watches(request: HttpRequest) -> HttpResponse:
    """Return the status cells of the watches `ids`, and the other cells of rows that settled, failed or recovered.

    An app's page, which refreshes all rows itself, wants the progress cells instead (`files=1`). Cells are swapped one by
    one, so that checkboxes and focus are kept.
    """
    asked = row_ids(request)
    listed = list(_watches().filter(pk__in=asked))
    failing, page = set(row_ids(request, "failing")), polling_page(request)
    with_files = request.GET.get("files") == "1"
    rights = {
        "can_retry": request.user.has_perm(Permission.RETRY),
        "can_resync": request.user.has_perm(Permission.RESYNC),
    }
    changed = [] if with_files else [watch for watch in listed if watches.has_changed(watch, failing)]
    context = {
        "rows": app_detail.rows_of(listed),
        "live_query": watches.live_query(listed, with_files=with_files),
        "with_files": with_files,
        "cells": [cell for watch in changed for cell in watches.refreshed_cells(watch, page, **rights)],
        "settled": [watch for watch in listed if not watch.is_active],
        "gone": set(asked).difference(watch.pk for watch in listed),
    }
    return render(request, "docora/progress.html#live_cells", context)


@fragment(can_view_watches)
def watch_progress(request: HttpRequest, pk: int) -> HttpResponse:
    """Return the progress of one watch, for its own page or that of its `run`.

    When the watch settles, its page refreshes the other parts too. The response for a run's page is its whole content once
    the run has ended.
    """
    watch = get_object_or_404(_watches(), pk=pk)
    context = {**watches.of_watch(watch), "polled": True, "here": polling_page(request)}
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
    context |= {"sync_pause": current_pause(), "here": polling_page(request)}
    context["polls_progress"] = request.GET.get("active") == "1"
    return render(request, "admin/deliveries_app/apprepository/change_form.html#live", context)


def _run_progress(request: HttpRequest, watch: AppRepository, pk: str, context: dict[str, Any]) -> HttpResponse:
    """Return the progress of the run's watch, or once the run has ended, the content of its page."""
    newest = context["run"]
    run = newest if newest and str(newest.pk) == pk else watch.runs.filter(pk__in=parse_pks(pk)).first()
    if run is None or not run.outcome or not can_view(request.user, SyncRun):
        return render(request, "docora/progress.html#watch_progress", {**context, "page_run": run and run.pk})
    page = page_context_of(request, run)
    return render(request, "admin/deliveries_app/syncrun/change_form.html#ended", context | page)


def _watches() -> AppRepositoryQuerySet:
    return AppRepository.objects.alive().with_state().for_list()


@fragment(can_view_apps)
def live_app(request: HttpRequest, pk: int) -> HttpResponse:
    """Render the content of the app's page.

    `operations` lists the operations whose boxes the page shows. Each box polls its own progress, so the boxes are sent
    again only if the list has changed.
    """
    app = get_object_or_404(App, pk=pk, ended_at=None)
    query = request.GET.copy()
    shown = query.pop("operations", [""])[-1]
    request.GET = query  # type: ignore[assignment]  # links in the fragment repeat the page's own query
    context = app_detail.live(request.user, app, query) | {"sync_pause": current_pause()}
    if shown != context["operation_ids"]:
        context["operations"] = [progress_context.of_operation(operation) for operation in context["operations_shown"]]
    return render(request, "admin/deliveries_app/app/operate.html#live", context)


@fragment(can_view_watches)
def failed_syncs(request: HttpRequest) -> HttpResponse:
    """Render the groups, the cells of the rows that the page shows, and how many of its `count` rows still fail."""
    cells, recovered = failed.refreshed_cells(row_ids(request), CellOptions.to_user(request, polling_page(request)))
    count = parse_pk(request.GET.get("count", ""))
    rows = max(0, count - recovered) if count is not None else None
    filtered = request.GET.get("filtered") == "1"
    context = {
        **failed.panel_context(request, polling_page(request)),
        "cells": cells,
        "rows": rows,
        "filtered": filtered,
    }
    context |= {"sync_pause": current_pause(), "here": polling_page(request)}
    return render(request, "docora/failed.html#refresh", context)


@fragment(overview.can_view)
def live_overview(request: HttpRequest) -> HttpResponse:
    """Render the panel, and the health indicators beside the page's title."""
    context = {"overview": overview.of_user(request.user), "sync_pause": current_pause(), "here": polling_page(request)}
    return render(request, "docora/overview.html#polled", context)


@fragment(queue_report.can_view)
def live_queue(request: HttpRequest) -> HttpResponse:
    """Render the queue page's content and the pause banner, as syncing may have been paused or resumed."""
    view = queue_report.read_queue()
    context = {"view": view, "sync_pause": view.pause, "here": polling_page(request), "polled": True}
    return render(request, "admin/deliveries_app/queue/now.html", context)


@fragment(partial(can_view, model=Delivery))
def live_delivery(request: HttpRequest, pk: int) -> HttpResponse:
    delivery = get_object_or_404(Delivery.objects.select_related("watch"), pk=pk, watch__ended_at=None)
    context = page_context_of(request, delivery) | {"sync_pause": current_pause(), "here": polling_page(request)}
    return render(request, "admin/deliveries_app/delivery/change_form.html#refreshed", context)


@fragment(can_view_apps)
def app_names(request: HttpRequest) -> HttpResponse:
    """Return options for a `<datalist>`: the first app names that start with the typed text."""
    apps = apps_named(request.GET.get("app_name", "").strip()).filter(ended_at=None)
    return _options(apps.order_by("name").values_list("name", flat=True).distinct()[:SUGGESTED_NAMES])


@fragment(can_view_watches)
def repository_names(request: HttpRequest, pk: int) -> HttpResponse:
    """Return options for a `<datalist>`: the app's first repositories that the typed text finds."""
    app = get_object_or_404(App, pk=pk, ended_at=None)
    return _options(app_detail.repository_names(app, request.GET.get("repository", "").strip(), SUGGESTED_NAMES))


def _options(names: Iterable[str]) -> HttpResponse:
    return HttpResponse(format_html_join("", '<option value="{}"></option>', ((name,) for name in names)))
