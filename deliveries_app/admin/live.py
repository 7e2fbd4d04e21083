"""Fragments that pages load: panels polled every five seconds, and the suggestions of text fields."""

from collections.abc import Iterable
from functools import partial

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils.html import format_html_join

from deliveries_app.actors import can_view
from deliveries_app.admin.failed import Shown, panel_context, refreshed_cells
from deliveries_app.admin.filters import apps_named
from deliveries_app.admin.fragments import can_view_watches, fragment, page_context_of, polling_page, row_ids
from deliveries_app.models import App, Delivery
from deliveries_app.progress import context as progress_context
from deliveries_app.reports import app_detail, overview
from deliveries_app.reports import queue as queue_report
from deliveries_app.services import current_pause
from docora.text import parse_pk

SUGGESTED_NAMES = 20
can_view_apps = partial(can_view, model=App)


@fragment(can_view_apps)
def live_app(request: HttpRequest, pk: int) -> HttpResponse:
    """Render the content of the app's page.

    `operations` lists the operations whose boxes the page shows. Each box polls for its own progress, so the boxes are
    sent again only if the list has changed.
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
    cells, recovered = refreshed_cells(row_ids(request), Shown.to_user(request, polling_page(request)))
    count = parse_pk(request.GET.get("count", ""))
    rows = max(0, count - recovered) if count is not None else None
    filtered = request.GET.get("filtered") == "1"
    context = {**panel_context(request, polling_page(request)), "cells": cells, "rows": rows, "filtered": filtered}
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
