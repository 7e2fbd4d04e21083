"""The web process over real sockets: slow clients, large responses, shutdown, and HTTP."""

import contextlib
import http.client
import ipaddress
import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings as configured
from django.core.wsgi import get_wsgi_application

from docora.server.web import LIVENESS, READINESS, READINESS_THREADS, WebServer
from tests.support.receiver import wait_for
from tests.support.web import THREADS, WebProcess, everything, is_closed, request, wait_until_closed

MB = 1_000_000
type Start = Callable[..., WebProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start web processes with the given limits. Their logs must contain no traceback."""
    started: list[WebProcess] = []

    def start(**limits: float) -> WebProcess:
        started.append(WebProcess(**limits))
        return started[-1]

    yield start
    for web in started:
        assert "Traceback" not in web.close()


@pytest.fixture(scope="module")
def web() -> Iterator[WebProcess]:
    """A web process with the limits of production."""
    web = WebProcess()
    yield web
    assert "Traceback" not in web.close()


def median_answer(web: WebProcess, count: int = 9) -> float:
    return sorted(web.seconds_of("/") for _ in range(count))[count // 2]


def read_answer(connection: socket.socket) -> tuple[http.client.HTTPResponse, bytes]:
    """Read one response with its body, and nothing after it."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer, answer.read()


@contextlib.contextmanager
def connected(web: WebProcess, *requests: bytes, window: int = 0) -> Iterator[None]:
    """Keep a connection open for each of these requests, which the web process has accepted."""
    with contextlib.ExitStack() as stack:
        for sent in requests:
            stack.enter_context(web.connect(sent, window=window))
        wait_for(lambda: web.connections() == len(requests), 20)
        yield


# --- Slow clients ------------------------------------------------------------------------------------------------------


def test_300_connections_that_send_a_byte_a_minute(start: Start) -> None:
    """They use no thread and are closed at the deadline of a request, however many bytes they have sent."""
    web = start(request_seconds=4.0)
    starts = [b"", b"G", b"\r\n", request("/health")[:-2], request("/health", "POST", b"{}")[:-1]]
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(web.connect(starts[number % len(starts)])) for number in range(300)]
        assert median_answer(web) < 1
        assert web.connections() >= 300
        wait_until_closed(slow, 30)
        assert web.connections() == 0


def test_bytes_do_not_extend_the_deadline(start: Start) -> None:
    web = start(request_seconds=1.5)
    with web.connect() as partial, web.connect() as empty_lines:
        began = time.monotonic()
        for sent, connection in [(b"x", partial), (b"\r\n", empty_lines)]:
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < began + 20:
                    connection.sendall(sent)
                    time.sleep(0.1)
        assert time.monotonic() < began + 20


def test_deadline_restarts_with_each_request(start: Start) -> None:
    web = start(request_seconds=2.0)
    with web.connect() as connection:
        for _ in range(4):
            connection.sendall(request("/health", "POST", b"{}")[:-1])
            time.sleep(0.8)
            connection.sendall(b"}")
            answer, body = read_answer(connection)
            assert (answer.status, json.loads(body)["length"]) == (200, 2)


def test_slow_view_has_no_deadline(start: Start) -> None:
    """Neither have requests that wait for a thread, and clients before their next request."""
    web = start(request_seconds=1.0, unread_seconds=1.0)
    with contextlib.ExitStack() as stack:
        sent = [request("/sleep?n=3")] * THREADS + [request("/")]
        connections = [stack.enter_context(web.connect(one)) for one in sent]
        assert [read_answer(connection)[0].status for connection in connections] == [200] * (THREADS + 1)
        time.sleep(1)
        connections[0].sendall(request("/health"))
        assert read_answer(connections[0])[0].status == 200


@pytest.mark.early(5)
@pytest.mark.parametrize(("size", "patience"), [(12 * MB, 6.0), (60 * MB, 12.0)], ids=["12 MB", "60 MB"])
def test_20_clients_that_do_not_read_their_response(start: Start, size: int, patience: float) -> None:
    """There are more clients than threads. Their responses wait in files until the clients are closed."""
    web = start(unread_seconds=patience)
    with contextlib.ExitStack() as stack:
        asked = request(f"/bytes?n={size}")
        unread = [stack.enter_context(web.connect(asked, window=65536)) for _ in range(20)]
        assert len(unread) > THREADS
        began = time.monotonic()
        wait_for(lambda: web.seconds_of("/") < 1, 60)  # the answers are complete
        assert median_answer(web) < 1
        assert time.monotonic() < began + patience  # so no thread had to wait until a client was closed
        wait_for(lambda: web.connections() == 0, 60, 0.1)
        for connection in unread:
            assert 0 < len(everything(connection)) < size
    assert web.peak_memory() < 200 * MB


def test_responses_that_are_not_read_are_limited_in_all(start: Start) -> None:
    """They would fill the disk, or in containers the memory. A client that is owed nothing is not closed for them."""
    web = start(_MAX_BUFFERED=30 * MB)
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(web.connect())
        clients = []
        for _ in range(5):
            clients.append(stack.enter_context(web.connect(request(f"/bytes?n={12 * MB}", close=True), window=65536)))
            clients[-1].recv(1, socket.MSG_PEEK)
            time.sleep(0.2)  # until no more fits into the buffers of the sockets
        wait_for(lambda: web.connections() == 3, 20, 0.1)
        assert not is_closed(idle)
        assert [len(everything(client)) > 12 * MB for client in clients] == [False, False, False, True, True]


@pytest.mark.parametrize("missing", [1, 0])
def test_bodies_are_limited_in_all(start: Start, missing: int) -> None:
    """Anyone can send them, to any page. Each is kept until its last byte has arrived and the request has been answered."""
    web = start(_MAX_BUFFERED=30 * MB)
    with contextlib.ExitStack() as stack:
        sent = request("/sleep?n=30", "POST", b"x" * 12 * MB)
        clients = []
        for _ in range(5):
            clients.append(stack.enter_context(web.connect(sent[: len(sent) - missing])))
            time.sleep(0.2)
        wait_for(lambda: web.connections() == 2, 20, 0.1)
        assert [is_closed(client) for client in clients] == [True, True, True, False, False]
    assert web.peak_memory() < 100 * MB


def test_bodies_and_responses_take_little_memory(start: Start) -> None:
    """Kubernetes would end a web process that takes more than 512 MB, and anyone can open 1,000 connections."""
    web = start()
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(web.connect(request("/", "POST", b"x" * 500_000)[:-1]))
            stack.enter_context(web.connect(request("/bytes?n=900000"), window=4096))
        wait_for(lambda: web.connections() == 300, 20, 0.1)
        time.sleep(1)
    assert web.peak_memory() < 100 * MB


def test_threads_that_wait_for_clients_are_released(start: Start) -> None:
    """A thread waits if more than the high watermark is buffered, but not forever for a client that reads slowly or not at all."""
    web = start(_HIGH_WATERMARK=MB, unread_seconds=2.0)
    enough = threading.Event()

    def read_slowly(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while connection.recv(20_000) and not enough.wait(0.1):
                pass

    with contextlib.ExitStack() as stack:
        asked = request(f"/bytes?n={40 * MB}")
        clients = [stack.enter_context(web.connect(asked, window=65536)) for _ in range(THREADS)]
        reader = threading.Thread(target=read_slowly, args=clients[:1])
        reader.start()
        try:
            assert web.seconds_of("/") > 0.5  # no thread was free
            wait_for(lambda: web.connections() == 0, 30, 0.1)
        finally:
            enough.set()
            reader.join()


@pytest.mark.early(5)
def test_slow_reader_gets_everything(start: Start) -> None:
    web = start(unread_seconds=1.0)
    size = 5 * MB
    with web.connect(request(f"/bytes?n={size}", close=True), window=65536) as connection:
        received = 0
        while piece := connection.recv(50_000):
            received += len(piece)
            time.sleep(0.1)
    assert received > size


def test_disconnected_client_leaves_nothing_behind(start: Start) -> None:
    web = start()
    for sent in (request("/bytes?n=60000000"), request("/health", "POST", b"x" * MB)[: MB // 2]):
        web.connect(sent).close()
    wait_for(lambda: web.connections() == 0, 20)


def test_limit_of_open_files_is_raised(start: Start) -> None:
    """Each of the 1,000 connections may have temporary files, and many systems allow 1,024 open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))  # the web process inherits it
    try:
        web = start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(web.process.pid, resource.RLIMIT_NOFILE) == (min(4000, hard), hard)


# --- Probes -------------------------------------------------------------------------------------------------------------


def test_probes_respond_while_all_threads_are_busy(start: Start) -> None:
    web = start()
    with connected(web, *[request("/sleep?n=30")] * (2 * THREADS)):
        for path in (*sorted(LIVENESS), *sorted(READINESS)):
            assert web.seconds_of(path) < 1, path


def test_probes_find_a_connection_while_very_many_requests_wait(start: Start) -> None:
    """Requests that wait take connections, of which there are 1,000."""
    web = start()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(web.connect(request("/sleep?n=30"))) for _ in range(1010)]
        for path in (*sorted(LIVENESS), *sorted(READINESS)):
            assert web.seconds_of(path) < 3, path
        answer, body = read_answer(connections[-1])
    assert (answer.status, answer.getheader("Connection")) == (503, "close")
    error = json.loads(body)
    assert (error["code"], error["retryable"]) == ("unavailable", True)


def test_slow_readiness_does_not_delay_liveness(start: Start) -> None:
    web = start()
    with connected(web, *[request("/health/ready?sleep=30")] * 5):
        assert web.seconds_of("/health") < 1
        assert web.seconds_of("/") < 1


def test_probe_does_not_wait_for_the_probes_of_strangers(start: Start) -> None:
    """If probes were served in the order of arrival, the earlier ones would take 20 seconds."""
    web = start()
    with connected(web, *[request("/health/ready?sleep=1")] * 40):
        assert web.seconds_of("/health/web") < 8


@pytest.mark.parametrize("first", ["/health", "/health/ready"])
def test_threads_of_probes_serve_nothing_else(start: Start, first: str) -> None:
    """Requests on the same connection are given to threads one by one."""
    web = start()
    with connected(web, *[request(first) + request("/sleep?n=30") + request(first)] * THREADS):
        time.sleep(0.5)
        assert web.seconds_of(first) < 1


def test_probes_match_the_settings() -> None:
    assert {path.removeprefix("/") for path in LIVENESS | READINESS} == {*configured.PROBES, "metrics"}
    assert configured.WEB_THREADS + READINESS_THREADS == configured.WEB_CONNECTIONS


# --- Shutdown ----------------------------------------------------------------------------------------------------------


def test_shutdown_without_connections(start: Start) -> None:
    web = start()
    web.stop()
    assert web.process.wait(10) == 0


def test_shutdown_finishes_requests_and_responses(start: Start) -> None:
    web = start()
    size = 12 * MB
    with (
        web.connect(request("/health", "POST", b"{}")[:-1]) as partial,
        web.connect(request("/sleep?n=2")) as working,
        web.connect(request(f"/bytes?n={size}"), window=65536) as unflushed,
        web.connect() as accepted,
    ):
        wait_for(lambda: web.connections() == 4, 20)
        assert unflushed.recv(1)
        web.stop()
        time.sleep(0.3)
        accepted.sendall(request("/health"))
        time.sleep(1.2)
        assert web.process.poll() is None
        partial.sendall(b"}")
        for connection in (accepted, partial, working):
            answer = everything(connection)
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert b"\r\nConnection: close\r\n" in answer
        assert len(everything(unflushed)) > size
        assert web.process.wait(10) == 0


def test_shutdown_closes_idle_connections(start: Start) -> None:
    web = start(settle_seconds=0.5)
    with web.connect() as silent, web.connect(request("/health")) as kept:
        assert read_answer(kept)[0].status == 200
        wait_for(lambda: web.connections() == 2, 20)
        web.stop()
        assert web.process.wait(8) == 0
        assert everything(silent) == everything(kept) == b""


def test_shutdown_is_bounded(start: Start) -> None:
    web = start(drain_seconds=1.5)
    with connected(web, b"G", request(f"/bytes?n={12 * MB}"), request("/sleep?n=60"), window=65536):
        web.stop()
        assert web.process.wait(20) == 0


def test_shutdown_answers_waiting_connections(start: Start) -> None:
    """If no other process has the socket, closing it would reset them."""
    web = start()
    web.process.send_signal(signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(web.connect(request("/health"))) for _ in range(5)]
        web.listener.close()
        web.stop()
        web.process.send_signal(signal.SIGCONT)
        assert [everything(connection)[:15] for connection in waiting] == [b"HTTP/1.1 200 OK"] * 5
    assert web.process.wait(10) == 0


def test_shutdown_leaves_the_socket_to_other_processes(start: Start) -> None:
    web = start()
    with web.connect(b"G"):
        wait_for(lambda: web.connections() == 1, 20)
        web.stop()
        time.sleep(0.5)
        with web.connect(request("/health", close=True)) as later:
            time.sleep(1)
            with web.listener.accept()[0] as here:
                here.sendall(b"from another process")
            assert everything(later) == b"from another process"


# --- HTTP --------------------------------------------------------------------------------------------------------------


def test_keep_alive_and_pipelining(web: WebProcess) -> None:
    with web.connect(request("/one") + request("/two") + request("/three", close=True)) as connection:
        parts = everything(connection).split(b"HTTP/1.1 200 OK")[1:]
    assert [json.loads(part.partition(b"\r\n\r\n")[2])["PATH_INFO"] for part in parts] == ["/one", "/two", "/three"]


@pytest.mark.parametrize(("path", "answers"), [("/health", 2), ("/bytes?n=100000", 1)])
def test_head_has_no_body(web: WebProcess, path: str, answers: int) -> None:
    """A response without a length ends its connection."""
    with web.connect(request(path, "HEAD") + request(path, "HEAD", close=True)) as connection:
        parts = everything(connection).split(b"HTTP/1.1 200 OK")[1:]
    assert len(parts) == answers
    assert all(part.endswith(b"\r\n\r\n") and part.count(b"\r\n\r\n") == 1 for part in parts)
    assert all((b"\r\nContent-Length: " in part) == (path == "/health") for part in parts)


def test_chunked_body_arrives_whole(web: WebProcess) -> None:
    body = b"4\r\nwait\r\n3\r\nres\r\n0\r\n\r\n"
    sent = request("/", "POST", close=True, headers="Transfer-Encoding: chunked\r\n") + body
    with web.connect(sent) as connection:
        asked = json.loads(read_answer(connection)[1])
    assert (asked["length"], asked["CONTENT_LENGTH"]) == (7, "7")


@pytest.mark.parametrize(
    ("headers", "version"),
    [("Content-Length: 5\r\n", "1.1"), ("Content-Length: 0\r\n", "1.1"), ("", "1.0"), ("", "1.2")],
    ids=["two lengths", "no length", "HTTP/1.0", "HTTP/1.2"],
)
def test_body_without_one_clear_end_is_refused(web: WebProcess, headers: str, version: str) -> None:
    """A proxy that reads such a body differently would take a part of it for the next request, or the other way round."""
    chunked = f"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n{headers}"
    sent = request("/one", "POST", headers=chunked).replace(b"HTTP/1.1", f"HTTP/{version}".encode()) + b"0\r\n\r\n"
    with web.connect(sent + request("/two", close=True)) as connection:
        answered = everything(connection)
    assert [answered.count(text) for text in (b" 400 Bad Request", b"HTTP/", b"/two")] == [1, 1, 0]


def test_expect_100_continue(web: WebProcess) -> None:
    sent = request("/", "POST", b"{}", close=True, headers="Expect: 100-continue\r\n")
    with web.connect(sent[:-2]) as connection:
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(sent[-2:])
        assert json.loads(read_answer(connection)[1])["length"] == 2


@pytest.mark.parametrize(
    ("sent", "status"),
    [(request("/", "POST"), 200), (request("/", "POST", headers="Content-Length: 99999999\r\n"), 413)],
    ids=["no body", "large body"],
)
def test_expect_100_continue_without_a_body_to_wait_for(web: WebProcess, sent: bytes, status: int) -> None:
    """waitress would ask for the body and wait for it until the request's deadline."""
    with web.connect(sent[:-2] + b"Expect: 100-continue\r\n\r\n") as connection:
        assert read_answer(connection)[0].status == status


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"no request\r\n\r\n", 400, "invalid_request"),
        (request("/", headers="Content-Length: many\r\n"), 400, "invalid_request"),
        (request("/", "POST", headers="Content-Length: 99999999\r\n"), 413, "body_too_large"),
        (request("/", headers=f"X: {'x' * 70_000}\r\n"), 431, "invalid_request"),
        (request("/", "POST", headers="Transfer-Encoding: gzip\r\n"), 501, "invalid_request"),
    ],
    ids=["request line", "length", "large body", "large head", "encoding"],
)
def test_errors_have_the_format_of_the_api(web: WebProcess, sent: bytes, status: int, code: str) -> None:
    with web.connect(sent) as connection:
        answer, body = read_answer(connection)
    assert (answer.status, answer.getheader("Content-Type")) == (status, "application/json")
    error = json.loads(body)
    assert list(error) == ["error", "code", "retryable"]
    assert (error["code"], error["retryable"]) == (code, False)


def test_body_above_the_limit_of_all_calls(web: WebProcess) -> None:
    """The message names no limit: the server's is above that of every call, so keeping to it would not be enough."""
    with web.connect(request("/", "POST", headers="Content-Length: 99999999\r\n")) as connection:
        error = json.loads(read_answer(connection)[1])["error"]
    assert error == "The body is too large: see the limits of requests at /docs/api/"


def test_server_does_not_name_itself(web: WebProcess) -> None:
    with web.connect(request("/health")) as connection:
        assert read_answer(connection)[0].getheader("Server") is None


def test_forwarded_headers_reach_the_application(web: WebProcess) -> None:
    sent = request("/", close=True, headers="X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n")
    with web.connect(sent) as connection:
        asked = json.loads(read_answer(connection)[1])
    assert (asked["HTTP_X_FORWARDED_FOR"], asked["HTTP_X_FORWARDED_PROTO"]) == ("192.0.2.1", "https")
    assert (asked["REMOTE_ADDR"], asked["wsgi.url_scheme"]) == ("127.0.0.1", "http")


@contextlib.contextmanager
def serving_docora(sent: bytes) -> Iterator[socket.socket]:
    """Serve Docora itself from a thread, and connect with this request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        server = WebServer(get_wsgi_application(), listener, 1)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            with socket.create_connection(address, timeout=30) as connection:
                connection.sendall(sent)
                yield connection
        finally:
            server.stop()
            thread.join(20)


@pytest.mark.parametrize(("trusted", "status"), [("127.0.0.0/8", 200), ("10.0.0.0/8", 301)])
def test_x_forwarded_proto_counts_from_trusted_proxies_only(settings: Any, trusted: str, status: int) -> None:
    """Otherwise https would be redirected to https forever."""
    settings.SECURE_SSL_REDIRECT = True
    settings.TRUSTED_PROXIES = [ipaddress.ip_network(trusted)]
    sent = request("/openapi.json", close=True, headers="X-Forwarded-Proto: https\r\n")
    with serving_docora(sent) as connection:
        assert read_answer(connection)[0].status == status


BROWSER = "Accept: text/html,application/xhtml+xml;q=0.9\r\n"


@pytest.mark.parametrize(
    ("path", "headers", "status", "heading"),
    [
        ("/admin/", "Content-Length: 99999999\r\n", 413, "<h1>This is too large</h1>"),
        ("/admin/", "Transfer-Encoding: gzip\r\n", 501, "<h1>Not Implemented</h1>"),
        ("/admin/", "Content-Length: many\r\n", 400, "<h1>Bad Request</h1>"),
        ("http://[::1", "", 400, "<h1>Bad Request</h1>"),
        ("/admin/", f"X: {'x' * 70_000}\r\n", 431, ""),  # the headers were not read
        ("/api/repositories", "Content-Length: 99999999\r\n", 413, ""),
    ],
)
def test_errors_for_a_browser_are_pages(path: str, headers: str, status: int, heading: str) -> None:
    with serving_docora(request(path, "POST", headers=BROWSER + headers)) as connection:
        answer, body = read_answer(connection)
    assert answer.status == status
    if heading:
        assert answer.getheader("Content-Type") == "text/html; charset=utf-8"
        assert heading in body.decode()
        assert f'<p class="code">{status}</p>' in body.decode()
    else:
        assert answer.getheader("Content-Type") == "application/json"
