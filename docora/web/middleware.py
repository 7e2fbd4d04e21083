"""Whom to believe about the client's address and scheme, what every page says to browsers and caches, which questions
the admin asks no database, and what it says when an encryption key is gone."""

import ipaddress
import logging
import re
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from docora.security.crypto import DecryptionError
from docora.web.errors import json_error, wants_json

logger = logging.getLogger(__name__)

_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?|([0-9.]+):[0-9]+")
_MOST_WORDS = 100
_LONGEST_NUMBER = 18  # digits

# Docora's pages need none of what a browser can be asked for.
PERMISSIONS_POLICY = ", ".join(
    f"{feature}=()"
    for feature in (
        "accelerometer",
        "autoplay",
        "browsing-topics",
        "camera",
        "display-capture",
        "encrypted-media",
        "fullscreen",
        "geolocation",
        "gyroscope",
        "magnetometer",
        "microphone",
        "midi",
        "payment",
        "picture-in-picture",
        "publickey-credentials-get",
        "screen-wake-lock",
        "usb",
        "xr-spatial-tracking",
    )
)


class ProbesMiddleware:
    """A probe may ask by whatever address the machine has just got, which no list of hosts can name. Its answers name
    no host.

    So may whoever has the token for the metrics. Without one they are told to this machine, and there the name counts: a
    page in a browser on it, from a host whose name was made to lead here, must not read them.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        path = request.path.removeprefix("/")
        if path in settings.PROBES or (path == "metrics" and settings.METRICS_TOKEN):
            request.META["HTTP_HOST"] = urlsplit(settings.PUBLIC_URL).netloc
        return self.get_response(request)


class TrustedProxyMiddleware:
    """Take `X-Forwarded-For` and `X-Forwarded-Proto` from `TRUSTED_PROXIES` and drop them from everybody else.

    The client is the last address of the list that is not itself a trusted proxy: what stands before it was written
    by the client and could say anything. Some proxies write its port behind it, which is no part of who it is.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        forwarded_for = request.META.pop("HTTP_X_FORWARDED_FOR", "")
        forwarded_proto = request.META.pop("HTTP_X_FORWARDED_PROTO", "")
        if settings.TRUSTED_PROXIES and self._is_trusted(request.META.get("REMOTE_ADDR", "")):
            for part in reversed([part.strip() for part in forwarded_for.split(",") if part.strip()]):
                with_port = _WITH_PORT.fullmatch(part)
                address = (with_port[1] or with_port[2]) if with_port else part
                request.META["REMOTE_ADDR"] = address
                if not self._is_trusted(address):
                    break
            if forwarded_proto.strip().lower() == "https":
                request.META["wsgi.url_scheme"] = "https"  # a WSGIRequest's META is its environ
        return self.get_response(request)

    @staticmethod
    def _is_trusted(address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in settings.TRUSTED_PROXIES)


class RejectInvalidQueryMiddleware:
    """Below `/admin/`: 400 for what a database answers with an error instead of finding nothing by it.

    These are a NUL (PostgreSQL), a number of more than 64 bits and hundreds of words (SQLite), and a regular expression
    that is none; one that is could keep either of them busy without end.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.path.startswith("/admin/") and not self._can_be_asked(request):
            if wants_json(request):
                return json_error("Nothing can be found by this query: correct its parameters", 400)
            raise BadRequest("Nothing can be found by this.")
        return self.get_response(request)

    @staticmethod
    def _can_be_asked(request: HttpRequest) -> bool:
        if not all(_can_be_asked(name, values) for name, values in request.GET.lists()):
            return False
        if request.method != "POST" or wants_json(request):
            return True
        return all(part.isdecimal() for part in request.POST.getlist(ACTION_CHECKBOX_NAME))


def _can_be_asked(name: str, values: Iterable[str]) -> bool:
    is_search = name in {"q", "search"}
    is_text = is_search or name == "path"
    if name == "ids":  # of a page that asks: what is no number there selects nothing
        return True
    return not name.endswith("regex") and not any(
        "\0" in value
        or (is_search and len(value.split()) > _MOST_WORDS)
        or (not is_text and any(part.isdecimal() and len(part) > _LONGEST_NUMBER for part in value.split(",")))
        for value in (name, *values)
    )


class PageHeadersMiddleware:
    """No browser feature for anything on the page, and nothing kept by a cache unless its view says otherwise."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.headers.setdefault("Permissions-Policy", PERMISSIONS_POLICY)
        response.headers.setdefault("Cache-Control", "no-store")
        return response


class DecryptionErrorMiddleware:
    """Whatever needed a secret that cannot be decrypted answers with the sentence that says what to do."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, DecryptionError):
            return None
        logger.error("secret_not_decrypted", extra={"path": request.path})
        if wants_json(request):
            return json_error(str(exception), 500)
        return render(request, "500.html", {"sentence": str(exception)}, status=500)
