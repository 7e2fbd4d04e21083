"""The queue page's live part."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from deliveries_app import queue_view
from deliveries_app.views.fragment import fragment, here


@require_GET
@fragment(queue_view.may_see)
def live_queue(request: HttpRequest) -> HttpResponse:
    """What the queue page refreshes, with the banner of all pages: somebody may have paused or resumed syncing."""
    view = queue_view.look()
    context = {"view": view, "sync_pause": view.pause, "here": here(request), "polled": True}
    return render(request, "admin/deliveries_app/queue/now.html", context)
