"""Resolve a host name and check that Docora may connect to every address it has.

If any address is blocked, the whole name is blocked. Otherwise chance would decide which address is dialled, and a name
with both a public and a private address could bypass the check. `docora.http.transfer` checks the dialled address again
when it opens the socket, so a name that resolves differently a moment later gains nothing.
"""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from docora.http.addresses import Network, blocked_reason
from docora.http.messages import Cause

LOOKUP_SECONDS: Final = 2.0
"""How long one lookup may block all other transfers. libcurl has just resolved the name, so it is usually cached.

`ls_heads`, whose client is shared by all apps, looks names up beforehand, without blocking.
"""
CACHE_SECONDS: Final = 30.0
_CACHE_SIZE: Final = 256  # names


class ResolvedHost(NamedTuple):
    """Either all addresses of a host (numeric, in resolver order), or the reason why none may be dialled."""

    addresses: tuple[str, ...]
    cause: Cause | None
    message: str


def resolve(host: str, allowed_networks: Sequence[Network], seconds: float = LOOKUP_SECONDS) -> ResolvedHost:
    """Resolve a host (a name, or an address in any notation, IPv6 without brackets) and check its addresses."""
    try:
        addresses = [str(ip_address(host))]
    except ValueError:
        try:
            addresses = _addresses_of(host, seconds)
        except OSError as error:
            detail = error.strerror or "no answer"
            text = f"Couldn't reach {host}: DNS lookup failed ({detail[:1].lower()}{detail[1:]})."
            return ResolvedHost((), Cause.DNS, text)
    if is_loopback_name(host):
        addresses = [address for address in addresses if blocked_reason(address, allowed_networks) is None] or addresses
    for address in addresses:
        reason = blocked_reason(address, allowed_networks)
        if reason is not None:
            message = reason if address == host else f"{host} resolves to a blocked address. {reason}"
            return ResolvedHost((), Cause.REFUSED_ADDRESS, message)
    return ResolvedHost(tuple(addresses), None, "")


def is_loopback_name(host: str) -> bool:
    """Return whether the host is `localhost`. It has two loopback addresses; one that is allowed is enough."""
    return host.lower() == "localhost"


def curl_entry(url: str, addresses: Sequence[str]) -> str:
    """Return `host:port:address,…`, with which libcurl, also that of git, connects to these addresses for the URL's host."""
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}[parts.scheme]
    listed = (f"[{address}]" if ":" in address else address for address in addresses)
    return f"{parts.hostname}:{port}:{','.join(listed)}"


def _addresses_of(host: str, seconds: float) -> list[str]:
    """Return the addresses of a name. Raises OSError if it has none or the lookup takes too long.

    The lookup runs in a thread because getaddrinfo() has no timeout.
    """
    if not host.isascii():
        raise OSError(0, "not a valid hostname")
    # Bytes, because a str would go through Python's IDNA codec, which neither libcurl nor git uses.
    found = _in_thread(lambda: socket.getaddrinfo(host.encode(), None, type=socket.SOCK_STREAM))
    try:
        return list(dict.fromkeys(str(answer[4][0]) for answer in found.result(seconds)))
    except TimeoutError:
        raise OSError(0, f"no answer within {seconds:g} s") from None


def _in_thread[Found](look_up: Callable[[], Found]) -> Future[Found]:
    """Start a lookup. Its thread does not delay the end of the process, as that of an executor would."""
    found: Future[Found] = Future()

    def run() -> None:
        try:
            found.set_result(look_up())
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=run, name="name-lookup", daemon=True).start()
    return found


class Resolver:
    """`resolve` with a short cache, so that each new connection does not cause a lookup."""

    def __init__(self, allowed_networks: Sequence[Network]) -> None:
        self.allowed_networks = tuple(allowed_networks)
        self._cache: dict[str, tuple[float, ResolvedHost]] = {}

    def look_up(self, host: str, seconds: float) -> Future[ResolvedHost]:
        """Start to resolve a host without blocking, and return the future result. `add` it when it is there."""
        known = self.cached(host)
        return _in_thread(lambda: known or resolve(host.lower(), self.allowed_networks, seconds))

    def cached(self, host: str) -> ResolvedHost | None:
        """Return the result if it is known and not too old."""
        expires, resolved = self._cache.get(host.lower(), (0.0, None))
        return resolved if expires > time.monotonic() else None

    def add(self, host: str, resolved: ResolvedHost) -> None:
        """Cache a result. Failures are cached too, so that a slow name delays only once in a while."""
        host = host.lower()
        self._cache.pop(host, None)
        while len(self._cache) >= _CACHE_SIZE:
            del self._cache[next(iter(self._cache))]  # the oldest
        self._cache[host] = (time.monotonic() + CACHE_SECONDS, resolved)

    def resolve(self, host: str) -> ResolvedHost:
        """Return the cached or new result."""
        resolved = self.cached(host)
        if resolved is None:
            resolved = resolve(host.lower(), self.allowed_networks)
            self.add(host, resolved)
        return resolved
