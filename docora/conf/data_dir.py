"""The data directory: generated keys, and the address of the embedded Redis.

The settings are made from it.
"""

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
from pathlib import Path
from urllib.parse import quote, urlsplit

from django.core.exceptions import ImproperlyConfigured

_MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is 108 with the final NUL


class Keys:
    """The keys of one data directory (`keys.json`, mode 0600), made on first use.

    Several processes may start in an empty directory at once: the file is written aside and linked into place, so the
    first one wins and every one reads the same keys. Nothing is created while both keys come from the environment.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "keys.json"
        self._loaded: dict[str, str] | None = None

    @property
    def secret_key(self) -> str:
        return self._load()["secret_key"]

    @property
    def encryption_keys(self) -> list[str]:
        return self._load()["encryption_keys"].split(",")

    def _load(self) -> dict[str, str]:
        if self._loaded is None:
            try:
                if not self._path.exists():
                    self._generate()
                self._loaded = json.loads(self._path.read_text())
            except OSError as error:
                raise ImproperlyConfigured(
                    f"DATA_DIR {self._path.parent} cannot be used: {error.strerror}. Commands run as Docora's user."
                ) from None
        return self._loaded

    def _generate(self) -> None:
        make_private(self._path.parent)
        keys = {"secret_key": secrets.token_urlsafe(50), "encryption_keys": secrets.token_urlsafe(32)}
        handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=".keys-")  # mkstemp: mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(keys, file)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, self._path)
        finally:
            Path(temporary).unlink()


def make_private(directory: Path) -> None:
    """Make a folder that only its owner may enter: it holds sessions, or what private repositories hold. One that is
    there already stays as whoever made it wants it."""
    for folder in (*reversed(directory.parents), directory):  # `parents=True` would make those above as the umask says
        folder.mkdir(mode=0o700, exist_ok=True)


def embedded_redis_socket(directory: Path) -> Path:
    """Where the embedded Valkey listens: in the data directory, or, where that path is too long for a socket, in a
    private directory below the system's temporary one that is named after it."""
    path = directory / "valkey.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"docora-{os.getuid()}-{digest}" / "valkey.sock"


def embedded_redis_url(directory: Path) -> str:
    return f"unix://{quote(str(embedded_redis_socket(directory)))}?db=0"


def is_redis_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"redis", "rediss", "unix"} and parts.port != 0
    except ValueError:  # the port is no number
        return False
