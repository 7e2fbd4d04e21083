"""The reference client as a server: its hooks for tests, and its HTTP."""

import http.client
import socket
import threading

import pytest

from tests.deliveries.sender import APP, KEY, Sender, held, sha, signed
from tests.support.receiver import Answer, Receiver

# --- Hooks for tests --------------------------------------------------------------------------------------------------


def test_on_request_replaces_the_answer(receiver, sender):
    receiver.on_request = lambda notification: Answer(429, {"error": "slow"}, {"Retry-After": "3"})
    assert sender.send("a", "a") == 429
    assert (sender.headers["Retry-After"], held(receiver)) == ("3", {})
    receiver.on_request = lambda notification: Answer(503, process=True)
    assert sender.send("a", "a") == 503
    assert held(receiver) == {"a": b"a"}


def test_on_request_can_hang_up(receiver, sender):
    receiver.on_request = lambda notification: Answer(close=True)
    with pytest.raises(http.client.RemoteDisconnected):
        sender.send("a", "a")
    assert receiver.log[0].status == 0


def test_log_counts_concurrent_requests(receiver):
    barrier = threading.Barrier(3)
    receiver.on_request = lambda notification: barrier.wait(10) and None
    threads = [threading.Thread(target=Sender(receiver).send, args=(f"f{n}", "x")) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record.in_flight for record in receiver.log) == [1, 2, 3]
    receiver.on_request = None
    Sender(receiver).send("f", "x")
    assert receiver.log[-1].in_flight == 1


def test_log_size(tmp_path):
    with Receiver(tmp_path, KEY, log_size=2) as receiver:
        for number in range(3):
            Sender(receiver).send(f"f{number}", "x")
        assert [record.path for record in receiver.log] == ["f1", "f2"]


def test_stop_and_start(receiver, sender):
    assert sender.send("a", "a") == 200
    port = receiver.port
    receiver.stop()
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        sender.send("b", "b")
    sender.connection.close()
    with pytest.raises(ConnectionRefusedError):
        sender.send("b", "b")
    sender.connection.close()
    receiver.start()
    assert (receiver.port, sender.send("b", "b")) == (port, 200)
    assert held(receiver) == {"a": b"a", "b": b"b"}


def test_taken_port(receiver, tmp_path):
    with pytest.raises(OSError, match="in use"):
        Receiver(tmp_path, KEY, port=receiver.port).start()


# --- HTTP -------------------------------------------------------------------------------------------------------------


def test_answer_is_one_packet_on_a_persistent_connection(receiver):
    body = b'{"event":"ping","timestamp":"now"}'
    head = "".join(f"{name}: {value}\r\n" for name, value in signed(body).items())
    request = f"POST /ping HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection(("127.0.0.1", receiver.port)) as connection:
        for _ in range(20):
            connection.sendall(request)
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b'{"status": "pong"}')


def test_body_without_length_or_cut_short_is_not_processed(receiver):
    with socket.create_connection(("127.0.0.1", receiver.port)) as connection:
        connection.sendall(b"POST /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 411")
    with socket.create_connection(("127.0.0.1", receiver.port)) as connection:
        connection.sendall(b"POST /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{}")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536) == b""
    assert receiver.log == []


def test_concurrent_senders(receiver):
    def send(worker: int) -> None:
        sender = Sender(receiver)
        for number in range(30):
            assert sender.send(f"d{number % 3}/f{worker}-{number}", f"{worker} {number}", sequence=number + 1) == 200
        for number in range(0, 30, 2):
            assert sender.delete(f"d{number % 3}/f{worker}-{number}", sequence=100 + number) == 200

    threads = [threading.Thread(target=send, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {f"d{n % 3}/f{w}-{n}": f"{w} {n}".encode() for w in range(8) for n in range(1, 30, 2)}
    assert held(receiver) == expected
    assert receiver.copy(APP, "repo_1") == {path: sha(content) for path, content in expected.items()}
    assert len(receiver.log) == 8 * 45
