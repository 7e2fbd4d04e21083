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
from django.conf import settings
from django.utils import timezone
from redis.exceptions import AuthenticationError

from docora.management.commands import up
from docora.redis.connection import RedisError, connection
from docora.server.supervisor import Child, Supervisor, listening_socket
from docora.server.valkey import storage_of
from tests.docora.test_docs import text_of
from tests.support.commands import manage
from tests.support.instance import Instance, free_port
from tests.support.processes import forked, reap
from tests.support.receiver import wait_for
from tests.support.shared import copy
from tests.support.staff import make_app
from tests.support.valkey import ValkeyServer


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    instance = Instance(tmp_path)
    yield instance
    instance.end()


@pytest.fixture
def clear_redis_connection() -> Iterator[None]:
    """Read REDIS_URL again, before and after the test."""
    connection.cache_clear()
    yield
    connection.cache_clear()


@pytest.fixture(scope="module")
def shared_instance(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Instance]:
    instance = Instance(tmp_path_factory.mktemp("running"))
    instance.use_database(migrated_sqlite)
    yield instance
    instance.end()


@pytest.fixture
def running(shared_instance: Instance) -> Instance:
    """An instance with one worker, for tests that leave it running. Those that kill it or a part of it come last."""
    if not shared_instance.process or shared_instance.process.poll() is not None:
        shared_instance.start("--workers", "1")
    return shared_instance


def test_weak_password_of_the_first_administrator_is_refused(tmp_path: Path, migrated_sqlite: Path) -> None:
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


@pytest.mark.parametrize("in_settings", [False, True], ids=["keys.json", "ENCRYPTION_KEYS"])
def test_lost_encryption_key_is_named(db, settings, monkeypatch: pytest.MonkeyPatch, in_settings: bool) -> None:
    """A lost `keys.json` is generated anew, and nothing else would say so before the first sync."""
    monkeypatch.setenv("ENCRYPTION_KEYS", "x" * 32 if in_settings else "")
    make_app("Portal")
    outputs = []
    for keys in (settings.ENCRYPTION_KEYS, ["another key, which was generated"]):
        settings.ENCRYPTION_KEYS = keys
        command = up.Command(stderr=io.StringIO())
        command._prepare_database(migrate=True)
        outputs.append(command.stderr.getvalue())
    source = "ENCRYPTION_KEYS" if in_settings else f"{settings.DATA_DIR}/keys.json"
    assert outputs == [
        "",
        f"Stored secrets can't be decrypted with {source}, so syncs that need them fail. If its keys were lost, stop Docora and "
        "restore them. manage.py doctor lists these secrets.\n",
    ]


def test_demo_is_not_added_to_an_instance_with_data_of_its_own(instance: Instance, migrated_sqlite: Path) -> None:
    instance.use_database(migrated_sqlite)
    assert instance.run("onboard_app", "Search", "https://search.example", "ops@search.example").returncode == 0
    done = instance.run("up", "--demo", "--port", str(instance.port), "--workers", "1")
    assert done.returncode == 1
    assert "This instance already has apps, which the demo would be mixed with. Run it in" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (instance.directory / "data" / "demo").exists()


def test_all_processes_together_take_at_most_60_connections(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYNCS_PER_WORKER", raising=False)
    for workers in range(1, 17):
        threads = int(up._worker_environment(workers)["SYNCS_PER_WORKER"])
        assert 2 <= threads <= settings.SYNCS_PER_WORKER
        assert settings.WEB_CONNECTIONS + workers * threads + 2 <= 60
    monkeypatch.setenv("SYNCS_PER_WORKER", "30")
    assert up._worker_environment(1) == {}


def test_address_is_printed_even_if_no_worker_starts(redis_client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "_BACKGROUND_SECONDS", 0.3)
    begun = time.monotonic()
    up._wait_for_background(timezone.now(), 1)
    assert 0.3 <= time.monotonic() - begun < 5


def test_port_in_use_is_a_clear_error(instance: Instance) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", instance.port))
        squatter.listen()
        result = instance.run("up", "--port", str(instance.port))
    assert result.returncode == 1
    assert result.stderr.strip() == (
        f"CommandError: Port {instance.port} on 127.0.0.1 is taken. Choose another one: --port {instance.port + 1}."
    )


def test_address_of_another_machine_is_a_clear_error(instance: Instance) -> None:
    result = instance.run("up", "--port", str(instance.port), "--host", "192.0.2.1")
    assert (result.returncode, result.stderr) == (
        1,
        f"CommandError: Docora cannot listen on 192.0.2.1, port {instance.port}: Cannot assign requested address. "
        "Check HOST and PORT.\n",
    )


def test_child_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """As when memory is short, or while an upgrade replaces the files."""
    reports: list[str] = []
    supervisor, program = Supervisor(reports.append), tmp_path / "program"
    program.symlink_to("/bin/false")
    child = Child("web", [str(program)], restart_delay=0.1)
    supervisor.add(child)
    assert child.process
    assert child.process.wait(10) == 1
    program.unlink()
    deadline = time.monotonic() + 10
    while len(reports) < 4:  # each time that it has ended, and that it could not be started
        supervisor._restart(child)
        assert time.monotonic() < deadline, reports
    assert reports[:3] == [
        "web ended with 1; starting it again in 0.1 s",
        "web cannot be started: No such file or directory",
        "web ended with 1; starting it again in 0.2 s",
    ]


def test_full_log_disk_does_not_end_up() -> None:
    """The first worker that ended took all others and the web process with it."""
    with Path("/dev/full").open("wb", buffering=0) as log:
        supervisor = Supervisor(lambda line: log.write(line.encode()))
        child = Child("web", ["/bin/true"], restart_delay=0.0)
        supervisor.add(child)
        for _ in range(2):
            assert child.process
            child.process.wait(10)
            supervisor._restart(child)
        assert child.restart_at is None  # it was started again
        supervisor.stop()


def test_delay_of_an_earlier_crash_loop_is_forgotten() -> None:
    reports: list[str] = []
    supervisor = Supervisor(reports.append)
    child = Child("web", ["/bin/true"], restart_delay=15.0)
    supervisor.add(child)
    assert child.process
    child.process.wait(10)
    supervisor._restart(child)
    assert child.restart_delay == 15.0  # the longest
    child.started, child.restart_at = child.started - 3600, None
    supervisor._restart(child)
    assert reports == [f"web ended with 0; starting it again in {seconds} s" for seconds in ("15", "0.5")]


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN], ids=["in a terminal", "with nohup"])
def test_closing_the_terminal(tmp_path: Path, handler: signal.Handlers) -> None:
    watches = tmp_path / "watches"

    def run() -> None:
        signal.signal(signal.SIGHUP, handler)
        supervisor = Supervisor(lambda _: watches.touch())
        supervisor.add(Child("web", ["/bin/true"]))
        supervisor.watch()
        supervisor.stop()

    process = forked(run)
    wait_for(watches.exists)
    os.kill(process, signal.SIGHUP)
    if handler is signal.SIG_IGN:
        time.sleep(0.5)
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        os.kill(process, signal.SIGTERM)
    assert reap(process) == 0


def test_host_may_be_an_ipv6_address(settings) -> None:
    settings.HOST, settings.PORT = "::1", 0
    with listening_socket() as listener:
        assert listener.getsockname()[0] == "::1"


def test_redis_that_is_down_is_reported_once(
    settings, monkeypatch: pytest.MonkeyPatch, clear_redis_connection: None
) -> None:
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    monkeypatch.setattr(up, "READY_SECONDS", 0.5)
    reports: list[str] = []
    with pytest.raises(RedisError):
        up._wait_for_redis(None, reports.append)
    [report] = reports
    assert report.startswith("Waiting for Redis: Error 111 connecting to 127.0.0.1:")
    assert report.endswith(". Check REDIS_URL.")


def test_wrong_redis_password_ends_the_start_at_once(
    settings, clear_redis_connection: None, valkey_server: ValkeyServer
) -> None:
    settings.REDIS_URL = valkey_server.url.replace("://", "://docora:wrong@")
    reports: list[str] = []
    with pytest.raises(AuthenticationError):
        up._wait_for_redis(None, reports.append)
    assert reports == []


def test_children_end_in_order_and_new_clients_are_refused_meanwhile(tmp_path: Path) -> None:
    order = tmp_path / "order"
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()

    def shell(name: str) -> list[str]:
        on_term = f"sleep 0.3; echo {name} >> {order}; exit"
        return ["/bin/sh", "-c", f"trap '{on_term}' TERM; touch {order}.{name}; while :; do sleep 0.1; done"]

    supervisor = Supervisor(lambda _: None)
    supervisor.add(Child("web", shell("web"), listener=listener))
    supervisor.add(Child("valkey", shell("valkey"), ends_last=True))
    wait_for(lambda: all(order.with_name(f"order.{name}").exists() for name in ("web", "valkey")), 10)
    supervisor.stop()
    assert order.read_text().split() == ["web", "valkey"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 1)


def test_damaged_files_of_valkey_are_a_clear_error(instance: Instance) -> None:
    folder = storage_of(instance.directory / "data")
    manifest = folder / "appendonlydir" / "appendonly.aof.manifest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("damaged")
    result = instance.run("up", "--port", str(instance.port))
    assert result.returncode == 1
    assert result.stderr.startswith(f"CommandError: The embedded Valkey ended. {folder}/valkey.log says why. ")
    assert "FATAL" in (folder / "valkey.log").read_text()


def test_unusable_data_directory_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    keys = {"SECRET_KEY": "a-key-that-only-the-tests-of-the-start-use-0123456", "ENCRYPTION_KEYS": "y" * 32}
    data = {"DATA_DIR": f"{tmp_path}/data", "DATABASE_URL": f"sqlite:///{tmp_path}/db", "PORT": str(free_port())}
    done = manage("up", environment={"PATH": os.environ["PATH"], "DOCORA_ENV_FILE": os.devnull} | keys | data)
    assert (done.returncode, done.stderr) == (
        1,
        f"CommandError: DATA_DIR {tmp_path}/data cannot be used: File exists.\n",
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
    folder = running.directory / "data"
    advice = "Stop it, or choose another one with --data."
    assert f"Docora is already running with the data directory {folder}. {advice}" in result.stderr


def test_unfinished_request_bodies_do_not_block_others(running: Instance) -> None:
    head = (
        f"POST /api/hooks/push/repo_1 HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nContent-Length: 9\r\n"
        f"X-Hub-Signature-256: sha256={'0' * 64}\r\n\r\n"
    )
    with contextlib.ExitStack() as connections:
        for _ in range(settings.WEB_THREADS + 4):
            one = connections.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            one.sendall(head.encode())
        with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/health", timeout=20) as answer:
            assert answer.status == 200


def test_requests_wait_while_the_web_process_is_restarted(running: Instance) -> None:
    """`up` keeps the socket."""
    [pid] = running.pids("docora.server.web ")
    os.kill(pid, signal.SIGKILL)
    running.wait_until(lambda: "web ended with 1; starting it again in 0.5 s" in running.log.read_text(), 10)
    with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/health", timeout=40) as answer:
        assert answer.status == 200
    assert running.pids("docora.server.web ") != [pid]


def test_dead_child_is_restarted(running: Instance) -> None:
    # A work-horse looks the same and may be running the first jobs.
    running.wait_until(lambda: len(running.pids("rqworker")) == 1, 10)
    os.kill(running.pids("rqworker")[0], signal.SIGKILL)
    line = "worker 1 ended with -9; starting it again in 0.5 s"
    running.wait_until(lambda: line in running.log.read_text().splitlines(), 10)
    assert f"is plain text: {line}," in text_of("/docs/operations/")
    running.wait_until(lambda: len(running.pids("rqworker")) == 1, 10)


def test_ctrl_c_ends_everything(running: Instance) -> None:
    assert running.process
    assert len(running.family()) >= 5  # up, valkey, web, worker, sweep
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 0
    assert not running.family()
    assert "Traceback" not in running.log.read_text()
