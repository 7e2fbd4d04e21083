"""Commands behave the same under the nursery and under a shell."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import manage
from tests.support.nursery import MAX_PREPARED, PROJECT, Child, Nursery
from tests.support.nursery import nursery as shared
from tests.support.processes import is_alive
from tests.support.receiver import wait_for

COMMANDS = {
    "an answer": (["help", "--all"], {}),
    "a refusal": (["resynch"], {}),
    "a traceback": (["list_apps", "--traceback"], {"DATABASE_URL": "sqlite:////nowhere/at/all"}),
    "invalid settings": (["check"], {"LEASE_SECONDS": "soon"}),
    "other settings": (["shell", "--no-imports", "-c", "from django.conf import settings; print(settings.LEASE_SECONDS)"],
                       {"LEASE_SECONDS": "17"}),
    "its own process": (["shell", "--no-imports", "-c", "import os, sys; print(os.getcwd(), sys.path[0], sys.stdin.read(),"
                         "os.isatty(1), sorted(map(int, os.listdir('/proc/self/fd')))[:-1], sorted(os.environ))"], {}),
}  # fmt: skip


OWNER = """
import os, sys, time
from tests.support.nursery import nursery
null = open(os.devnull, "r+b")
child = nursery.start(["sweep"], os.environ, stdin=null, stdout=null, stderr=null)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


def without_frames(said: str) -> str:
    """Drop the frames of a traceback, since the first ones depend on what started the command."""
    before, traceback, after = said.partition("Traceback (most recent call last):\n")
    return before + traceback + "".join(after.splitlines(keepends=True)[-1:])


@pytest.mark.parametrize(("arguments", "settings"), COMMANDS.values(), ids=COMMANDS)
def test_output_and_status_equal_those_under_a_shell(arguments: list[str], settings: dict[str, str]) -> None:
    environment = os.environ | settings
    other = subprocess.run(
        [sys.executable, str(PROJECT / "manage.py"), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    done = manage(*arguments, environment=environment)
    assert (done.returncode, done.stdout) == (other.returncode, other.stdout)
    assert without_frames(done.stderr) == without_frames(other.stderr)


def test_child_reads_the_keys_of_its_data_directory(tmp_path: Path) -> None:
    """As they are when it starts: another child of this environment may have had others."""
    code = "from django.conf import settings; print(settings.SECRET_KEY)"
    for key in ("the-first-key-that-only-this-test-uses", "the-second-key-that-only-this-test-uses"):
        (tmp_path / "keys.json").write_text(json.dumps({"secret_key": key, "encryption_keys": "x" * 32}))
        environment = os.environ | {"DATA_DIR": str(tmp_path)}
        assert manage("shell", "--no-imports", "-c", code, environment=environment).stdout == f"{key}\n"


def start_sleep(nursery: Nursery) -> Child:
    code = "import time; print('ready', flush=True); time.sleep(600)"
    reader, writer = os.pipe()
    with open(os.devnull, "rb") as nothing, open(writer, "wb") as out:
        child = nursery.start(
            ["shell", "--no-imports", "-c", code], os.environ, stdin=nothing, stdout=out, stderr=sys.__stderr__.buffer
        )
    with open(reader, "rb") as lines:
        assert lines.readline() == b"ready\n"
    return child


def test_child_can_be_waited_for_and_ended() -> None:
    child = start_sleep(shared)
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.05)
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == child.returncode == -signal.SIGTERM
    child.kill()  # sends nothing, because the pid may belong to another process by now
    assert child.poll() == -signal.SIGTERM


def test_child_outlives_the_eviction_of_its_environment(nursery: Nursery) -> None:
    child = start_sleep(nursery)
    with open(os.devnull, "r+b") as null:
        for number in range(MAX_PREPARED + 1):
            other = os.environ | {"LEASE_SECONDS": str(20 + number)}
            again = [nursery.start(["version"], other, stdin=null, stdout=null, stderr=null) for _ in range(2)]
            assert [each.wait(20) for each in again] == [0, 0]
    assert child.poll() is None
    assert is_alive(child.pid)
    child.terminate()
    assert child.wait(20) == -signal.SIGTERM


def test_nursery_and_children_end_with_the_parent(nursery: Nursery, tmp_path: Path) -> None:
    child = start_sleep(nursery)
    nursery.close()
    assert child.wait(20) == -signal.SIGKILL

    process = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "pid")], cwd=PROJECT)
    pid = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), timeout=60))
    assert is_alive(pid)
    process.kill()
    process.wait(20)
    wait_for(lambda: not is_alive(pid), timeout=20)
