"""Errors below `/api/` and `/admin/api/` are JSON of one shape, `{"error": "…"}`, never a page or a redirect."""

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views import defaults
from django.views.csrf import csrf_failure as csrf_failure_page

_JSON_PREFIXES = ("/api/", "/admin/api/")


def json_error(message: str, status: int) -> JsonResponse:
    return JsonResponse({"error": message}, status=status)


def wants_json(request: HttpRequest) -> bool:
    return request.path.startswith(_JSON_PREFIXES)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    if wants_json(request):
        return json_error("CSRF check failed: send the token of your session in the X-CSRFToken header", 403)
    return csrf_failure_page(request, reason)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return json_error("Not found", 404) if wants_json(request) else defaults.page_not_found(request, exception)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    if wants_json(request):
        return json_error("You do not have the permission for this", 403)
    return defaults.permission_denied(request, exception)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return json_error("Bad request", 400) if wants_json(request) else defaults.bad_request(request, exception)


def server_error(request: HttpRequest, *args: Any) -> HttpResponse:
    return (
        json_error("Internal error; the log has the cause", 500)
        if wants_json(request)
        else defaults.server_error(request)
    )
