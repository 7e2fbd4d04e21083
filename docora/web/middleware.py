"""Middleware for probes, trusted proxies, response headers, invalid queries, conflicting forms and missing encryption keys."""

import logging
import re
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import BadRequest, ObjectNotUpdated
from django.db import IntegrityError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.utils.deprecation import MiddlewareMixin

from docora.http.addresses import is_in
from docora.security.crypto import DecryptionError
from docora.web.errors import API_PREFIXES, error_page, json_error, wants_json
from docora.web.redirects import own_url

logger = logging.getLogger(__name__)

_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?|([0-9.]+):[0-9]+")
_MAX_SEARCH_WORDS = 100
_MAX_SEARCH_CHARS = 5000  # longer than any path or URL; SQLite compares with at most 50,000 bytes
_SEARCHED = {"q", "search", "term", "app_name", "repository"}
_MAX_DIGITS = 18  # always fits into 64 bits
_WARNING_INTERVAL_SECONDS = 3600

_CONFLICT = "Not saved: another request changed something at the same moment. Check it, and try again if needed."
# Docora's pages use none of these browser features.
PERMISSIONS_POLICY = (
    "accelerometer=(), autoplay=(), browsing-topics=(), camera=(), display-capture=(), encrypted-media=(), fullscreen=(), "
    "geolocation=(), gyroscope=(), magnetometer=(), microphone=(), midi=(), payment=(), picture-in-picture=(), "
    "screen-wake-lock=(), usb=(), xr-spatial-tracking=()"
)


class ProbesMiddleware(MiddlewareMixin):
    """Skip the host check for probes, which use arbitrary Host headers. Their responses never include the host.

    /metrics is treated the same way if there is a METRICS_TOKEN. Without one, it answers only this machine and the host is
    checked. Otherwise, a web page in a local browser could read it through DNS rebinding.
    """

    def process_request(self, request: HttpRequest) -> None:
        path = request.path.removeprefix("/")
        if path in settings.PROBES or (path == "metrics" and settings.METRICS_TOKEN):
            request.META["HTTP_HOST"] = urlsplit(settings.PUBLIC_URL).netloc


class TrustedProxyMiddleware(MiddlewareMixin):
    """Use the headers of `TRUSTED_PROXIES`, and remove them from all other requests.

    These are `X-Forwarded-For`, `X-Forwarded-Proto`, `REMOTE_USER_HEADER`, and `X-Request-Id`, which `docora.web.access_log`
    uses. The client is the last listed address that is not a trusted proxy, because the client can forge everything before it.
    A port after the address, which some proxies add, is ignored. `request.is_forwarded` tells whether any proxy, trusted or
    not, has marked the request as forwarded.
    """

    _next_warning_at = 0.0  # seconds of `time.monotonic`

    def process_request(self, request: HttpRequest) -> None:
        request.is_forwarded = any(  # type: ignore[attr-defined]
            name == "HTTP_FORWARDED" or name.startswith("HTTP_X_FORWARDED_") for name in request.META
        )
        forwarded_for = request.META.pop("HTTP_X_FORWARDED_FOR", "")
        forwarded_proto = request.META.pop("HTTP_X_FORWARDED_PROTO", "")
        request_id = request.META.pop("HTTP_X_REQUEST_ID", "")
        user_header = "HTTP_" + settings.REMOTE_USER_HEADER.upper().replace("-", "_")
        remote_user = request.META.pop(user_header, "") if settings.REMOTE_USER_HEADER else ""
        peer = request.META.get("REMOTE_ADDR", "")
        if is_in(settings.TRUSTED_PROXIES, peer):
            request.META["HTTP_X_REQUEST_ID"] = request_id
            if remote_user:
                request.META["REMOTE_USER"] = remote_user
            for part in reversed([part.strip() for part in forwarded_for.split(",") if part.strip()]):
                with_port = _WITH_PORT.fullmatch(part)
                address = (with_port[1] or with_port[2]) if with_port else part
                request.META["REMOTE_ADDR"] = address
                if not is_in(settings.TRUSTED_PROXIES, address):
                    break
            first, _, _ = forwarded_proto.partition(",")  # each of several proxies may have added a value
            if first.strip().lower() == "https":
                request.META["wsgi.url_scheme"] = "https"  # a WSGIRequest's META is its environ
        elif forwarded_proto and settings.SECURE_SSL_REDIRECT:
            self._log_untrusted(peer)

    def _log_untrusted(self, address: str) -> None:
        """Log the address of a proxy that isn't trusted: all its requests are redirected to https in a loop."""
        now = time.monotonic()
        if now >= self._next_warning_at:
            self._next_warning_at = now + _WARNING_INTERVAL_SECONDS
            logger.warning("proxy_not_trusted", extra={"address": address})


class RefusePlainHttpMiddleware(MiddlewareMixin):
    """Refuse API calls over plain http, except GET and HEAD. Many clients would repeat the others as GET after a redirect."""

    def process_request(self, request: HttpRequest) -> HttpResponse | None:
        is_fine = request.method in {"GET", "HEAD"} or request.is_secure() or not settings.SECURE_SSL_REDIRECT
        if is_fine or not request.path.startswith(API_PREFIXES):
            return None
        return json_error(f"Use https: Docora's address is {settings.PUBLIC_URL}", 403)


class RejectInvalidQueryMiddleware(MiddlewareMixin):
    """Below `/admin/`, reject queries that would make the database raise an error.

    These are NUL characters (PostgreSQL), numbers of more than 64 bits, long searches and hundreds of search words (SQLite),
    and regular expressions: an invalid one is an error, and a valid one can keep the database busy for ever.
    """

    def process_request(self, request: HttpRequest) -> HttpResponse | None:
        if not request.path.startswith("/admin/"):
            return None
        is_valid = all(_is_valid_parameter(name, values) for name, values in request.GET.lists())
        if wants_json(request):
            return None if is_valid else json_error("Invalid query: fix its parameters", 400)
        if is_valid and request.method == "POST":
            is_valid = all(part.isdecimal() for part in request.POST.getlist(ACTION_CHECKBOX_NAME))
        if not is_valid:
            raise BadRequest("Invalid query")
        return None


def _is_valid_parameter(name: str, values: Iterable[str]) -> bool:
    if name == "ids":  # confirmation pages parse it themselves and ignore invalid IDs
        return True
    is_search = name in {"q", "search"}
    is_text = is_search or name == "path"
    return not name.endswith("regex") and not any(
        "\0" in value
        or (is_search and len(value.split()) > _MAX_SEARCH_WORDS)
        or (name in _SEARCHED and len(value) > _MAX_SEARCH_CHARS)
        or (not is_text and any(part.isdecimal() and len(part) > _MAX_DIGITS for part in value.split(",")))
        for value in values
    )


class PageHeadersMiddleware(MiddlewareMixin):
    """Disable unused browser features on all pages, and disable caching unless the view sets Cache-Control."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        response.headers.setdefault("Permissions-Policy", PERMISSIONS_POLICY)
        response.headers.setdefault("Cache-Control", "no-store")
        return response


class ConflictMiddleware(MiddlewareMixin):
    """Redirect a form back to its page if it can't be saved because of what another request has just committed."""

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        is_conflict = isinstance(exception, IntegrityError | ObjectNotUpdated)
        if not is_conflict or request.method != "POST" or wants_json(request):
            return None
        logger.warning("form_conflicted", exc_info=exception, extra={"path": request.path})
        messages.warning(request, _CONFLICT)
        page = request.headers.get("Referer", "")  # the request's own address may accept only POST
        return HttpResponseRedirect(own_url(request, page, request.get_full_path()))


class DecryptionErrorMiddleware(MiddlewareMixin):
    """Answer requests that need an undecryptable secret with the error's message, which says what to do."""

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, DecryptionError):
            return None
        logger.error("secret_not_decrypted", extra={"path": request.path})
        if wants_json(request):
            return json_error(str(exception), 500)
        return error_page(500, message=str(exception))
