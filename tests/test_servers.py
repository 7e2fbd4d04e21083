"""The tests' own servers keep their address over restarts and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer

PROJECT = Path(__file__).resolve().parent.parent

OWNER = """
import signal, sys, time
from pathlib import Path
from tests.support.postgres import PostgresServer
from tests.support.servers import ScratchFolder
from tests.support.valkey import ValkeyServer
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
scratch = ScratchFolder()
postgres, valkey = PostgresServer(scratch), ValkeyServer(scratch)
postgres.template = Path(sys.argv[1])
postgres.start()
valkey.start()
print(scratch.path, postgres.pid, valkey.pid, flush=True)
while True:
    time.sleep(0.1)  # signal.pause() would miss a signal that arrives just before it
"""


def wait_until(true: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_postgres_restart_keeps_address_and_rows(migrated_postgres: Path) -> None:
    server = PostgresServer()
    server.template = migrated_postgres  # saves it an initdb
    with server:
        with psycopg.connect(server.create_database("other, one")) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        server.restart()
        with psycopg.connect(server.url_of("other, one")) as connection:
            assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
        folder, pid = server.scratch.path, server.pid
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()


def test_valkey_restart_keeps_the_address_only() -> None:
    with ValkeyServer() as server:
        client: Redis = server.client()
        client.set("name", "value")
        server.restart()
        assert client.get("name") is None
        client.close()
        folder = server.scratch.path
    assert not folder.exists()


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_test_process_leaves_nothing_behind(sig: signal.Signals, migrated_postgres: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(migrated_postgres)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        folder, *pids = owner.stdout.readline().split()
        assert Path(folder).exists()
        owner.send_signal(sig)
        owner.wait(timeout=10)
    assert len(pids) == 2
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert wait_until(lambda: not Path(folder).exists())
