"""Fragments that pages load: progress, panels polled every five seconds, and the suggestions of text fields.

Each shows a message instead if the user cannot view it or its object is gone.
"""

from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any, Concatenate

from django.contrib import admin
from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils.html import format_html_join
from django.views.decorators.http import require_GET
from django_htmx.http import trigger_client_event

from deliveries_app.actors import can_view, can_view_operations
from deliveries_app.admin import drift, failed, operations, watches
from deliveries_app.admin.failed import CellOptions
from deliveries_app.admin.filters import apps_named
from deliveries_app.models import App, AppRepository, BulkOperation, Delivery, DriftCheck, SyncRun
from deliveries_app.models.apps import APP_SECRETS
from deliveries_app.progress import context as progress_context
from deliveries_app.reports import app_detail, overview
from deliveries_app.reports import drift as drift_report
from deliveries_app.reports import queue as queue_report
from deliveries_app.services import NotFound, current_pause
from docora.db.compiled import compiled_and_prepared
from docora.text import parse_pk, parse_pks

SUGGESTED_NAMES = 20
MAX_LIVE_ROWS = 200

type CanView = Callable[[User | AnonymousUser], bool]
type View[**P] = Callable[Concatenate[HttpRequest, P], HttpResponse]

can_view_apps = partial(can_view, model=App)
can_view_watches = partial(can_view, model=AppRepository)


def fragment[**P](can_view: CanView) -> Callable[[View[P]], View[P]]:
    """Decorate the view of a fragment. It allows only GET, and shows a message if the user cannot view it or its object is gone."""

    def decorate(view: View[P]) -> View[P]:
        @require_GET
        @wraps(view)
        def checked(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            if not (request.user.is_active and request.user.is_staff):
                return render(
                    request, "docora/unavailable.html#signed_out", {"here": polling_page(request)}, status=401
                )
            if not can_view(request.user):
                return render(request, "docora/unavailable.html#forbidden", status=403)
            try:
                return view(request, *args, **kwargs)
            except (Http404, NotFound):
                return render(request, "docora/unavailable.html#gone", status=404)

        return checked

    return decorate


def polling_page(request: HttpRequest) -> str:
    """Return the path and query string of the page that polls, or an empty string."""
    try:
        return request.htmx.current_url_abs_path or ""  # type: ignore[attr-defined]  # of `HtmxMiddleware`
    except ValueError:  # the client has sent an invalid URL
        return ""


def page_context_of(request: HttpRequest, row: Model) -> dict[str, Any]:
    """Return what the page of a row shows, for a fragment of that page."""
    model_admin: Any = admin.site.get_model_admin(type(row))
    context: dict[str, Any] = model_admin.page_context(request, row)
    return context


def row_ids(request: HttpRequest, name: str = "ids") -> list[int]:
    """Return the primary keys of the rows that a poll asks for."""
    return parse_pks(request.GET.get(name, ""))[:MAX_LIVE_ROWS]


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
    context["held_changed"] = request.GET.get("held", "0") != str(int(operation.is_held))
    if request.GET.get("page") != "1":
        return render(request, "docora/progress.html#bulk_progress", context)
    context |= {**operations.page_fields(operation), "part": request.GET.get("part", "")}
    return render(request, "admin/deliveries_app/bulkoperation/change_form.html#polled", context)


@compiled_and_prepared
def _operation(operation_id: str) -> QuerySet[BulkOperation]:
    found = BulkOperation.objects.filter(operation_id=operation_id).select_related("app")
    return found.defer(*(f"app__{name}" for name in APP_SECRETS))


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

    With `files=1`, an app's page gets the progress cells instead, because it refreshes all rows itself. Cells are swapped
    one by one, so that checkboxes and focus are kept.
    """
    asked = row_ids(request)
    listed = list(AppRepository.objects.for_pages().filter(pk__in=asked))
    failing, page = set(row_ids(request, "failing")), polling_page(request)
    with_files = request.GET.get("files") == "1"
    changed = [watch for watch in listed if not watch.is_active or watch.is_failing != (watch.pk in failing)]
    refreshed = [] if with_files else changed
    context = {
        "rows": app_detail.rows_of(listed),
        "live_query": progress_context.live_query(listed, with_files=with_files),
        "with_files": with_files,
        "cells": [cell for watch in refreshed for cell in watches.refreshed_cells(request.user, watch, page)],
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
    watch = get_object_or_404(AppRepository.objects.for_pages(), pk=pk)
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

    `active=1` says that the page shows the watch as active. Then the progress polls on its own, more often.
    """
    watch = get_object_or_404(AppRepository.objects.for_pages(), pk=pk)
    context = {**page_context_of(request, watch), "polls_progress": request.GET.get("active") == "1"}
    return _render(request, "admin/deliveries_app/apprepository/change_form.html#live", context)


def _run_progress(request: HttpRequest, watch: AppRepository, pk: str, context: dict[str, Any]) -> HttpResponse:
    """Return the progress of the run's watch, or once the run has ended, the content of its page."""
    newest = context["run"]
    run = newest if newest and str(newest.pk) == pk else watch.runs.filter(pk__in=parse_pks(pk)).first()
    if run is None or not run.outcome or not can_view(request.user, SyncRun):
        return render(request, "docora/progress.html#watch_progress", {**context, "page_run": run and run.pk})
    page = page_context_of(request, run)
    return render(request, "admin/deliveries_app/syncrun/change_form.html#ended", context | page)


def _render(request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
    """Render a fragment of a page with the pause banner, which links back to the page."""
    return render(request, template, {"here": polling_page(request), "sync_pause": current_pause(), **context})


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
    context = app_detail.live(request.user, app, query)
    if shown != context["operation_ids"]:
        context["operations"] = [progress_context.of_operation(operation) for operation in context["operations_shown"]]
    return _render(request, "admin/deliveries_app/app/operate.html#live", context)


@fragment(can_view_watches)
def failed_syncs(request: HttpRequest) -> HttpResponse:
    """Render the groups, the cells of the rows that the page shows, and how many of its `count` rows still fail."""
    cells, recovered = failed.refreshed_cells(row_ids(request), CellOptions.of_user(request, polling_page(request)))
    count = parse_pk(request.GET.get("count", ""))
    rows = max(0, count - recovered) if count is not None else None
    panel = failed.panel_context(request, polling_page(request))
    filtered = request.GET.get("filtered") == "1"
    unlisted = 0 if filtered or rows is None else max(0, panel["failing_count"] - rows)
    context = {**panel, "cells": cells, "rows": rows, "filtered": filtered, "unlisted": unlisted}
    return _render(request, "docora/failed.html#refresh", context)


@fragment(overview.can_view)
def live_overview(request: HttpRequest) -> HttpResponse:
    """Render the panel, and the health indicators beside the page's title."""
    return _render(request, "docora/overview.html#polled", {"overview": overview.of_user(request.user)})


@fragment(queue_report.can_view)
def live_queue(request: HttpRequest) -> HttpResponse:
    """Render the queue page's content and the pause banner, as syncing may have been paused or resumed."""
    view = queue_report.read_queue()
    context = {"view": view, "sync_pause": view.pause, "here": polling_page(request), "polled": True}
    return render(request, "admin/deliveries_app/queue/now.html", context)


@fragment(partial(can_view, model=Delivery))
def live_delivery(request: HttpRequest, pk: int) -> HttpResponse:
    delivery = get_object_or_404(Delivery.objects.select_related("watch"), pk=pk, watch__ended_at=None)
    return _render(
        request, "admin/deliveries_app/delivery/change_form.html#refreshed", page_context_of(request, delivery)
    )


@fragment(can_view_watches)
def live_check(request: HttpRequest, pk: int) -> HttpResponse:
    """Return the result of a check. Its page polls this until the check, and the run that sends its files, have ended."""
    check = get_object_or_404(DriftCheck.objects.for_list(), pk=pk)
    context = page_context_of(request, check)
    context["ends"] = not check.is_open and context["run"] is None
    return render(request, "admin/deliveries_app/driftcheck/change_form.html#refreshed", context)


@fragment(can_view_watches)
def live_checks(request: HttpRequest) -> HttpResponse:
    """Return the cells of the checks `ids` in the list. They were open at the previous poll."""
    asked = row_ids(request)
    checks = drift_report.with_watches(DriftCheck.objects.for_list().filter(pk__in=asked))
    context = {
        "rows": [(check, drift.state_badge(check), drift_report.summary(check)) for check in checks],
        "gone": set(asked).difference(check.pk for check in checks),
        "live_ids": progress_context.joined(check.pk for check in checks if check.is_open),
    }
    return render(request, "admin/deliveries_app/driftcheck/change_list.html#cells", context)


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
