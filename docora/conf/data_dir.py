"""The data directory: generated keys and the socket of the embedded Redis. Does not depend on the settings."""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import tempfile
from pathlib import Path
from urllib.parse import quote

from django.core.exceptions import ImproperlyConfigured

_MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is 108 with the final NUL
MAKE_KEY = 'python3 -c "import secrets; print(secrets.token_urlsafe(50))"'
_SECRET_KEY_BITS = 100


def is_weak_secret_key(key: str) -> bool:
    """Return whether a SECRET_KEY can be guessed: it looks typed by a person, or is Django's placeholder."""
    return key.startswith("django-insecure-") or max_entropy_bits(key) < _SECRET_KEY_BITS


def max_entropy_bits(key: str) -> float:
    """Return an upper bound of the key's entropy, from its length and its number of different characters.

    This detects keys that a person typed. It cannot prove that a key is random.
    """
    return len(key) * math.log2(max(1, len(set(key))))


def generated_key(directory: Path, name: str) -> str:
    """Return `secret_key` or `encryption_keys` of a data directory (`keys.json`, mode 0600), generated on first use.

    Several processes may start in an empty directory at once, so the file is written to a temporary name and then
    linked: the first process wins, and all of them read its keys.
    """
    path = directory / "keys.json"
    try:
        if not path.exists():
            _generate(path)
        return str(json.loads(path.read_text())[name])
    except OSError as error:
        raise ImproperlyConfigured(unusable(directory, error)) from None
    except (ValueError, KeyError, TypeError):
        raise ImproperlyConfigured(
            f"{path} is damaged. Restore it from your backup: without its keys, stored secrets cannot be read."
        ) from None


def _generate(path: Path) -> None:
    make_private(path.parent)
    keys = {"secret_key": secrets.token_urlsafe(50), "encryption_keys": secrets.token_urlsafe(32)}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".keys-")  # creates it with mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(keys, file)
            file.flush()
            os.fsync(file.fileno())  # so that a power failure cannot leave a file without keys
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()


def unusable(directory: Path, error: OSError) -> str:
    """Return the message for a data directory in which this process cannot read or write."""
    return f"DATA_DIR {directory} cannot be used: {reason_and_advice(error)}"


def reason_and_advice(error: OSError) -> str:
    """Return why a file cannot be written, and what to do, as sentences."""
    advice = ""
    match error.errno:
        case errno.EACCES | errno.EPERM:
            advice = " Run commands as Docora's user, which must own it and its files."
        case errno.ENOSPC | errno.EDQUOT:
            advice = " Free up space."
        case errno.EROFS:
            advice = " Mount it writable."
    return f"{error.strerror}.{advice}"


def make_private(directory: Path) -> None:
    """Create a folder with mode 0700, because it will hold sessions or private repositories. Don't change existing ones."""
    for folder in (*reversed(directory.parents), directory):  # with `parents=True`, parents would not get this mode
        folder.mkdir(mode=0o700, exist_ok=True)


def embedded_redis_socket(directory: Path) -> Path:
    """Return the socket path of the embedded Valkey.

    It is in the data directory. If that path is too long for a socket, it is in a private directory below the system's
    temporary directory, named after a hash of the data directory.
    """
    path = directory / "valkey.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"docora-{os.getuid()}-{digest}" / "valkey.sock"


def embedded_redis_url(directory: Path) -> str:
    return f"unix://{quote(str(embedded_redis_socket(directory)))}?db=0"
