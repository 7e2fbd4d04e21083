"""The HTTP session for calls to the OpenID Connect provider.

allauth makes these calls with `requests`. Here, `requests` only builds the request and parses the response; the request
itself goes through Docora's own client, whose rules for addresses therefore apply.
"""

import threading
import time
from typing import Any, cast

import requests
from django.conf import settings
from requests import RequestException
from requests.adapters import BaseAdapter

from docora.http import USER_AGENT
from docora.http.client import HttpClient, Outcome, Request

__all__ = ["RequestException", "provider_session"]

TIMEOUT_SECONDS = 10.0
MAX_BYTES = 1024 * 1024
MAX_CALLS = 4
"""Strangers can cause calls, and each occupies one of the `WEB_THREADS` while the provider is slow."""
_CALLS = threading.BoundedSemaphore(MAX_CALLS)
_WAIT_SECONDS = 1.0
_KEPT_SECONDS = 60.0
_KEPT: dict[str, tuple[float, Outcome]] = {}
"""The discovery document, which each sign-in reads twice: its URL → until when (monotonic) it is used, and the response."""


class _Transport(BaseAdapter):
    """Sends prepared requests through a `HttpClient`. Failures are `requests.ConnectionError`, which allauth expects."""

    def __init__(self) -> None:
        super().__init__()
        self._client = HttpClient(
            settings.OIDC_ALLOWED_NETWORKS,
            allow_http=settings.OIDC_ISSUER.startswith("http://"),
            max_connections=1,
            proxy=settings.EGRESS_PROXY,
        )

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        outcome = _kept(request.url)
        if outcome is None:
            if not _CALLS.acquire(timeout=_WAIT_SECONDS):
                raise requests.ConnectionError("Too many sign-ins are waiting for the provider.", request=request)
            try:
                outcome = _kept(request.url) or self._call(request)  # another sign-in may have read it meanwhile
            finally:
                _CALLS.release()
        response = requests.Response()
        response.status_code = outcome.status  # type: ignore[assignment]  # `_call` raises if there is none
        response.headers.update(outcome.headers)
        response._content = outcome.body
        response.url = request.url or ""
        response.request = request
        return response

    def _call(self, request: requests.PreparedRequest) -> Outcome:
        """Send the request, and keep the response if it is the discovery document."""
        url, body = request.url or "", cast(bytes | str, request.body or b"")
        outcome = self._client.request(
            Request(
                request.method or "GET",
                url,
                # libcurl adds the length itself.
                tuple(f"{name}: {value!s}" for name, value in request.headers.items() if name != "Content-Length"),
                body.encode() if isinstance(body, str) else body,
                timeout=TIMEOUT_SECONDS,
                max_body=MAX_BYTES,
            )
        )
        if outcome.status is None:
            # The client's messages name the settings for git hosts and webhooks.
            message = outcome.message.replace("ALLOWED_PRIVATE_NETWORKS", "OIDC_ALLOWED_NETWORKS")
            message = message.replace("Plain http requires ALLOW_HTTP.", "The provider names one with http://.")
            raise requests.ConnectionError(message, request=request)
        if outcome.truncated:
            raise requests.ConnectionError("The provider's response is too large.", request=request)
        if outcome.ok and url.endswith("/.well-known/openid-configuration"):
            _KEPT[url] = time.monotonic() + _KEPT_SECONDS, outcome
        return outcome

    def close(self) -> None:
        self._client.close()


def _kept(url: str | None) -> Outcome | None:
    """Return the kept response from this URL, or None if there is none or it is too old."""
    until, outcome = _KEPT.get(url or "", (0.0, None))
    return outcome if time.monotonic() < until else None


def provider_session() -> requests.Session:
    """Return a session that follows no redirects and uses nothing from the environment."""
    session = requests.Session()
    session.trust_env = False
    session.max_redirects = 0
    session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
    for prefix in ("https://", "http://"):
        session.mount(prefix, _Transport())
    return session
