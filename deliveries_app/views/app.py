"""What the app page refreshes every five seconds: health, operations, and the table with the very query of the page."""

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from deliveries_app import app_page, fragments
from deliveries_app.models import App
from deliveries_app.views.fragment import fragment


def may_see_apps(user: AbstractBaseUser | AnonymousUser) -> bool:
    return user.has_perm("deliveries_app.view_app")  # type: ignore[union-attr]


@require_GET
@fragment(may_see_apps)
def live_app(request: HttpRequest, pk: int) -> HttpResponse:
    """The table in place, the rest out of band. `operations`, the boxes that the page has: they refresh themselves, and
    are sent again only when they are others."""
    app = get_object_or_404(App, pk=pk, ended_at=None)
    query = request.GET.copy()
    had = query.pop("operations", [""])[-1]
    request.GET = query  # type: ignore[assignment]  # what is left is the page's, and its links are made of it
    context = app_page.live(request.user, app, query)
    if had != context["operation_ids"]:
        context["operations"] = [fragments.of_operation(one) for one in context["operations_shown"]]
    return render(request, "admin/deliveries_app/app/live.html#refreshed", context)
