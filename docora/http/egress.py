"""Decide which hosts are reached through an egress proxy, and check those hosts as far as Docora can.

Hosts whose addresses are all in ALLOWED_PRIVATE_NETWORKS are reached directly. All others are reached through the proxy,
with CONNECT and their name, so that the proxy can allow or refuse names. (git sends it plain http requests as they are.) The
proxy resolves the name itself, and may get other addresses than Docora does. So both have to enforce the rules for addresses:
Docora refuses each host for which it finds a blocked address, and the proxy has to refuse private networks as well.
"""

import re
from collections.abc import Sequence

from docora.http.addresses import Network, is_address, is_in
from docora.http.messages import Cause
from docora.http.resolver import ResolvedHost

THROUGH_PROXY = "through the egress proxy"
"""Messages contain this if the request may have failed because of the proxy."""
CHECK_PROXY = "An administrator should check EGRESS_PROXY, and that the proxy allows CONNECT to this host and port."

_USERINFO = r"[A-Za-z0-9._~!$&'()*+,;=%-]"
_PROXY = re.compile(
    rf"http://(?:{_USERINFO}+(?::{_USERINFO}*)?@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{{1,5}})/?"
)
# Names that only mean something inside a network (RFC 6761, 6762 and 8375, and `internal`), and names without a dot.
_INSIDE = re.compile(r"[^.]+|.*\.(?:localhost|local|internal|home\.arpa)", re.IGNORECASE)
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.IGNORECASE)


def check_proxy_url(url: str) -> None:
    """Raise ValueError unless the URL is `http://[user:password@]host:port`. The message doesn't repeat it."""
    match = _PROXY.fullmatch(url)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(
            "must look like http://proxy.example:3128 or http://user:password@proxy.example:3128, with the port. "
            "Percent-encode special characters in user name and password, such as @ as %40"
        )


def is_direct(resolved: ResolvedHost, allowed_networks: Sequence[Network]) -> bool:
    """Return whether the host is reached without the proxy: all of its addresses are in the allowed private networks."""
    return resolved.cause is None and all(is_in(allowed_networks, address) for address in resolved.addresses)


def blocked_behind_proxy(host: str, resolved: ResolvedHost) -> tuple[Cause, str] | None:
    """Return None if the proxy may be asked to connect to the host, otherwise the cause and a sentence that explains it.

    A name that Docora can't resolve is left to the proxy, unless such a name belongs to a private network.
    """
    name = host.rstrip(".")
    if _NUMBER.fullmatch(name) and not is_address(host):
        # Programs disagree about such numbers: 0177.0.0.1 is 127.0.0.1 for some and 177.0.0.1 for others. The resolver doesn't
        # find `127.0.0.1.`, but libcurl removes the last dot.
        return Cause.REFUSED_ADDRESS, f"{host} is not a valid hostname, nor an IP address in its usual notation."
    if resolved.cause is Cause.REFUSED_ADDRESS:
        return resolved.cause, resolved.message
    if resolved.cause is not None and _INSIDE.fullmatch(name):
        return resolved.cause, resolved.message
    return None
