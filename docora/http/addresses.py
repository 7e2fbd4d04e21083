"""May Docora connect to this address?

Webhook and repository URLs come from outside, so a name may lead to a private network, to the metadata service of a
cloud or back to Docora itself. The rule is an allow-list: public unicast, and whatever an operator lists in
ALLOWED_PRIVATE_NETWORKS. The answer is asked for the very address that is about to be dialled, after the name has been
resolved (`docora.http.transfer`), so that a name cannot change its meaning between the check and the connection; and
for every other address of that name (`docora.http.resolver`).

The tables below are the special-purpose registries of IANA (RFC 6890 and its updates), and what they leave out.
`ipaddress.is_global` alone is not enough: it differs between patch releases of Python, and says yes to multicast and to
most of the IPv6 forms that carry an IPv4 address, through which a private address could be reached.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network

_NOT_PUBLIC_V4 = [
    (IPv4Network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "an address of this host"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a shared address behind a provider's NAT"),
        ("127.0.0.0/8", "a loopback address"),
        ("168.63.129.16/32", "the platform service of a cloud"),
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
    )
]
_NOT_PUBLIC_V6 = [
    (IPv6Network(network), kind)
    for network, kind in (
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
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")  # all that IANA has handed out for unicast; the rest is not in use
_ISATAP = 0x5EFE  # bits 32–63 of an interface id that embeds an IPv4 address (RFC 5214) …
_ISATAP_UNIVERSAL = 0x0200_5EFE  # … and the same with the bit that says that the IPv4 address is globally unique


def refusal(address: str, allowed_networks: Sequence[Network]) -> str | None:
    """None if Docora may connect to this numeric address, else one sentence that says why not.

    `::ffff:a.b.c.d` is a.b.c.d to the operating system, so a network that allows either spelling allows it. A zone id
    (`fe80::1%eth0`) is refused whatever is allowed: it names an interface of this machine.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return f"{address!r} is not a numeric IP address."
    if isinstance(ip, IPv4Address):
        return None if _contains(allowed_networks, ip) else _sentence(ip, _kind_v4(ip))
    if ip.scope_id is not None:
        return f"{ip} names a network interface of this machine."
    if _contains(allowed_networks, ip) or (ip.ipv4_mapped and _contains(allowed_networks, ip.ipv4_mapped)):
        return None
    return _sentence(ip, _kind_v6(ip))


def _contains(networks: Iterable[Network], ip: IPv4Address | IPv6Address) -> bool:
    return any(ip in network for network in networks)


def _sentence(ip: IPv4Address | IPv6Address, kind: str | None) -> str | None:
    if kind is None:
        return None
    return f"{ip} is {kind}; only public addresses and ALLOWED_PRIVATE_NETWORKS may be called."


def _kind_v4(ip: IPv4Address) -> str | None:
    """What keeps this address from being public unicast, None if nothing does."""
    kind = next((kind for network, kind in _NOT_PUBLIC_V4 if ip in network), None)
    return kind or (None if ip.is_global else "not a public address")


def _kind_v6(ip: IPv6Address) -> str | None:
    """The same for IPv6."""
    kind = next((kind for network, kind in _NOT_PUBLIC_V6 if ip in network), None)
    if kind is None and (int(ip) >> 32) & 0xFFFF_FFFF in (_ISATAP, _ISATAP_UNIVERSAL):
        kind = "an ISATAP address"
    return kind or (None if ip in _GLOBAL_UNICAST_V6 and ip.is_global else "not a public address")
