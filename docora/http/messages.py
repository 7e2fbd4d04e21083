"""What goes into the HTTP client and what comes out of it: plain values, no libcurl."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import lru_cache

# The authority is strict on purpose: no userinfo, no percent-encoding, no zone id, nothing that two parsers could read
# in two ways. All of it is printable ASCII; names in other scripts are written in their xn-- form.
_URL = re.compile(r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._:\[\]-]+)(?:[/?][!\"$-~]*)?", re.IGNORECASE)
_METHOD = re.compile(r"[A-Z]+")
_SECONDS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `context` is the caller's own: it comes back with the outcome."""

    method: str
    url: str
    # Lines "Name: value", ASCII. Neither they, which may hold a token, nor the body show up in a traceback.
    headers: tuple[str, ...] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)  # GET and HEAD have none
    connect_timeout: float = 5.0  # seconds for name, connection and TLS handshake
    timeout: float = 30.0  # seconds in all
    max_body: int = 4096  # how many bytes of the answer's body are kept
    # Whether the client may send this request a second time by itself, after a connection that was kept alive has died
    # under it without an answer. The server may then have seen it twice.
    repeatable: bool = False
    context: object = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """ValueError for what would make another request, or other headers, of this one."""
        if not _METHOD.fullmatch(self.method):
            raise ValueError(f"{self.method!r} is not an HTTP method.")
        if self.body and self.method in {"GET", "HEAD"}:
            raise ValueError(f"A {self.method} request has no body.")
        joined = "".join(self.headers)  # one look at all of them: this runs for every file that is sent
        if not joined.isascii() or "\r" in joined or "\n" in joined or "\0" in joined:
            raise ValueError("Headers must be ASCII, without line breaks.")
        for line in self.headers:
            if ":" not in line:
                raise ValueError("A header must look like 'Name: value'.")


class AnswerHeaders(Mapping[str, str]):
    """The headers of an answer by name in lower case; of a repeated one the last.

    Made from libcurl's raw lines when somebody looks, since nobody does for most answers. Where a server sent interim
    1xx answers, only the last answer counts.
    """

    MAX_COUNT = 64
    MAX_VALUE = 4096  # characters; libcurl itself ends at 300 KB for all headers

    __slots__ = ("_lines", "_parsed")

    def __init__(self, lines: Iterable[bytes] = ()) -> None:
        self._lines = tuple(lines)
        self._parsed: dict[str, str] | None = None

    def _headers(self) -> dict[str, str]:
        if self._parsed is None:
            headers: dict[str, str] = {}
            for line in self._lines:
                name, colon, value = line.decode("latin-1").partition(":")
                if colon and len(headers) < self.MAX_COUNT:
                    headers[name.lower()] = value.strip()[: self.MAX_VALUE]
                elif name.startswith("HTTP/"):
                    headers.clear()
            self._parsed, self._lines = headers, ()
        return self._parsed

    def __getitem__(self, name: str) -> str:
        return self._headers()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers())

    def __len__(self) -> int:
        return len(self._headers())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._headers()!r})"


class Cause(StrEnum):
    """Why there is no answer."""

    DNS = "dns"  # the name could not be resolved
    REFUSED_ADDRESS = "refused_address"  # Docora's own rules forbid the URL or the address that it leads to
    CONNECT = "connect"  # nobody accepts connections there
    TLS = "tls"  # no handshake, or a certificate that is not to be trusted
    TIMEOUT = "timeout"
    NETWORK = "network"  # the connection broke after it had been made


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: with an answer (`status`) or without one (`cause`), never both and never neither."""

    status: int | None
    cause: Cause | None
    message: str  # one sentence for a person; no header, and nothing of the URL but its host
    headers: Mapping[str, str]  # of the answer, names in lower case, bounded
    body: bytes  # the first `max_body` bytes of the answer
    truncated: bool  # the answer's body was longer than that
    elapsed: float  # seconds
    reached: bool  # False only if it is certain that the server got no byte of the request

    @property
    def ok(self) -> bool:
        """2xx."""
        return self.status is not None and 200 <= self.status < 300

    def retry_after(self, now: float) -> float | None:
        """Seconds to wait as the answer asks for, counted from `now` (Unix seconds); None if it does not ask."""
        value = self.headers.get("retry-after", "").strip()
        if _SECONDS.fullmatch(value):
            return float(value)
        try:
            moment = parsedate_to_datetime(value)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        if moment.tzinfo is None:  # "-0000", which HTTP dates should not have, means UTC
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - now)


@lru_cache(maxsize=1024)
def url_refusal(url: str, allow_http: bool) -> str | None:
    """None if this URL may be called, else one sentence that does not repeat it. Cached: the URLs of an app are few."""
    match = _URL.fullmatch(url)
    if match is None:
        return (
            "The URL must look like https://host[:port]/path, without user name, password, fragment or non-ASCII text."
        )
    if match["scheme"].lower() == "http" and not allow_http:
        return "The URL must start with https://. Plain http needs ALLOW_HTTP."
    return None


def host_of(url: str) -> str:
    """`host` or `host:port` of a URL that `url_refusal` let through, for messages."""
    match = _URL.fullmatch(url)
    return match["host"] if match else "the server"


def name_of(url: str) -> str:
    """The host alone, as it is looked up: without port, an IPv6 address without brackets."""
    host = host_of(url)
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
