"""`manage.py up`: everything starts, everything ends, and errors are clear."""

import contextlib
import io
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.utils import timezone

from docora.management.commands import up
from tests.support.commands import manage
from tests.support.instance import Instance, free_port
from tests.support.shared import copy


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Instance]:
    """An instance with one worker, for tests that leave it running. Those that kill a part of it come last."""
    instance = Instance(tmp_path_factory.mktemp("running"))
    instance.use_database(migrated_sqlite)
    instance.start("--workers", "1")
    yield instance
    instance.end()


def test_easy_password_of_the_first_administrator_is_refused(tmp_path: Path, migrated_sqlite: Path) -> None:
    copy(migrated_sqlite, tmp_path / "docora.sqlite3")
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path), "DOCORA_ENV_FILE": os.devnull}
    administrator = {"ADMIN_USERNAME": "anna", "ADMIN_PASSWORD": "password", "PORT": str(free_port())}
    done = manage("up", "--workers", "1", environment=environment | administrator)
    assert done.returncode == 1
    assert "ADMIN_PASSWORD is not accepted: This password is too common." in done.stderr
    assert "Traceback" not in done.stderr


def test_new_administrator_is_named_at_the_first_start_only(db, settings) -> None:
    settings.ADMIN_USERNAME, settings.ADMIN_PASSWORD = "anna", "a password that is long enough"
    banners = []
    for _ in range(2):
        command = up.Command(stdout=io.StringIO())
        command._prepare_database(migrate=True)
        command._print_sign_in()
        banners.append(command.stdout.getvalue())
    first, second = banners
    assert "User      anna\n  Password  the value of ADMIN_PASSWORD\n" in first
    assert settings.ADMIN_PASSWORD not in first
    assert "/admin/" in second
    assert "anna" not in second
    assert "createsuperuser" not in first + second


def test_address_is_printed_even_if_no_worker_starts(redis_client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "_BACKGROUND_SECONDS", 0.3)
    begun = time.monotonic()
    up._wait_for_background(timezone.now(), 1)
    assert 0.3 <= time.monotonic() - begun < 5


def test_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    instance = Instance(tmp_path)
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", instance.port))
        squatter.listen()
        result = instance.run("up", "--port", str(instance.port))
    assert result.returncode == 1
    assert result.stderr.strip() == (
        f"CommandError: Port {instance.port} on 127.0.0.1 is taken. Choose another one: --port {instance.port + 1}."
    )


def test_output_ends_with_the_address_and_the_command_for_a_first_administrator(running: Instance) -> None:
    banner = running.log.read_text().partition("Docora is running.")[2]
    assert f"Open  http://127.0.0.1:{running.port}/admin/" in banner
    assert "Create one in another terminal: .venv/bin/python manage.py createsuperuser" in banner
    assert "Password" not in banner


def test_doctor_finds_no_problem(running: Instance) -> None:
    result = running.run("doctor", "--offline")
    assert "PROBLEM" not in result.stdout
    assert "SQLite uses a write-ahead log" in result.stdout
    assert "1 worker is running" in result.stdout
    assert "WARNING  people: No account can sign in to the admin." in result.stdout
    assert (result.returncode, result.stderr) == (0, "")


def test_second_instance_on_a_data_directory_is_refused(running: Instance) -> None:
    result = running.run("up", "--port", str(free_port()))
    assert result.returncode == 1
    assert "Docora is already running with the data directory" in result.stderr


def test_endless_request_bodies_do_not_block_others(running: Instance) -> None:
    head = (
        f"POST /api/hooks/push/repo_1 HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nContent-Length: 9\r\n"
        f"X-Hub-Signature-256: sha256={'0' * 64}\r\n\r\n"
    )
    with contextlib.ExitStack() as connections:
        for _ in range(20):  # there are 16 threads
            one = connections.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            one.sendall(head.encode())
        with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/health", timeout=20) as answer:
            assert answer.status == 200


def test_requests_wait_while_the_web_process_is_restarted(running: Instance) -> None:
    """`up` keeps the socket."""
    [pid] = running.pids("docora.server.web ")
    os.kill(pid, signal.SIGKILL)
    running.wait_until(lambda: "web ended with 1; starting it again" in running.log.read_text(), 10)
    with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/health", timeout=40) as answer:
        assert answer.status == 200
    assert running.pids("docora.server.web ") != [pid]


def test_dead_child_is_restarted(running: Instance) -> None:
    # A work-horse looks the same and may be running the first jobs.
    running.wait_until(lambda: len(running.pids("rqworker")) == 1, 10)
    os.kill(running.pids("rqworker")[0], signal.SIGKILL)
    running.wait_until(lambda: "worker 1 ended with -9" in running.log.read_text(), 10)
    running.wait_until(lambda: len(running.pids("rqworker")) == 1, 10)


def test_ctrl_c_ends_everything(running: Instance) -> None:
    assert running.process
    assert len(running.family()) >= 5  # up, valkey, web, worker, sweep
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 0
    assert not running.family()
    assert "Traceback" not in running.log.read_text()
