"""The HTTP client against real sockets: responses, concurrent requests and every kind of failure."""

import errno
import re
import socket
import struct
import threading
import time
from types import SimpleNamespace

import pytest

from docora.http import USER_AGENT, transfer
from docora.http.client import Cause, HttpClient, Request
from tests.docora.http_server import LOOPBACK, post, read_request, saying


@pytest.fixture
def client():
    with HttpClient(LOOPBACK, allow_http=True) as client:
        yield client


def everything(client):
    """Return (request, outcome) for all requests in flight."""
    finished = []
    while client.in_flight:
        finished += client.poll(1.0)
    return finished


# --- Responses --------------------------------------------------------------------------------------------------------
def test_2xx_response(client, serve):
    server = serve(saying("201 Created", b'{"ok":true}', "X-Thing: a: b"))
    outcome = client.request(post(server.url, b'{"a":1}'))
    assert (outcome.ok, outcome.status, outcome.cause, outcome.reached) == (True, 201, None, True)
    assert (outcome.body, outcome.truncated, outcome.headers["x-thing"]) == (b'{"ok":true}', False, "a: b")
    assert 0 < outcome.elapsed < 5
    head, body = server.requests[0]
    assert body == b'{"a":1}'
    assert head.startswith(b"POST /hook HTTP/1.1\r\n")
    assert f"\r\nUser-Agent: {USER_AGENT}\r\n".encode() in head
    assert b"\r\nContent-Type: application/json" in head


def test_500_response_is_not_ok(client, serve):
    outcome = client.request(post(serve(saying("500 Oops", b"broken")).url))
    assert (outcome.ok, outcome.status, outcome.cause, outcome.body) == (False, 500, None, b"broken")
    assert outcome.message == "The server returned HTTP 500."


def test_redirect_is_not_followed(client, serve):
    target = serve()
    outcome = client.request(post(serve(saying("307 Elsewhere", b"", f"Location: {target.url}")).url))
    assert (outcome.ok, outcome.status, target.connections) == (False, 307, 0)


def test_long_response_body_is_truncated(client, serve):
    outcome = client.request(post(serve(saying(body=b"x" * 5000)).url, max_body=100))
    assert (outcome.ok, outcome.body, outcome.truncated) == (True, b"x" * 100, True)


def test_request_bodies_by_method(client, serve):
    server = serve()
    outcomes = [client.request(Request(method, server.url)) for method in ("GET", "HEAD", "GET")]
    assert [outcome.body for outcome in outcomes] == [b"ok", b"", b"ok"]
    assert client.request(post(server.url, b"new")).ok
    assert [head.split()[0] for head, _ in server.requests] == [b"GET", b"HEAD", b"GET", b"POST"]
    assert server.requests[-1][1] == b"new"


def test_big_body_is_sent_without_100_continue(client, serve):
    server = serve()
    assert client.request(post(server.url, b"x" * 2_000_000)).ok
    head, body = server.requests[0]
    assert b"expect" not in head.lower()
    assert len(body) == 2_000_000


def test_interim_response_is_ignored(client, serve):
    def answer(connection, head, body):
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nRetry-After: 9\r\nLink: </a.css>\r\n\r\n")
        return saying("503 Busy", b"", "Retry-After: 3")(connection, head, body)

    outcome = client.request(post(serve(answer).url))
    assert (outcome.status, outcome.retry_after(0)) == (503, 3.0)
    assert "link" not in outcome.headers


# --- Many requests ----------------------------------------------------------------------------------------------------
def test_connections_are_reused(client, serve):
    server = serve()
    for _ in range(20):
        assert client.request(post(server.url)).ok
    assert (server.connections, len(server.requests)) == (1, 20)


def test_only_a_fresh_request_gets_a_new_connection(client, serve):
    server = serve()
    for fresh in (False, True, False, False):
        assert client.request(post(server.url, fresh=fresh)).ok
    assert (server.connections, len(server.requests)) == (2, 4)


def test_concurrency_is_bounded_by_max_connections(serve):
    lock, now, most = threading.Lock(), [0], [0]

    def answer(connection, head, body):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return saying(body=body)(connection, head, body)

    server = serve(answer)
    with HttpClient(LOOPBACK, allow_http=True, max_connections=8) as client:
        for number in range(100):
            client.submit(post(server.url, str(number).encode(), context=number))
        assert client.in_flight == 100
        finished = everything(client)
    assert sorted(request.context for request, _ in finished) == list(range(100))
    assert all(outcome.body == str(request.context).encode() for request, outcome in finished)
    assert (most[0], server.connections) == (8, 8)


def test_idle_connections_are_bounded_by_max_connections(serve):
    servers = [serve() for _ in range(3)]
    with HttpClient(LOOPBACK, allow_http=True, max_connections=2) as client:
        for server in (*servers, servers[0]):
            assert client.request(post(server.url)).ok
    assert [server.connections for server in servers] == [2, 1, 1]


def test_timeout_does_not_count_while_queued(serve):
    def answer(connection, head, body):
        time.sleep(0.25)
        return saying()(connection, head, body)

    server = serve(answer)
    with HttpClient(LOOPBACK, allow_http=True, max_connections=1) as client:
        for _ in range(3):
            client.submit(post(server.url, timeout=0.6))
        assert all(outcome.ok for _, outcome in everything(client))


def test_poll_returns_on_the_first_outcome_or_on_timeout(client, serve):
    slow, fast = serve(lambda *_: time.sleep(3) or False), serve()
    client.submit(post(slow.url))
    started = time.monotonic()
    assert client.poll(0.2) == []
    assert time.monotonic() - started > 0.15
    client.submit(post(fast.url))
    assert client.poll(10)[0][1].ok
    assert client.in_flight == 1
    with pytest.raises(RuntimeError, match="Other requests are in flight"):
        client.request(post(fast.url))


def test_abort_returns_the_requests_it_cancelled(client, serve):
    server = serve(lambda *_: time.sleep(3) or False)
    request = post(server.url)
    client.submit(request)
    assert (client.abort(), client.withdraw()) == ([request], [])  # it was not begun
    client.submit(post("ftp://127.0.0.1/"))  # blocked at once
    client.reset()
    assert (client.in_flight, client.poll(0)) == (0, [])
    client.submit(request)
    client.poll(0.1)
    assert client.abort() == [request]
    assert (client.in_flight, client.poll(0)) == (0, [])


@pytest.mark.parametrize("max_connections", [2, 64])
def test_withdraw_cancels_only_requests_not_started(serve, max_connections):
    server = serve()
    begun, *others = (post(server.url) for _ in range(4))
    with HttpClient(LOOPBACK, allow_http=True, max_connections=max_connections) as client:
        client.submit(begun)
        client.poll(0)
        for request in others:
            client.submit(request)
        assert client.withdraw() == others
        assert (client.withdraw(), client.in_flight) == ([], 1)
        assert [request for request, _ in everything(client)] == [begun]
    assert len(server.requests) == 1


# --- Failures ---------------------------------------------------------------------------------------------------------
def test_refused_connection(client):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    outcome = client.request(post(f"http://127.0.0.1:{port}/"))
    assert (outcome.status, outcome.cause, outcome.reached) == (None, Cause.CONNECT, False)
    assert outcome.message == f"Couldn't reach 127.0.0.1:{port}: connection refused."


def test_socket_that_cannot_be_opened(client, monkeypatch):
    def no_socket(*_):
        raise OSError(errno.EMFILE, "")

    monkeypatch.setattr(transfer, "socket", SimpleNamespace(socket=no_socket))
    outcome = client.request(post("http://127.0.0.1:9/"))
    assert (outcome.cause, outcome.reached) == (Cause.CONNECT, False)
    assert outcome.message == "Couldn't reach 127.0.0.1:9: too many open files."


def test_hanging_server_times_out(client, serve):
    outcome = client.request(post(serve(lambda *_: time.sleep(3) or False).url, timeout=0.3))
    assert (outcome.status, outcome.cause, outcome.reached) == (None, Cause.TIMEOUT, True)
    assert "didn't respond within 0.3 s" in outcome.message
    assert outcome.elapsed < 1


def test_trickling_response_times_out(client, serve):
    def answer(connection, _head, _body):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(60):
            connection.sendall(b"x")
            time.sleep(0.05)
        return False

    outcome = client.request(post(serve(answer).url, timeout=0.4))
    assert (outcome.ok, outcome.status, outcome.cause) == (False, None, Cause.TIMEOUT)
    assert outcome.message.endswith(" didn't finish its response within 0.4 s.")


@pytest.mark.parametrize(
    "beginning",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nx"],
)
def test_incomplete_response_is_a_network_failure(client, serve, beginning):
    outcome = client.request(post(serve(lambda connection, *_: connection.sendall(beginning) or False).url))
    assert (outcome.status, outcome.cause, outcome.reached) == (None, Cause.NETWORK, True)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"220 mail.example ESMTP\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"HTTP/2 500\r\nContent-Length: 0\r\n\r\n",
        b"http/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2.0 503 Service Unavailable\r\n\r\n" + b"x" * 2_000_000,
    ],
    ids=["ssh", "smtp", "tls", "HTTP/2", "lower case", "four digits", "cut"],
)
def test_response_that_is_not_http_is_a_network_failure(client, serve, answer):
    """The URL is fine. Another service listens there, or one that wants TLS.

    libcurl takes a status line that it can't read for that of a 200.
    """
    server = serve(lambda connection, *_: connection.sendall(answer) or False)
    outcome = client.request(post(server.url))
    assert (outcome.status, outcome.cause, outcome.reached) == (None, Cause.NETWORK, True)
    assert re.match(r"127\.0\.0\.1:\d+ didn't send a valid HTTP response: ", outcome.message)


def test_chunked_response_with_trailers_is_complete(client, serve):
    def answer(connection, _head, _body):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Trailer: a\r\n\r\n")
        return True

    outcome = client.request(post(serve(answer).url))
    assert (outcome.ok, outcome.body) == (True, b"ok")


def test_reset_connection_is_a_network_failure(client, serve):
    def answer(connection, _head, _body):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    outcome = client.request(post(serve(answer).url))
    assert (outcome.cause, outcome.reached) == (Cause.NETWORK, True)


def test_endless_response_is_cut_and_its_status_counts(client, serve):
    sent = []

    def answer(connection, _head, _body):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"x" * 1_000_000)
            sent.append(1)
        return False

    outcome = client.request(post(serve(answer).url))
    assert (outcome.ok, outcome.status, outcome.truncated, len(outcome.body)) == (True, 200, True, 4096)
    assert len(sent) < 50


def test_endless_headers_are_a_network_failure(client, serve):
    def answer(connection, _head, _body):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for number in range(100_000):
            connection.sendall(b"X-%d: %s\r\n" % (number, b"x" * 100))
        return False

    assert client.request(post(serve(answer).url)).cause is Cause.NETWORK


@pytest.mark.parametrize(
    ("answer", "fault"),
    {
        "empty": (b"", "Empty reply from server"),
        "head": (b"HTTP/1.1 200 OK\r\nContent-Le", "the response headers were incomplete"),
        "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", "end of response with 1 bytes missing"),
        "chunk": (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n",
            "chunk hex-length char not a hex digit",
        ),
        "long header": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", "a response header is too long"),
        "interim": (b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000, "Too large response headers"),
    }.values(),
)
def test_what_is_wrong_with_a_response(client, serve, answer, fault):
    """Each message said that the connection was lost, and that a header that was too long was incomplete."""

    def send(connection, _head, _body):
        connection.sendall(answer)
        time.sleep(0.1)
        return False

    outcome = client.request(post(serve(send).url))
    assert (outcome.cause, outcome.reached) == (Cause.NETWORK, True)
    assert re.fullmatch(rf"127\.0\.0\.1:\d+ didn't send a complete response: {fault}.*\.", outcome.message)


def test_unknown_host_is_a_dns_failure(client):
    outcome = client.request(post("http://docora-test.invalid/"))
    assert (outcome.cause, outcome.reached) == (Cause.DNS, False)
    assert outcome.message == "Couldn't reach docora-test.invalid: DNS lookup failed."


def answering_once():
    """Answer the first request of each connection, and close the connection on the second."""
    known = []

    def answer(connection, head, body):
        if connection in known:
            return False
        known.append(connection)
        return saying()(connection, head, body)

    return answer


def test_request_is_not_resent_when_a_kept_connection_dies(client, serve):
    server = serve(answering_once())
    assert client.request(post(server.url)).ok
    outcome = client.request(post(server.url))
    assert (outcome.cause, outcome.reached, len(server.requests)) == (Cause.NETWORK, True, 2)


def test_repeatable_request_is_resent_when_a_kept_connection_dies(client, serve):
    server = serve(answering_once())
    assert client.request(post(server.url)).ok
    assert client.request(post(server.url, repeatable=True)).ok
    assert (len(server.requests), server.connections) == (3, 2)


def test_connection_that_cannot_be_replaced(client):
    """The message said that the server didn't respond within 30 s, although Docora only tried to connect."""
    waiting = []
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:

        def answer_once():
            connection, _ = listener.accept()
            saying()(connection, *read_request(connection))
            read_request(connection)
            for _ in range(3):  # the kernel ignores further connections
                waiting.append(socket.socket())
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(listener.getsockname())
            time.sleep(0.1)
            connection.close()

        thread = threading.Thread(target=answer_once)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert client.request(post(url)).ok
        outcome = client.request(post(url, connect_timeout=0.5, repeatable=True))
        thread.join()
    assert (outcome.cause, outcome.reached) == (Cause.TIMEOUT, True)
    assert outcome.message == f"Couldn't connect to {url[7:-1]} within 0.5 s."
    for connection in waiting:
        connection.close()


def test_poll_raises_an_exception_from_a_callback(client, serve, monkeypatch, capfd):
    def broken(*_):
        raise LookupError("a mistake in Docora")

    server = serve()
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "blocked_reason", broken)
        client.submit(post(server.url))
        with pytest.raises(LookupError, match="a mistake in Docora"):
            everything(client)
    [(_, outcome)] = client.poll(0)  # the outcome is not lost
    assert (outcome.ok, outcome.reached) == (False, False)
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "blocked_reason", broken)
        with pytest.raises(LookupError, match="a mistake in Docora"):
            client.request(post(server.url))
    assert client.request(post(server.url)).ok
    assert capfd.readouterr() == ("", "")


def test_close_cancels_requests(serve):
    client = HttpClient(LOOPBACK, allow_http=True)
    client.submit(post(serve().url))
    client.close()
    assert client.in_flight == 0
