"""The embedded server: the system's own if there is one on PATH, otherwise the bundled one."""

import contextlib
import subprocess
import time
from pathlib import Path

import pytest
from django.core.management.base import CommandError
from redis import Redis
from redis.exceptions import RedisError

from docora.conf.data_dir import embedded_redis_socket, embedded_redis_url
from docora.server.valkey import bundled_server, valkey_command
from tests.support.valkey import ValkeyServer


@pytest.mark.parametrize(
    ("on_path", "expected", "folder"),
    [
        ([], None, "valkey"),
        (["redis-server"], "redis-server", "redis-server"),
        (["redis-server", "valkey-server"], "valkey-server", "valkey-server"),
    ],
)
def test_choice_of_server(
    on_path: list[str], expected: str | None, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, data = tmp_path / "bin", tmp_path / "data"
    programs.mkdir()
    for name in on_path:
        (programs / name).symlink_to(bundled_server())
    monkeypatch.setenv("PATH", str(programs))
    binary = programs / expected if expected else bundled_server()
    assert ValkeyServer().command()[0] == str(binary)

    command = valkey_command(data)
    assert command[0] == str(binary)
    server = subprocess.Popen(command)
    try:
        assert ping(embedded_redis_url(data))
        assert (data / folder / "appendonlydir").is_dir()
        assert (data / folder).stat().st_mode & 0o077 == 0
    finally:
        server.terminate()
        server.wait(10)


def test_folder_of_the_socket_must_not_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner, another user of the temporary folder, could later point it to a server of their own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data, mine = tmp_path / ("d" * 100), tmp_path / "mine"
    mine.mkdir(mode=0o700)
    embedded_redis_socket(data).parent.symlink_to(mine)
    with pytest.raises(CommandError, match="is a link or belongs to another user"):
        valkey_command(data)


def ping(url: str) -> bool:
    deadline = time.monotonic() + 20
    with Redis.from_url(url) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(RedisError):
                return bool(client.ping())
            time.sleep(0.05)
    return False
