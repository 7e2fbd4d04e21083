"""Files that this process may not write, even if it is root's."""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

WITHOUT_OVERRIDE: Sequence[str] = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
"""What to put before a command so that its process obeys the modes of files."""

_libc = ctypes.CDLL(None, use_errno=True)
_VERSION_3, _DAC_OVERRIDE = 0x20080522, 1 << 1


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Make the file read-only for the calling thread, and for threads that it starts. Root's write it anyway otherwise."""
    mode = path.stat().st_mode
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    found, without = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    _call("capget", header, found)
    without[:] = found[:]
    without[0] &= ~_DAC_OVERRIDE  # of those in effect; it is still permitted
    path.chmod(0o400)
    _call("capset", header, without)
    try:
        yield
    finally:
        _call("capset", header, found)
        path.chmod(mode)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
