"""A name is called only if every address behind it may be called, and the dialled one is checked besides."""

import socket
import time

import pycurl
import pytest

from docora.http import resolver, transfer
from docora.http.client import Cause, HttpClient
from docora.http.resolver import Names, vet
from tests.docora.http_server import LOOPBACK, post, servers


@pytest.fixture
def serve():
    with servers() as start:
        yield start


class FakeDns:
    """Answers every question with the next of `answers`, and with the last one for ever."""

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
def test_one_address_that_may_not_be_called_refuses_the_name(dns, addresses, word):
    dns(addresses)
    vetted = vet("both.example", [])
    assert (vetted.addresses, vetted.cause) == ((), Cause.REFUSED_ADDRESS)
    assert vetted.message.startswith("both.example leads to an address that is not called: ")
    assert word in vetted.message


def test_addresses_that_may_be_called_are_named_in_their_order_and_once(dns):
    dns([OTHER, PUBLIC, OTHER])
    assert vet("good.example", []) == ((OTHER, PUBLIC), None, "")


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
def test_every_notation_of_an_address_is_that_address(host, address):
    vetted = vet(host, [])
    assert vetted.cause is Cause.REFUSED_ADDRESS
    assert address in vetted.message


@pytest.mark.parametrize("host", ["", "a..b", "a" * 64 + ".example", "." * 300, "x" * 5000, "no-such-name.invalid"])
def test_a_name_that_leads_nowhere_is_a_dns_failure_in_words(host):
    vetted = vet(host, [])
    assert (vetted.addresses, vetted.cause) == ((), Cause.DNS)
    assert "could not be resolved" in vetted.message


def test_a_slow_look_up_does_not_hold_up_everything_for_long(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3) or [])
    started = time.monotonic()
    assert vet("slow.example", [], seconds=0.2).cause is Cause.DNS
    assert time.monotonic() - started < 1


def test_names_are_remembered_for_a_while_and_not_without_end(dns, monkeypatch):
    fake = dns([PUBLIC])
    known = Names([])
    for _ in range(3):
        assert known.vet("a.example").cause is None
        assert known.vet("A.Example").cause is None
    assert len(fake.asked) == 1
    for number in range(1000):
        known.vet(f"{number}.example")
    assert len(known._known) == 256
    now = time.monotonic()
    monkeypatch.setattr(resolver.time, "monotonic", lambda: now + resolver.REMEMBERED_SECONDS + 1)
    before = len(fake.asked)
    known.vet("999.example")
    assert len(fake.asked) == before + 1


# --- Through the client -----------------------------------------------------------------------------------------------
@pytest.fixture
def libcurl_finds(monkeypatch):
    """Give libcurl its own answer for `hook.example`, which may differ from ours: as a name does that changes."""

    def finding(port, addresses):
        begin = transfer.Transfer.begin

        def begin_pinned(self, request):
            begin(self, request)
            self.curl.setopt(pycurl.RESOLVE, [f"hook.example:{port}:{addresses}"])

        monkeypatch.setattr(transfer.Transfer, "begin", begin_pinned)
        return f"http://hook.example:{port}/"

    return finding


def test_a_name_with_a_private_address_beside_the_good_one_is_not_dialled(dns, libcurl_finds, serve):
    server = serve()
    dns(["127.0.0.1", "10.0.0.5"])
    with HttpClient(LOOPBACK, allow_http=True) as client:
        outcome = client.request(post(libcurl_finds(server.port, "127.0.0.1")))
    assert (outcome.cause, outcome.reached, server.connections) == (Cause.REFUSED_ADDRESS, False, 0)
    assert "hook.example leads to an address that is not called: 10.0.0.5 is a private address" in outcome.message


def test_a_name_that_was_public_when_it_was_asked_and_is_private_when_it_is_dialled_is_refused(
    dns, libcurl_finds, serve
):
    server = serve()
    dns([PUBLIC])
    with HttpClient([], allow_http=True) as client:
        outcome = client.request(post(libcurl_finds(server.port, "127.0.0.1")))
    assert (outcome.cause, outcome.reached, server.connections) == (Cause.REFUSED_ADDRESS, False, 0)
    assert outcome.message.startswith("127.0.0.1 is a loopback address")


def test_a_name_that_answers_nothing_the_second_time_is_a_dns_failure(dns, libcurl_finds, serve):
    server = serve()
    dns(socket.gaierror(-2, "Name or service not known"))
    with HttpClient(LOOPBACK, allow_http=True) as client:
        outcome = client.request(post(libcurl_finds(server.port, "127.0.0.1")))
    assert (outcome.cause, outcome.reached, server.connections) == (Cause.DNS, False, 0)
    assert outcome.message == "The name hook.example could not be resolved: Name or service not known."


def test_once_a_candidate_is_refused_no_other_one_is_dialled(dns, libcurl_finds, serve):
    server = serve()
    dns(["127.0.0.1"])
    with HttpClient(LOOPBACK, allow_http=True) as client:
        outcome = client.request(post(libcurl_finds(server.port, "10.0.0.1,127.0.0.1")))
    assert (outcome.cause, outcome.reached, server.connections) == (Cause.REFUSED_ADDRESS, False, 0)


def test_nothing_is_sent_when_a_candidate_was_refused_while_another_one_connects(serve, monkeypatch):
    server = serve()
    with HttpClient(LOOPBACK, allow_http=True) as client:
        before_send = transfer.Transfer._before_send

        def refused_meanwhile(self, *connection):
            self._refused = (Cause.REFUSED_ADDRESS, "10.0.0.1 is a private address.")
            return before_send(self, *connection)

        monkeypatch.setattr(transfer.Transfer, "_before_send", refused_meanwhile)
        outcome = client.request(post(server.url))
    assert (outcome.cause, outcome.reached, server.requests) == (Cause.REFUSED_ADDRESS, False, [])


def test_a_name_is_looked_up_once_for_many_connections_and_not_for_kept_ones(dns, libcurl_finds, serve):
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


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST"])
def test_localhost_is_called_at_the_loopback_address_that_is_allowed(serve, host):
    server = serve()
    with HttpClient(LOOPBACK, allow_http=True) as client:
        assert client.request(post(f"http://{host}:{server.port}/")).ok
    assert vet(host, LOOPBACK).addresses == ("127.0.0.1",)


def test_a_name_with_localhost_in_it_is_a_name_like_any_other(dns):
    dns(["127.0.0.1", "::1"])
    assert vet("localhost.evil.example", LOOPBACK).cause is Cause.REFUSED_ADDRESS
