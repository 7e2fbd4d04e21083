"""A host is called only if every address of its name is allowed, and the dialled address is checked again."""

import socket
import time
from ipaddress import ip_address

import pycurl
import pytest

from docora.http import resolver, transfer
from docora.http.client import Cause, HttpClient
from docora.http.resolver import ResolvedHost, Resolver, resolve
from tests.docora.http_server import LOOPBACK, post, saying


class FakeDns:
    """Return the next of `answers` for each lookup, and repeat the last one."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def __call__(self, host, port, *_, **__):
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in answer]


@pytest.fixture
def dns(monkeypatch):
    def answering(*answers):
        fake = FakeDns(*answers)
        monkeypatch.setattr(socket, "getaddrinfo", fake)
        return fake

    return answering


PUBLIC, OTHER = "8.8.8.8", "2606:4700::6810:84e5"


@pytest.mark.parametrize(
    ("addresses", "word"),
    [
        ([PUBLIC, "10.0.0.1"], "private"),
        (["10.0.0.1", PUBLIC], "private"),
        ([PUBLIC, OTHER, "::1"], "loopback"),
        ([PUBLIC, "::ffff:169.254.169.254"], "IPv4-mapped"),
        ([PUBLIC, "64:ff9b::7f00:1"], "NAT64"),
        ([PUBLIC, "2002:7f00:1::"], "6to4"),
        ([PUBLIC, "fe80::1%eth0"], "network interface"),
        ([PUBLIC, "169.254.169.254"], "link-local"),
        ([PUBLIC] * 50 + ["127.0.0.1"], "loopback"),
    ],
)
def test_one_blocked_address_blocks_the_name(dns, addresses, word):
    dns(addresses)
    resolved = resolve("both.example", [])
    assert (resolved.addresses, resolved.cause) == ((), Cause.REFUSED_ADDRESS)
    assert resolved.message.startswith("both.example resolves to a blocked address. ")
    assert word in resolved.message


def test_allowed_addresses_keep_their_order_without_duplicates(dns):
    dns([OTHER, PUBLIC, OTHER])
    assert resolve("good.example", []) == ((OTHER, PUBLIC), None, "")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("10.1", "10.0.0.1"),
        ("0xa9fea9fe", "169.254.169.254"),
        ("2852039166", "169.254.169.254"),
        ("169.254.43518", "169.254.169.254"),
        ("::1", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("::ffff:7f00:1", "::ffff:127.0.0.1"),
        ("::127.0.0.1", "::7f00:1"),
    ],
)
def test_any_notation_of_an_address_is_recognised(host, address):
    resolved = resolve(host, [])
    assert resolved.cause is Cause.REFUSED_ADDRESS
    assert str(ip_address(address)) in resolved.message


@pytest.mark.parametrize("host", ["", "a..b", "a" * 64 + ".example", "." * 300, "x" * 5000, "no-such-name.invalid"])
def test_unresolvable_name_is_a_dns_failure(host):
    resolved = resolve(host, [])
    assert (resolved.addresses, resolved.cause) == ((), Cause.DNS)
    assert "DNS lookup failed" in resolved.message


def test_name_in_another_script_is_not_looked_up(dns):
    """libcurl would convert it, and connect to the addresses of the converted name, which were not checked."""
    fake = dns([PUBLIC])
    assert resolve("bücher.example", []).cause is Cause.DNS
    assert fake.asked == []


def test_slow_lookup_times_out(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3) or [])
    started = time.monotonic()
    resolved = resolve("slow.example", [], seconds=0.2)
    assert resolved.cause is Cause.DNS
    assert resolved.message == "Couldn't reach slow.example: DNS lookup failed (no answer within 0.2 s)."
    assert time.monotonic() - started < 1


def test_cache_expires_and_is_bounded(dns, monkeypatch):
    fake = dns([PUBLIC])
    known = Resolver([])
    for _ in range(3):
        assert known.resolve("a.example").cause is None
        assert known.resolve("A.Example").cause is None
    assert len(fake.asked) == 1
    for number in range(1000):
        known.resolve(f"{number}.example")
    assert len(known._cache) == 256
    now = time.monotonic()
    monkeypatch.setattr(resolver.time, "monotonic", lambda: now + resolver.CACHE_SECONDS + 1)
    before = len(fake.asked)
    known.resolve("999.example")
    assert len(fake.asked) == before + 1


# --- Through the client -----------------------------------------------------------------------------------------------
@pytest.fixture
def libcurl_finds(monkeypatch):
    """Pin what libcurl resolves `hook.example` to, which may differ from our own lookup, as with DNS rebinding."""

    def finding(port, addresses):
        begin = transfer.Transfer.begin

        def begin_pinned(self, request):
            begin(self, request)
            self.curl.setopt(pycurl.RESOLVE, [f"hook.example:{port}:{addresses}"])

        monkeypatch.setattr(transfer.Transfer, "begin", begin_pinned)
        return f"http://hook.example:{port}/"

    return finding


def test_name_with_a_private_address_is_not_dialled(dns, libcurl_finds, serve):
    server = serve()
    dns(["127.0.0.1", "10.0.0.5"])
    with HttpClient(LOOPBACK, allow_http=True) as client:
        outcome = client.request(post(libcurl_finds(server.port, "127.0.0.1")))
    assert (outcome.cause, outcome.reached, server.connections) == (Cause.REFUSED_ADDRESS, False, 0)
    assert "hook.example resolves to a blocked address. 10.0.0.5 is a private address" in outcome.message


def test_new_address_is_used_once_the_old_one_is_no_longer_cached(monkeypatch, serve):
    """libcurl kept each address for 60 s, also one that Docora had looked up almost 30 s before."""
    for module in (resolver, transfer):
        monkeypatch.setattr(module, "CACHE_SECONDS", 1.0)
    answer = saying("200 OK", b"", "Connection: close")
    old = serve(answer, address="127.0.0.2")
    new = serve(answer, port=old.port)
    with HttpClient(LOOPBACK, allow_http=True) as client:
        client.resolver.add("localhost", ResolvedHost(("127.0.0.2",), None, ""))
        url = f"http://localhost:{old.port}/"
        assert client.request(post(url)).ok
        time.sleep(2.1)
        assert client.request(post(url)).ok
        assert (old.connections, new.connections) == (1, 1)


def test_name_that_becomes_private_when_dialled_is_blocked(dns, libcurl_finds, serve):
    server = serve()
    dns([PUBLIC])
    with HttpClient([], allow_http=True) as client:
        outcome = client.request(post(libcurl_finds(server.port, "127.0.0.1")))
    assert (outcome.cause, outcome.reached, server.connections) == (Cause.REFUSED_ADDRESS, False, 0)
    assert outcome.message.startswith("127.0.0.1 is a loopback address")


def test_second_lookup_that_fails_is_a_dns_failure(dns, libcurl_finds, serve):
    server = serve()
    dns(socket.gaierror(-2, "Name or service not known"))
    with HttpClient(LOOPBACK, allow_http=True) as client:
        outcome = client.request(post(libcurl_finds(server.port, "127.0.0.1")))
    assert (outcome.cause, outcome.reached, server.connections) == (Cause.DNS, False, 0)
    assert outcome.message == "Couldn't reach hook.example: DNS lookup failed (name or service not known)."


def test_no_other_candidate_is_dialled_after_a_blocked_one(dns, libcurl_finds, serve):
    server = serve()
    dns(["127.0.0.1"])
    with HttpClient(LOOPBACK, allow_http=True) as client:
        outcome = client.request(post(libcurl_finds(server.port, "10.0.0.1,127.0.0.1")))
    assert (outcome.cause, outcome.reached, server.connections) == (Cause.REFUSED_ADDRESS, False, 0)


def test_candidate_blocked_during_another_connect(serve, monkeypatch):
    server = serve()
    with HttpClient(LOOPBACK, allow_http=True) as client:
        before_send = transfer.Transfer._before_send

        def blocked_meanwhile(self, *connection):
            self._blocked = (Cause.REFUSED_ADDRESS, "10.0.0.1 is a private address.")
            return before_send(self, *connection)

        monkeypatch.setattr(transfer.Transfer, "_before_send", blocked_meanwhile)
        outcome = client.request(post(server.url))
    assert (outcome.cause, outcome.reached, server.requests) == (Cause.REFUSED_ADDRESS, False, [])


def test_many_connections_cause_one_lookup_and_kept_ones_none(dns, libcurl_finds, serve):
    server = serve()
    fake = dns(["127.0.0.1"])
    url = libcurl_finds(server.port, "127.0.0.1")
    with HttpClient(LOOPBACK, allow_http=True) as client:
        for _ in range(20):
            client.submit(post(url))
        outcomes = []
        while client.in_flight:
            outcomes += client.poll(1)
        assert all(outcome.ok for _, outcome in outcomes)
        assert client.request(post(url)).ok
    assert server.connections > 1
    assert fake.asked == [b"hook.example"]


def test_name_that_was_looked_up_beforehand_is_not_looked_up_by_libcurl(serve):
    """libcurl would not find this one."""
    server = serve()
    with HttpClient(LOOPBACK, allow_http=True) as client:
        client.resolver.add("hook.example", ResolvedHost(("127.0.0.1",), None, ""))
        assert client.request(post(f"http://hook.example:{server.port}/")).ok


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST"])
def test_localhost_uses_the_allowed_loopback_address(serve, host):
    server = serve()
    with HttpClient(LOOPBACK, allow_http=True) as client:
        assert client.request(post(f"http://{host}:{server.port}/")).ok
    assert resolve(host, LOOPBACK).addresses == ("127.0.0.1",)


def test_localhost_with_one_allowed_address(dns):
    dns(["::1", "127.0.0.1"])
    assert resolve("localhost", LOOPBACK).addresses == ("127.0.0.1",)


def test_subdomain_named_localhost_gets_no_exception(dns):
    dns(["127.0.0.1", "::1"])
    assert resolve("localhost.evil.example", LOOPBACK).cause is Cause.REFUSED_ADDRESS
