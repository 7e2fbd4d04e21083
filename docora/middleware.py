"""Whom to believe about the client's address and scheme."""

import ipaddress
from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse


class TrustedProxyMiddleware:
    """Take `X-Forwarded-For` and `X-Forwarded-Proto` from `TRUSTED_PROXIES` and drop them from everybody else.

    The client is the last address of the list that is not itself a trusted proxy: what stands before it was written
    by the client and could say anything.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        forwarded_for = request.META.pop("HTTP_X_FORWARDED_FOR", "")
        forwarded_proto = request.META.pop("HTTP_X_FORWARDED_PROTO", "")
        if settings.TRUSTED_PROXIES and self._is_trusted(request.META.get("REMOTE_ADDR", "")):
            for address in reversed([part.strip() for part in forwarded_for.split(",") if part.strip()]):
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
