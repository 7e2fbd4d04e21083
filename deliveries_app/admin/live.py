"""What the app page refreshes every five seconds: health, operations, and the table with the very query of the page."""

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from deliveries_app.admin.failed import panel, refreshed
from deliveries_app.admin.fragments import can_view_watches, fragment, here, ids
from deliveries_app.models import App
from deliveries_app.progress import context as progress_context
from deliveries_app.reports import app_detail, overview
from deliveries_app.reports import queue as queue_report


def can_view_apps(user: AbstractBaseUser | AnonymousUser) -> bool:
    return user.has_perm("deliveries_app.view_app")  # type: ignore[union-attr]


@require_GET
@fragment(can_view_apps)
def live_app(request: HttpRequest, pk: int) -> HttpResponse:
    """The table in place, the rest out of band. `operations`, the boxes that the page has: they refresh themselves, and
    are sent again only when they are others."""
    app = get_object_or_404(App, pk=pk, ended_at=None)
    query = request.GET.copy()
    had = query.pop("operations", [""])[-1]
    request.GET = query  # type: ignore[assignment]  # what is left is the page's, and its links are made of it
    context = app_detail.live(request.user, app, query)
    if had != context["operation_ids"]:
        context["operations"] = [progress_context.of_operation(one) for one in context["operations_shown"]]
    return render(request, "admin/deliveries_app/app/live.html#refreshed", context)


@require_GET
@fragment(can_view_watches)
def failed_syncs(request: HttpRequest) -> HttpResponse:
    context = {**panel(request, here(request)), "cells": refreshed(ids(request))}
    return render(request, "docora/failed.html#refresh", context)


@require_GET
@fragment(overview.can_view)
def live_overview(request: HttpRequest) -> HttpResponse:
    """The panel, and the signs of life beside the page's title."""
    return render(request, "docora/overview.html#polled", {"overview": overview.of_user(request.user)})


@require_GET
@fragment(queue_report.can_view)
def live_queue(request: HttpRequest) -> HttpResponse:
    """What the queue page refreshes, with the banner of all pages: somebody may have paused or resumed syncing."""
    view = queue_report.look()
    context = {"view": view, "sync_pause": view.pause, "here": here(request), "polled": True}
    return render(request, "admin/deliveries_app/queue/now.html", context)
