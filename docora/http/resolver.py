"""Which addresses stand behind a host name, and may all of them be called?

A name that leads to a public address and to a private one as well is refused whole: which of them is dialled would be
chance, and a name that says both is made to get past a check. The dialled address is checked besides, when its socket
is opened (`docora.http.transfer`): a name that answers differently a moment later gains nothing.
"""

import socket
import threading
import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final, NamedTuple

from docora.http.addresses import Network, refusal
from docora.http.messages import Cause

LOOKUP_SECONDS: Final = 2.0
"""How long one look-up may hold up everything else; whoever dials has resolved the name a moment ago."""
REMEMBERED_SECONDS: Final = 30.0
_REMEMBERED: Final = 256  # names


class ResolvedHost(NamedTuple):
    """Either every address of a name (numeric, in the resolver's order), or why none of them is dialled."""

    addresses: tuple[str, ...]
    cause: Cause | None
    message: str


def vet(host: str, allowed_networks: Sequence[Network], seconds: float = LOOKUP_SECONDS) -> ResolvedHost:
    """Resolve a host (a name, or an address in whichever notation, IPv6 without brackets) and judge what comes out."""
    try:
        addresses = [str(ip_address(host))]
    except ValueError:
        try:
            addresses = _addresses_of(host, seconds)
        except OSError as error:
            return ResolvedHost(
                (), Cause.DNS, f"The name {host} could not be resolved: {error.strerror or 'no answer'}."
            )
    if is_loopback_name(host):
        addresses = [address for address in addresses if refusal(address, allowed_networks) is None] or addresses
    for address in addresses:
        sentence = refusal(address, allowed_networks)
        if sentence is not None:
            words = sentence if address == host else f"{host} leads to an address that is not called: {sentence}"
            return ResolvedHost((), Cause.REFUSED_ADDRESS, words)
    return ResolvedHost(tuple(addresses), None, "")


def is_loopback_name(host: str) -> bool:
    """`localhost` is both loopback addresses by definition, whatever a resolver says: one that is allowed is enough."""
    return host.lower() == "localhost"


def _addresses_of(host: str, seconds: float) -> list[str]:
    """In a thread, because the resolver knows no time limit; OSError when it finds nothing within ours."""
    found: list[str] = []
    errors: list[OSError] = []

    def look_up() -> None:
        try:
            # As bytes: a str would pass Python's own IDNA codec, which nobody else who dials asks.
            answers = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            errors.append(error if isinstance(error, OSError) else OSError(0, "it is not a host name"))
        else:
            found.extend(dict.fromkeys(str(answer[4][0]) for answer in answers))

    thread = threading.Thread(target=look_up, name="name-lookup", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not found:
        raise OSError(0, f"no answer within {seconds:g} s")
    return list(found)


class Names:
    """What was found out about names, remembered for a short time: asked for each new connection, not each request."""

    def __init__(self, allowed_networks: Sequence[Network]) -> None:
        self.allowed_networks = tuple(allowed_networks)
        self._known: dict[str, tuple[float, ResolvedHost]] = {}

    def vet(self, host: str) -> ResolvedHost:
        """`vet` with a memory. A refusal and a failure are remembered as well, so that a slow name delays only once."""
        host = host.lower()
        until, vetted = self._known.get(host, (0.0, None))
        if vetted is None or until <= time.monotonic():
            vetted = vet(host, self.allowed_networks)
            self._known.pop(host, None)
            while len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]  # the oldest
            self._known[host] = (time.monotonic() + REMEMBERED_SECONDS, vetted)
        return vetted
