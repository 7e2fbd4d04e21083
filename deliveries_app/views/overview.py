"""The overview's panel, which refreshes itself."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from deliveries_app import overview
from deliveries_app.views.fragment import fragment


@require_GET
@fragment(overview.may_see)
def live_overview(request: HttpRequest) -> HttpResponse:
    """The panel, and the signs of life beside the page's title."""
    return render(request, "docora/overview.html#polled", {"overview": overview.of_user(request.user)})
