"""A small disk: a tmpfs that only one forked process sees and that disappears with it."""

import ctypes
import os
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_RDONLY, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 0x1, 0x20, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


def mount_small_disk(folder: Path, options: str) -> None:
    """Mount a tmpfs with these options (`size=1m`) over the folder, for this process only, which must have one thread.

    Raise OSError if the process may not mount.
    """
    folder.mkdir(parents=True, exist_ok=True)
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        _call("unshare", _CLONE_NEWNS)
    else:  # in its own user namespace it may mount
        _call("unshare", _CLONE_NEWNS | _CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    _call("mount", b"none", os.fsencode(folder), b"tmpfs", 0, options.encode())


def resize(folder: Path, options: str) -> None:
    """Make the disk larger or smaller."""
    _call("mount", b"none", os.fsencode(folder), b"tmpfs", _MS_REMOUNT, options.encode())


def make_read_only(folder: Path) -> None:
    """Remount the disk read-only, as the kernel does after an error of a real disk."""
    _call("mount", b"none", os.fsencode(folder), b"tmpfs", _MS_REMOUNT | _MS_RDONLY, None)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
