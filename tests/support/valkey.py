"""A real Valkey or Redis server for the tests: the same binary that `manage.py up` would start."""

import contextlib
import os
import signal
from collections.abc import Iterator

from redis import Redis
from redis.exceptions import RedisError

from docora.server.valkey import bundled_server, server_on_path
from tests.support.receiver import wait_for
from tests.support.servers import ScratchFolder, Server

_PORT = 6379  # free, because no other process uses the address


class ValkeyServer(Server):
    """Listens on a Unix socket in a private folder, and writes nothing to disk."""

    name = "valkey"
    stop_signal = signal.SIGTERM
    death_signal = signal.SIGKILL

    def __init__(self, scratch: ScratchFolder | None = None) -> None:
        super().__init__(scratch)
        self.socket = self.folder / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}?db=0"

    def client(self) -> "Redis":
        """Return a new client that returns bytes. Closing it is optional."""
        return Redis.from_url(self.url)

    @contextlib.contextmanager
    def listening_at(self, address: str) -> Iterator[str]:
        """Listen at this address too, without authentication. Yield the URL for other machines."""
        with self.client() as client:
            client.config_set("protected-mode", "no")
            client.config_set("bind", address)
            client.config_set("port", _PORT)
            try:
                yield f"redis://{address}:{_PORT}/0"
            finally:
                client.config_set("port", 0)

    @contextlib.contextmanager
    def refusing_writes(self) -> Iterator[None]:
        """Refuse every write, as on a full disk. Reads still work, and nothing is lost."""
        with self.client() as client:
            client.config_set("min-replicas-to-write", 1)
            try:
                yield
            finally:
                client.config_set("min-replicas-to-write", 0)

    @contextlib.contextmanager
    def unable_to_save(self) -> Iterator[None]:
        """Refuse every write, and pings too, as a server does that can't write its snapshot to its disk."""
        in_the_way = self.folder / "dump.rdb"
        in_the_way.mkdir()
        with self.client() as client:
            client.config_set("save", "3600 1")
            client.bgsave()
            wait_for(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 10)
            try:
                yield
            finally:
                client.config_set("save", "")
                in_the_way.rmdir()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Accept connections, but respond to nothing."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "dir": str(self.folder),
            "daemonize": "no",
        }
        binary = server_on_path() or bundled_server()
        return [str(binary), *(part for name, value in options.items() for part in (f"--{name}", value))]

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except RedisError:
            return False
