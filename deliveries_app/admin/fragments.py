"""Who may see a fragment, and what the others are shown in its place."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django_htmx.middleware import HtmxDetails

from deliveries_app.services import NotFound

MAX_LIVE_ROWS = 200

type MaySee = Callable[[AbstractBaseUser | AnonymousUser], bool]
type View[**P] = Callable[Concatenate[HttpRequest, P], HttpResponse]


def can_view_watches(user: AbstractBaseUser | AnonymousUser) -> bool:
    return user.has_perm("deliveries_app.view_apprepository")  # type: ignore[union-attr]


def fragment[**P](can_view: MaySee) -> Callable[[View[P]], View[P]]:
    """For staff who may; others, and whoever asks for what is gone, get a short fragment that says so."""

    def decorate(view: View[P]) -> View[P]:
        @wraps(view)
        def checked(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            if not (request.user.is_active and request.user.is_staff):
                return render(request, "docora/notices.html#signed_out", {"here": here(request)}, status=401)
            if not can_view(request.user):
                return render(request, "docora/notices.html#forbidden", status=403)
            try:
                return view(request, *args, **kwargs)
            except (Http404, NotFound):
                return render(request, "docora/notices.html#gone", status=404)

        return checked

    return decorate


def here(request: HttpRequest) -> str:
    """The page that polls."""
    return HtmxDetails(request).current_url_abs_path or ""


def ids(request: HttpRequest) -> list[int]:
    """The rows that a poll asks for."""
    parts = request.GET.get("ids", "").split(",")[:MAX_LIVE_ROWS]
    return [int(part) for part in parts if part.isdecimal() and len(part) < 19]
