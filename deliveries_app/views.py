"""The fragments that pages poll, and the buttons beside them. HTML for htmx; the JSON twins are in `api`.

A poll that is not allowed is answered with a fragment of its own, never with a redirect to a page: that page would be
put into the middle of another one.
"""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate

from django.contrib import messages
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST
from django_htmx.middleware import HtmxDetails

from deliveries_app import fragments, services, tallies
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, SyncRun
from docora.confirm import way_back

MAX_LIVE_ROWS = 200

type View[**P] = Callable[Concatenate[HttpRequest, P], HttpResponse]


def may_see_watches(user: AbstractBaseUser | AnonymousUser) -> bool:
    return user.has_perm("deliveries_app.view_apprepository")  # type: ignore[union-attr]


def fragment[**P](may_see: Callable[[AbstractBaseUser | AnonymousUser], bool]) -> Callable[[View[P]], View[P]]:
    """For staff who may; others, and whoever asks for what is gone, get a short fragment that says so."""

    def decorate(view: View[P]) -> View[P]:
        @wraps(view)
        def checked(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            if not (request.user.is_active and request.user.is_staff):
                return render(request, "docora/notices.html#signed_out", {"here": _here(request)}, status=401)
            if not may_see(request.user):
                return render(request, "docora/notices.html#forbidden", status=403)
            try:
                return view(request, *args, **kwargs)
            except Http404:
                return render(request, "docora/notices.html#gone", status=404)

        return checked

    return decorate


@require_GET
@fragment(fragments.may_see_operations)
def operation_progress(request: HttpRequest, operation_id: str) -> HttpResponse:
    """The progress of a bulk operation: what its box polls every second until it has ended."""
    operation = get_object_or_404(BulkOperation, operation_id=operation_id)
    context = {**fragments.of_operation(operation), "polled": True, "here": _here(request)}
    # Screen readers read out whatever is put into the page: said only when ten percent more are done.
    context["speaks"] = request.GET.get("said") != str(context["tally"].tens)
    return render(request, "docora/progress.html#bulk_progress", context)


@require_GET
@fragment(fragments.may_see_operations)
def operation_rows(request: HttpRequest, operation_id: str) -> HttpResponse:
    """The rows of an operation's page whose runs are named in `ids` and were open when they were last drawn."""
    operation = get_object_or_404(BulkOperation, operation_id=operation_id)
    runs = list(operation.runs.filter(pk__in=_ids(request)))
    found = tallies.of_runs(runs)
    rows = [{"run": run, "tally": found[run.pk]} for run in runs]
    context = {
        "operation": operation,
        "rows": rows,
        "open_ids": fragments.joined(run.pk for run in runs if not run.outcome),
    }
    return render(request, "docora/progress.html#run_rows", context)


@require_GET
@fragment(may_see_watches)
def live_pairs(request: HttpRequest) -> HttpResponse:
    """The status cells of the watched repositories `ids`, swapped in place, so that ticks and focus are kept."""
    pairs = list(AppRepository.objects.filter(pk__in=_ids(request)).select_related("app", "repository"))
    newest = {
        run.pair_id: run for run in SyncRun.objects.filter(pair__in=pairs, outcome="").order_by("generation", "pk")
    }
    found = tallies.of_runs(newest.values())
    rows = [{"pair": pair, "tally": found[newest[pair.pk].pk] if pair.pk in newest else None} for pair in pairs]
    context = {"rows": rows, "live_ids": fragments.joined(pair.pk for pair in pairs if pair.is_active)}
    return render(request, "docora/progress.html#live_cells", context)


@require_GET
@fragment(may_see_watches)
def pair_progress(request: HttpRequest, pk: int) -> HttpResponse:
    """The progress of one watched repository, for its own page."""
    pair = get_object_or_404(AppRepository.objects.select_related("app", "repository"), pk=pk)
    return render(request, "docora/progress.html#pair_progress", {**fragments.of_pair(pair), "polled": True})


@require_POST
def cancel_operation(request: HttpRequest, operation_id: str) -> HttpResponse:
    operation = get_object_or_404(BulkOperation, operation_id=operation_id)
    stopped = services.cancel_operation(Actor.of_user(request.user), operation)
    words = f"Cancelled: {stopped:,} had not finished." if stopped else "It had ended already."
    messages.success(request, words)
    return _back(request, reverse("admin:deliveries_app_bulkoperation_change", args=[operation.pk]))


@require_POST
def dismiss_operation(request: HttpRequest, operation_id: str) -> HttpResponse:
    operation = get_object_or_404(BulkOperation, operation_id=operation_id)
    services.dismiss_operation(Actor.of_user(request.user), operation)
    return _back(request, reverse("admin:deliveries_app_bulkoperation_changelist"))


@require_POST
def cancel_pair(request: HttpRequest, pk: int) -> HttpResponse:
    pair = get_object_or_404(AppRepository.objects.select_related("app", "repository"), pk=pk)
    stopped = services.cancel_resync(Actor.of_user(request.user), pair)
    messages.success(request, "Re-sync cancelled." if stopped else "There is no re-sync to cancel.")
    return _back(request, reverse("admin:deliveries_app_apprepository_change", args=[pair.pk]))


def _back(request: HttpRequest, default: str) -> HttpResponseRedirect:
    return HttpResponseRedirect(way_back(request, default))


def _here(request: HttpRequest) -> str:
    """The page that polls."""
    return HtmxDetails(request).current_url_abs_path or ""


def _ids(request: HttpRequest) -> list[int]:
    parts = request.GET.get("ids", "").split(",")[:MAX_LIVE_ROWS]
    return [int(part) for part in parts if part.isdecimal() and len(part) < 19]
