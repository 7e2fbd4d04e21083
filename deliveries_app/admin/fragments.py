"""Permission checks for polled fragments, and the notices shown when a check fails."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Concatenate

from django.contrib import admin
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from deliveries_app import actors
from deliveries_app.models import AppRepository
from deliveries_app.services import NotFound
from docora.text import parse_pks

MAX_LIVE_ROWS = 200

type CanView = Callable[[AbstractBaseUser | AnonymousUser], bool]
type View[**P] = Callable[Concatenate[HttpRequest, P], HttpResponse]

can_view_watches = partial(actors.can_view, model=AppRepository)


def fragment[**P](can_view: CanView) -> Callable[[View[P]], View[P]]:
    """Decorate the view of a fragment. It allows only GET, and shows a notice if the user cannot view it or its object is gone."""

    def decorate(view: View[P]) -> View[P]:
        @require_GET
        @wraps(view)
        def checked(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            if not (request.user.is_active and request.user.is_staff):
                return render(request, "docora/notices.html#signed_out", {"here": polling_page(request)}, status=401)
            if not can_view(request.user):
                return render(request, "docora/notices.html#forbidden", status=403)
            try:
                return view(request, *args, **kwargs)
            except (Http404, NotFound):
                return render(request, "docora/notices.html#gone", status=404)

        return checked

    return decorate


def polling_page(request: HttpRequest) -> str:
    """Return the path and query string of the page that polls, or an empty string."""
    return request.htmx.current_url_abs_path or ""  # type: ignore[attr-defined]  # of `HtmxMiddleware`


def page_context_of(request: HttpRequest, row: Model) -> dict[str, Any]:
    """Return what the page of a row shows, for a fragment of that page."""
    model_admin: Any = admin.site.get_model_admin(type(row))
    context: dict[str, Any] = model_admin.page_context(request, row)
    return context


def row_ids(request: HttpRequest, name: str = "ids") -> list[int]:
    """Return the primary keys of the rows that a poll asks for."""
    return parse_pks(request.GET.get(name, ""))[:MAX_LIVE_ROWS]
