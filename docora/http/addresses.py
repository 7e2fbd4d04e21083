"""Decide whether Docora may connect to an IP address.

Webhook and repository URLs are untrusted input: a host name may resolve to a private network, a cloud metadata service
or Docora itself. Connections are allowed only to public unicast addresses and to ALLOWED_PRIVATE_NETWORKS. The check
runs on the exact address that is about to be connected (`docora.http.transfer`), so DNS rebinding cannot bypass it, and
on every other address of the same name (`docora.http.resolver`).

The table holds IANA's special-purpose registries (RFC 6890 and updates) plus ranges that the registries omit.
`ipaddress.is_global` is not sufficient: it varies between Python patch releases, and it accepts multicast and most IPv6
forms that embed an IPv4 address and so could reach a private one.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

_NOT_PUBLIC = [
    (ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "an address of this host"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a carrier-grade NAT address"),
        ("127.0.0.0/8", "a loopback address"),
        ("168.63.129.16/32", "a cloud platform service"),
        ("169.254.0.0/16", "a link-local address"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "reserved for documentation"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "reserved for benchmarks"),
        ("198.51.100.0/24", "reserved for documentation"),
        ("203.0.113.0/24", "reserved for documentation"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "an address of this host"),
        ("::1/128", "a loopback address"),
        ("::/96", "an IPv4-compatible address"),
        ("::ffff:0:0/96", "an IPv4-mapped address"),
        ("::ffff:0:0:0/96", "an IPv4-translated address"),
        ("64:ff9b::/96", "a NAT64 address"),
        ("64:ff9b:1::/48", "a local NAT64 address"),
        ("100::/64", "a discard-only address"),
        ("2001::/32", "a Teredo address"),
        ("2001::/23", "reserved for protocols"),
        ("2001:db8::/32", "reserved for documentation"),
        ("2002::/16", "a 6to4 address"),
        ("3fff::/20", "reserved for documentation"),
        ("5f00::/16", "a segment-routing address"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a site-local address"),
        ("ff00::/8", "a multicast address"),
    )
]
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")  # the only range IANA has allocated for unicast
# Bits 32–63 of an interface ID that embeds an IPv4 address (RFC 5214), without and with the universal/local bit.
_ISATAP = (0x5EFE, 0x0200_5EFE)


def is_address(text: str) -> bool:
    """Return whether the text is a numeric IP address. The brackets of an IPv6 address in a URL are not part of it."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def blocked_reason(address: str, allowed_networks: Sequence[Network]) -> str | None:
    """Return None if Docora may connect to this numeric address, otherwise a sentence that explains why not.

    The operating system treats `::ffff:a.b.c.d` as a.b.c.d, so it is allowed if either form is in an allowed network.
    An address with a zone ID (`fe80::1%eth0`) is always blocked because it names an interface of this machine.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return f"{address!r} is not a numeric IP address."
    if isinstance(ip, IPv6Address) and ip.scope_id is not None:
        return f"{ip} refers to a network interface of this server."
    kind = _kind(ip)
    if kind is None or is_in(allowed_networks, address):
        return None
    return f"{ip} is {kind}. Only public addresses and ALLOWED_PRIVATE_NETWORKS are allowed."


def is_in(networks: Sequence[Network], address: str) -> bool:
    """Return whether the text is an address in one of the networks. `::ffff:a.b.c.d` is a.b.c.d to the operating system."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return any(ip in network or (mapped is not None and mapped in network) for network in networks)


def _kind(ip: IPv4Address | IPv6Address) -> str | None:
    """Return why the address is not public unicast, or None if it is."""
    kind = next((kind for network, kind in _NOT_PUBLIC if ip in network), None)
    if kind is None and ip.version == 6 and (int(ip) >> 32) & 0xFFFF_FFFF in _ISATAP:
        kind = "an ISATAP address"
    is_unicast = ip.version == 4 or ip in _GLOBAL_UNICAST_V6
    return kind or (None if is_unicast and ip.is_global else "not a public address")
