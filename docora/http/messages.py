"""Requests and outcomes of the HTTP client as plain values, independent of libcurl."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from urllib.parse import urljoin, urlsplit

from django.utils.http import parse_http_date_safe

# Strict on purpose, so that no two parsers can disagree about the host: no userinfo, percent-encoding or zone ID in the
# authority, and printable ASCII only. Internationalized names must be in their xn-- form.
_URL = re.compile(r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._:\[\]-]+)(?:[/?][!\"$-~]*)?", re.IGNORECASE)
_METHODS = {"GET", "HEAD", "POST"}
_SECONDS = re.compile(r"[0-9]{1,9}")
MAX_HEADERS = 64  # of a response
MAX_HEADER_VALUE = 4096  # characters; libcurl's own limit is 300 KB for all headers together
GATEWAY_ERRORS = frozenset({502, 503, 504})
"""Status codes of a proxy that can't reach the server behind it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. The client returns it with its outcome; `context` is for the caller's own use."""

    method: str
    url: str
    # ASCII lines "Name: value". Headers and body may hold secrets, so neither is part of the repr.
    headers: tuple[str, ...] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)  # must be empty for GET and HEAD
    connect_timeout: float = 5.0  # seconds for DNS, connection and TLS handshake
    timeout: float = 30.0  # seconds for the whole request
    max_body: int = 4096  # bytes of the response body to keep
    # Allow the client to send the request again if a kept-alive connection closes without a response. The server may
    # then receive it up to six times.
    repeatable: bool = False
    fresh: bool = False  # use a new connection, not one that is kept alive
    # Asked when the connection is ready, just before the first byte is sent. If it returns False, nothing is sent.
    can_send: Callable[[], bool] | None = field(default=None, repr=False, compare=False)
    context: object = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Raise ValueError for a method, header or body that could inject another header or request."""
        if self.method not in _METHODS:
            raise ValueError(f"{self.method!r} is not a method of this client.")
        if self.body and self.method != "POST":
            raise ValueError(f"A {self.method} request has no body.")
        joined = "".join(self.headers)  # check all headers at once: this runs for every file sent
        if not joined.isascii() or "\r" in joined or "\n" in joined or "\0" in joined:
            raise ValueError("Headers must be ASCII, without line breaks.")
        for line in self.headers:
            if ":" not in line:
                raise ValueError("A header must look like 'Name: value'.")


class Cause(StrEnum):
    """Why a request got no response."""

    DNS = "dns"  # the host name could not be resolved
    REFUSED_ADDRESS = "refused_address"  # Docora's own rules block the URL or an address of its host
    CONNECT = "connect"  # no connection could be made
    TLS = "tls"  # the handshake failed or the certificate is not trusted
    TIMEOUT = "timeout"
    NETWORK = "network"  # an established connection broke


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended. Exactly one of `status` (there was a response) and `cause` (there was none) is set."""

    status: int | None
    cause: Cause | None
    message: str  # one sentence, without headers and without any part of the URL but its host
    header_lines: Sequence[bytes] = ()  # of the response and of interim 1xx responses
    body: bytes = b""  # the first `max_body` bytes of the response body
    truncated: bool = False  # the response body was longer
    elapsed: float = 0.0  # seconds
    reached: bool = False  # False only if the server certainly received no byte of the request

    @property
    def ok(self) -> bool:
        """Whether the server responded with 2xx."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response by lower-case name, parsed at each use, because most are never read.

        If a header is repeated, the last value counts.
        """
        headers: dict[str, str] = {}
        for line in self.header_lines:
            name, colon, value = line.decode("latin-1").partition(":")
            if colon and len(headers) < MAX_HEADERS:
                headers[name.lower()] = value.strip()[:MAX_HEADER_VALUE]
            elif name.startswith("HTTP/"):
                headers.clear()
        return headers

    @property
    def location(self) -> str:
        """The `Location` header as sent, without query and fragment, which may hold secrets."""
        return self.headers.get("location", "").partition("?")[0].partition("#")[0]

    def redirect_target(self, url: str) -> str:
        """Return where a request to `url` was redirected to, without query and fragment. Raises ValueError if that is malformed."""
        return urljoin(url, self.location)

    def retry_after(self, now: float) -> float | None:
        """Return the seconds that Retry-After asks to wait, from `now` (Unix time); None without a valid header."""
        value = self.headers.get("retry-after", "").strip()
        if _SECONDS.fullmatch(value):
            return float(value)
        moment = parse_http_date_safe(value)
        return None if moment is None else max(0.0, moment - now)


@lru_cache(maxsize=1024)
def url_blocked_reason(url: str, allow_http: bool) -> str | None:
    """Return None if the URL may be called, otherwise a sentence that explains why not without repeating the URL."""
    match = _URL.fullmatch(url)
    if match is None or not _has_valid_port(url):
        return "The URL must look like https://host[:port]/path, in ASCII, without a username, password or fragment."
    if match["scheme"].lower() == "http" and not allow_http:
        return "The URL must start with https://. Plain http requires ALLOW_HTTP."
    return None


def _has_valid_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def host_of(url: str) -> str:
    """Return `host` or `host:port` of a URL that `url_blocked_reason` accepts, for messages."""
    match = _URL.fullmatch(url)
    return match["host"] if match else "the server"


def name_of(url: str) -> str:
    """Return the host to resolve: no port, and no brackets around an IPv6 address."""
    host = host_of(url)
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
