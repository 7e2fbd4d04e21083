"""Progress of operations and of single watches, and the buttons to cancel or dismiss them."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from deliveries_app import actors, services
from deliveries_app.actors import Actor
from deliveries_app.admin.confirmation import next_url
from deliveries_app.admin.fragments import can_view_watches, fragment, here, row_ids
from deliveries_app.models import AppRepository, BulkOperation, Outcome, Reason
from deliveries_app.progress import context as progress_context
from deliveries_app.progress import live

_CANCELLED = {
    Reason.RESYNC: "Re-sync cancelled.",
    Reason.RETRY: "Retry cancelled. The repository keeps failing until the next rescan.",
}


@require_GET
@fragment(actors.can_view_operations)
def operation_progress(request: HttpRequest, operation_id: str) -> HttpResponse:
    """Return the progress of a bulk operation. Its box polls this until the operation has ended."""
    operation = get_object_or_404(BulkOperation, operation_id=operation_id)
    context = {**progress_context.of_operation(operation), "polled": True, "here": here(request)}
    context["announces"] = request.GET.get("announced") != str(context["progress"].tens)
    return render(request, "docora/progress.html#bulk_progress", context)


@require_GET
@fragment(actors.can_view_operations)
def operation_rows(request: HttpRequest, operation_id: str) -> HttpResponse:
    """Return the rows of the runs `ids` on an operation's page. They were open at the previous poll."""
    operation = get_object_or_404(BulkOperation, operation_id=operation_id)
    runs = list(operation.runs.filter(pk__in=row_ids(request)))
    progress_of = live.of_runs(runs)
    rows = [{"run": run, "progress": progress_of[run.pk]} for run in runs]
    context = {
        "operation": operation,
        "rows": rows,
        "open_ids": progress_context.joined(run.pk for run in runs if not run.outcome),
    }
    return render(request, "docora/progress.html#run_rows", context)


@require_GET
@fragment(can_view_watches)
def live_watches(request: HttpRequest) -> HttpResponse:
    """Return the status cells of the watches `ids`, and with `files=1` also the cells with the number of files.

    Cells are swapped one by one, so that checkboxes and focus are kept.
    """
    watches = list(AppRepository.objects.filter(pk__in=row_ids(request)).select_related("app", "repository"))
    progress_of = progress_context.open_progress(watches)
    rows = [{"watch": watch, "progress": progress_of.get(watch.pk)} for watch in watches]
    context: dict[str, Any] = {"rows": rows, "live_ids": progress_context.live_ids(watches)}
    context |= {
        "with_files": request.GET.get("files") == "1",
        "settled": [watch for watch in watches if not watch.is_active],
    }
    return render(request, "docora/progress.html#live_cells", context)


@require_GET
@fragment(can_view_watches)
def watch_progress(request: HttpRequest, pk: int) -> HttpResponse:
    """Return the progress of one watch, for its own page."""
    watch = get_object_or_404(AppRepository.objects.select_related("app", "repository"), pk=pk)
    context = {**progress_context.of_watch(watch), "polled": True}
    progress = context["progress"]
    context["announces"] = progress is not None and request.GET.get("announced") != str(progress.tens)
    return render(request, "docora/progress.html#watch_progress", context)


@require_POST
def cancel_operation(request: HttpRequest, operation_id: str) -> HttpResponse:
    operation = get_object_or_404(BulkOperation, operation_id=operation_id)
    cancelled = services.cancel_operation(Actor.of_request(request), operation)
    message = f"Cancelled: {cancelled:,} had not finished." if cancelled else "It had already ended."
    messages.success(request, message)
    return _redirect_to_next(request, reverse("admin:deliveries_app_bulkoperation_change", args=[operation.pk]))


@require_POST
def dismiss_operation(request: HttpRequest, operation_id: str) -> HttpResponse:
    operation = get_object_or_404(BulkOperation, operation_id=operation_id)
    services.dismiss_operation(Actor.of_request(request), operation)
    return _redirect_to_next(request, reverse("admin:deliveries_app_bulkoperation_changelist"))


@require_POST
def cancel_watch(request: HttpRequest, pk: int) -> HttpResponse:
    watch = get_object_or_404(AppRepository.objects.select_related("app", "repository"), pk=pk)
    cancelled = services.cancel_request(Actor.of_request(request), watch)
    run = watch.runs.filter(outcome=Outcome.CANCELLED).order_by("-ended_at", "-pk").first() if cancelled else None
    messages.success(request, _CANCELLED[Reason(run.reason)] if run else "There is nothing to cancel.")
    return _redirect_to_next(request, reverse("admin:deliveries_app_apprepository_change", args=[watch.pk]))


def _redirect_to_next(request: HttpRequest, default: str) -> HttpResponseRedirect:
    return HttpResponseRedirect(next_url(request, default))
