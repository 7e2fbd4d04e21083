"""Which addresses Docora may connect to: at least one address of every special-purpose block."""

from ipaddress import ip_network

import pytest

from docora.http.addresses import blocked_reason, is_in


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "140.82.121.4",
        "1.1.1.1",
        "223.255.255.254",
        "2606:4700::6810:84e5",
        "2a00:1450:4001:82a::200e",
        "2001:4860:4860::8888",
    ],
)
def test_public_unicast_is_allowed(address):
    assert blocked_reason(address, ()) is None


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",  # metadata service of a cloud
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",  # metadata service of most clouds
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.9",
        "192.0.0.192",  # metadata service of a cloud
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
    ],
)
def test_special_purpose_ipv4_is_blocked(address):
    assert address in (blocked_reason(address, ()) or "")


@pytest.mark.parametrize(
    "address",
    [
        "::",
        "::1",
        "::8.8.8.8",  # IPv4-compatible
        "::ffff:8.8.8.8",  # IPv4-mapped
        "::ffff:127.0.0.1",
        "::ffff:0:8.8.8.8",  # IPv4-translated
        "64:ff9b::8.8.8.8",  # NAT64
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::8.8.8.8",  # local NAT64
        "64:ff9b:1:ffff::1",
        "100::1",
        "2001::1",  # Teredo
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:2::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:808:808::1",  # 6to4
        "2002:7f00:1::",
        "2606:4700::5efe:8.8.8.8",  # ISATAP
        "2606:4700::200:5efe:10.0.0.1",
        "3fff::1",
        "3fff:fff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",  # metadata service of a cloud
        "fe80::1",
        "fec0::1",
        "feff::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_special_purpose_ipv6_is_blocked(address):
    assert blocked_reason(address, ()) is not None


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.0.0.0/8"),
        ("127.0.0.1", "127.0.0.1/32"),
        ("168.63.129.16", "168.63.129.0/24"),
        ("fd12::1", "fd00::/8"),
        ("::1", "::1/128"),
        ("64:ff9b::8.8.8.8", "64:ff9b::/96"),
        ("::ffff:10.1.2.3", "10.0.0.0/8"),
        ("::ffff:10.1.2.3", "::ffff:0:0/96"),
    ],
)
def test_address_in_an_allowed_network_is_allowed(address, network):
    assert blocked_reason(address, [ip_network("192.168.7.0/24"), ip_network(network)]) is None


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.4/32"),
        ("10.1.2.3", "::ffff:10.1.2.3/128"),
        ("::ffff:10.1.2.3", "192.168.0.0/16"),
        ("64:ff9b::10.0.0.1", "10.0.0.0/8"),
        ("::10.0.0.1", "10.0.0.0/8"),
        ("2002:a00:1::", "10.0.0.0/8"),
    ],
)
def test_address_outside_the_allowed_network_is_blocked(address, network):
    assert blocked_reason(address, [ip_network(network)]) is not None


@pytest.mark.parametrize("text", ["", "unknown", "10.0.0.1:443", "10.0.0.0/8"])
def test_other_text_is_in_no_network(text):
    assert not is_in([ip_network("0.0.0.0/0"), ip_network("::/0")], text)


def test_zone_id_is_blocked_even_in_an_allowed_network():
    assert "network interface" in (blocked_reason("fe80::1%eth0", [ip_network("fe80::/10")]) or "")


@pytest.mark.parametrize(
    "address",
    [
        # The address before a block, its first and last address, and the address after it.
        ("9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"),
        ("100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"),
        ("126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.1"),
        ("169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"),
        ("172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"),
        ("191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"),
        ("192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"),
        ("198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"),
        ("2000:ffff::1", "2001::", "2001:1ff:ffff::1", "2001:200::1"),
        ("2001:db7:ffff::1", "2001:db8::", "2001:db8:ffff::1", "2001:db9::1"),
        ("2001:ffff::1", "2002::", "2002:ffff::1", "2003::1"),
        ("3ffe:ffff::1", "3fff::", "3fff:fff:ffff::1", "3fff:1000::1"),
    ],
    ids=lambda edges: edges[1],
)
def test_block_boundaries(address):
    before, first, last, after = address
    assert [blocked_reason(each, ()) is None for each in (before, first, last, after)] == [True, False, False, True]


@pytest.mark.parametrize(
    "address", ["", "localhost", "127.1", "0x7f.0.0.1", "2130706433", "010.0.0.1", "[::1]", "1.2.3.4:80"]
)
def test_non_numeric_address_is_blocked(address):
    assert "not a numeric IP address" in (blocked_reason(address, [ip_network("0.0.0.0/0")]) or "")


def test_message_names_the_address_and_its_kind():
    assert blocked_reason("10.0.0.1", ()) == (
        "10.0.0.1 is a private address. Only public addresses and ALLOWED_PRIVATE_NETWORKS are allowed."
    )
