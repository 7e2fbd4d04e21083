"""What the HTTP client refuses: blocked addresses and URLs, and untrusted certificates."""

import socket
import threading
import time

import pytest

from docora.http.client import Cause, HttpClient
from tests.docora.http_server import LOOPBACK, post


@pytest.fixture
def client():
    with HttpClient(LOOPBACK, allow_http=True) as client:
        yield client


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "LOCALHOST", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1"],
)
def test_private_address_is_blocked_before_connecting(serve, host):
    server = serve()
    with HttpClient([], allow_http=True) as client:
        outcome = client.request(post(f"http://{host}:{server.port}/"))
    assert (outcome.cause, outcome.reached) == (Cause.REFUSED_ADDRESS, False)
    assert "is a loopback address" in outcome.message
    time.sleep(0.05)
    assert server.connections == 0


def test_plain_http_is_blocked_unless_allowed(serve):
    server = serve()
    with HttpClient(LOOPBACK) as client:
        outcome = client.request(post(server.url))
    assert (outcome.cause, outcome.reached, server.connections) == (Cause.REFUSED_ADDRESS, False, 0)
    assert "https" in outcome.message


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@127.0.0.1/",
        "http://127.0.0.1@hunter2.example/",
        "http:///127.0.0.1/hunter2",
        "http:/127.0.0.1/hunter2",
        "http://127.0.0.1\\@hunter2/",
        "http://127.0.0.1/hunter2\r\nX: y",
        "http://[fe80::1%25eth0]/hunter2",
        "http://bücher.example/hunter2",
        "ftp://127.0.0.1/hunter2",
        "file:///etc/hunter2",
        "hunter2",
    ],
)
def test_ambiguous_url_is_blocked(client, url):
    outcome = client.request(post(url))
    assert (outcome.cause, outcome.reached) == (Cause.REFUSED_ADDRESS, False)
    assert "hunter2" not in outcome.message


def test_proxy_variables_are_ignored(monkeypatch, serve):
    proxy, server = serve(), serve()
    for name in ("http_proxy", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    with HttpClient(LOOPBACK, allow_http=True) as client:
        assert client.request(post(server.url)).ok
    assert (server.connections, proxy.connections) == (1, 0)


# --- TLS --------------------------------------------------------------------------------------------------------------
def test_trusted_certificate_is_accepted(serve, certificate):
    context, ca_file = certificate
    server = serve(tls=context)
    with HttpClient(LOOPBACK, ca_file=ca_file) as client:
        assert client.request(post(server.url)).ok
        assert client.request(post(server.url)).ok
    assert server.connections == 1


def test_untrusted_certificate_is_a_tls_failure(client, serve, certificate):
    server = serve(tls=certificate[0])
    outcome = client.request(post(server.url))
    assert (outcome.cause, outcome.reached, server.requests) == (Cause.TLS, False, [])
    assert "self-signed certificate" in outcome.message


def test_server_without_tls_is_a_tls_failure(client):
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer():
            connection, _ = plain.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        outcome = client.request(post(f"https://127.0.0.1:{plain.getsockname()[1]}/"))
    assert (outcome.cause, outcome.reached) == (Cause.TLS, False)


def test_hanging_handshake_times_out(client):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        outcome = client.request(post(f"https://127.0.0.1:{silent.getsockname()[1]}/", connect_timeout=0.3))
    assert (outcome.cause, outcome.reached) == (Cause.TIMEOUT, False)
    assert "Couldn't connect to 127.0.0.1" in outcome.message
    assert outcome.elapsed < 5
