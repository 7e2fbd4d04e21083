"""Error responses. The API, the probes and `/admin/api/` always answer JSON, never a page or a redirect."""

import logging
import sys
from collections.abc import Mapping
from typing import Any

from django.contrib.sessions.exceptions import SessionInterrupted
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.http.response import HttpResponseBase
from django.template.loader import render_to_string
from django.utils.deprecation import MiddlewareMixin
from django.views.csrf import csrf_failure as csrf_failure_page

from docora.db.connection import is_full, is_outage, is_read_only
from docora.text import first_line
from docora.web.error_codes import BY_STATUS, ErrorCode

logger = logging.getLogger(__name__)

API_PREFIXES = ("/api/", "/admin/api/")
JSON_PREFIXES = (*API_PREFIXES, "/health", "/version", "/metrics", "/openapi.json")
NOT_FOUND = "Not found: check the URL against the API reference at /docs/"
INTERNAL = "Internal error: see Docora's log"
DATABASE_DOWN = "The database isn't responding"
DATABASE_READ_ONLY = "The database is read-only"
DATABASE_FULL = "The database's disk is full"
FORBIDDEN = "You don't have permission to do this"


class ApiError(Exception):
    """An error response to an API call. The message is for the developer of the client, `code` for the client itself."""

    def __init__(
        self, message: str, status: int, headers: Mapping[str, str] | None = None, *, code: ErrorCode | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.code = code

    def response(self) -> JsonResponse:
        return json_error(str(self), self.status, self.headers, code=self.code)


def json_error(
    message: str, status: int, headers: Mapping[str, str] | None = None, *, code: ErrorCode | None = None
) -> JsonResponse:
    """Return `{"error": message, "code": …, "retryable": …}`. Without a `code`, the status decides.

    Messages have no full stop at the end, like those that the wire contract defines.
    """
    code = code or BY_STATUS.get(status, ErrorCode.INVALID_REQUEST)
    return JsonResponse(code.body(message.removesuffix(".")), status=status, headers=headers)


def wants_json(request: HttpRequest) -> bool:
    return request.path.startswith(JSON_PREFIXES)


class ErrorBodiesMiddleware(MiddlewareMixin):
    """Give other error responses a body: the JSON shape where JSON is wanted, and a page for a GET that is not allowed."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if isinstance(response, HttpResponseNotAllowed) and request.method == "GET" and not wants_json(request):
            response.content = error_page(405).content
            response.headers["Content-Length"] = str(len(response.content))
            return response
        is_json = response.headers.get("Content-Type", "").startswith("application/json")
        if response.status_code < 400 or is_json or not wants_json(request):
            return response
        if response.status_code == 405:
            allowed = ", ".join(sorted(response.headers.get("Allow", "").split(", ")))
            return json_error(f"{request.method} is not allowed here: use {allowed}", 405, {"Allow": allowed})
        return json_error(response.reason_phrase, response.status_code)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    if wants_json(request):
        return json_error("CSRF check failed: send your session's token in the X-CSRFToken header", 403)
    return csrf_failure_page(request, reason)


def error_page(status: int, **context: object) -> HttpResponse:
    """Return an error page without looking at the request, which may be malformed.

    Django's own views look for a CSRF token in the form, and fail if it can't be parsed.
    """
    return HttpResponse(render_to_string(f"{status}.html", context), status=status)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return json_error(NOT_FOUND, 404) if wants_json(request) else error_page(404)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    if wants_json(request):
        return json_error(FORBIDDEN, 403)
    return error_page(403, exception=str(exception))


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if isinstance(exception, SessionInterrupted):
        # Django reports any failure to save a session as a session that was deleted meanwhile.
        cause = exception.__context__ and exception.__context__.__context__
        if cause is not None and is_outage(cause):
            return database_down(request, cause)
    if wants_json(request):
        return json_error("Bad request: check the hostname, the URL and the headers", 400)
    return error_page(400, is_too_large=isinstance(exception, RequestDataTooBig))


def too_many_requests(request: HttpRequest) -> HttpResponse:
    return error_page(429)


def server_error(request: HttpRequest, *args: Any) -> HttpResponse:
    """Answer a request that ended with an exception, which Django is handling now."""
    error = sys.exception()
    if error is not None and is_outage(error):
        return database_down(request, error)
    return json_error(INTERNAL, 500) if wants_json(request) else error_page(500)


def database_down(request: HttpRequest, error: BaseException) -> HttpResponse:
    """Answer 503, and log the cause in one line. Django would log a traceback for each request during the outage."""
    logger.warning("request_without_database", extra={"cause": first_line(error)})
    problem = DATABASE_DOWN
    if is_read_only(error):
        problem = DATABASE_READ_ONLY
    elif is_full(error):
        problem = DATABASE_FULL
    response: HttpResponse
    if wants_json(request):
        response = json_error(f"{problem}: try again in a minute", 503)
    else:
        response = error_page(503, is_read_only=problem == DATABASE_READ_ONLY, is_full=problem == DATABASE_FULL)
    response._has_been_logged = True  # type: ignore[attr-defined]  # `django.utils.log.log_response` looks at it
    return response
