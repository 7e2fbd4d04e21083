"""Log every request with its id and duration, and count it for the metrics."""

import contextlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.conf import settings
from django.core.signals import request_finished
from django.dispatch import receiver
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import Resolver404, resolve
from django.utils.encoding import escape_uri_path
from structlog.contextvars import bind_contextvars, unbind_contextvars

from docora.security.redaction import MASK, is_secret_name
from docora.web import durations

logger = logging.getLogger(__name__)

HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,128}")
_POLLED = ("/admin/live/", "/admin/progress/")


class AccessLogMiddleware:
    """Give each request an id, for its response and all its log records. Log and count the request when it ends.

    The id is a new one, or that of the header X-Request-Id if a trusted proxy has sent it (`TrustedProxyMiddleware` removes
    the header otherwise). The query string is never logged, because it may contain a secret. Probes, scrapes, static files
    and the polls of open pages are logged with LOG_LEVEL=debug only, unless they fail; probes and scrapes are not
    counted.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        began = time.perf_counter()
        sent = request.META.get("HTTP_X_REQUEST_ID", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        bind_contextvars(request_id=request_id)
        response = self._get_response(request)
        response.headers[HEADER] = request_id
        # Replacing the content of a file would keep the server from sending it without copying.
        if isinstance(response, StreamingHttpResponse) and not isinstance(response, FileResponse):
            content: Iterable[bytes] = response.streaming_content
            response.streaming_content = _followed(content, lambda: _end(request, response, began))
        else:
            _end(request, response, began)
        return response


@receiver(request_finished)
def _forget_id(**_: object) -> None:
    """Stop adding the id to log records. Django sends this signal when the response is closed, streamed or not."""
    unbind_contextvars("request_id")


def _followed(content: Iterable[bytes], end: Callable[[], None]) -> Iterator[bytes]:
    try:
        yield from content
    finally:
        end()


def _end(request: HttpRequest, response: HttpResponse, began: float) -> None:
    seconds = time.perf_counter() - began
    name = request.path.removeprefix("/")
    is_probe = name in settings.PROBES or name == "metrics"
    if not is_probe:
        durations.add(request.method or "", _route(request), response.status_code, seconds)
    is_routine = is_probe or request.path.startswith((settings.STATIC_URL, *_POLLED))
    level = logging.DEBUG if is_routine and response.status_code < 400 else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields = {
        "method": request.method,
        "path": _path(request),
        "status": response.status_code,
        "duration_ms": round(seconds * 1000, 1),
        "client": request.META.get("REMOTE_ADDR", ""),
    }
    if level == logging.DEBUG:
        logger.debug("request_handled", extra=fields)
    else:
        logger.info("request_handled", extra=fields)


def _route(request: HttpRequest) -> str:
    """Return the pattern of the URLconf that matched, `static` for a static file, or `unknown`."""
    if request.resolver_match:
        return request.resolver_match.route
    return "static" if request.path.startswith(settings.STATIC_URL) else "unknown"


def _path(request: HttpRequest) -> str:
    """Return the path, percent-encoded so that it cannot add lines. Mask parts that the URLconf names like a secret."""
    path = escape_uri_path(request.path)
    for name, value in _arguments(request).items():
        if name == "key" or is_secret_name(name):
            path = path.replace(escape_uri_path(str(value)), MASK)
    return path


def _arguments(request: HttpRequest) -> dict[str, Any]:
    """Return the arguments in the path, also if the request was redirected to https or to the path with a final slash."""
    if request.resolver_match:
        return request.resolver_match.kwargs
    for path in (request.path_info, f"{request.path_info}/"):
        with contextlib.suppress(Resolver404):
            return resolve(path).kwargs
    return {}
