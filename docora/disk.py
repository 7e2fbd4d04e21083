"""Whether the disks with the mirrors and with temporary files can be written and have free space."""

import os
import shutil
import tempfile
from pathlib import Path

from django.conf import settings

from docora.conf.data_dir import make_private
from docora.text import format_bytes

MIN_FREE_BYTES, MIN_FREE_SHARE = 2**30, 0.1
"""Free space that a disk must have: the smaller of the two.

So a small disk can use most of its space, and a large one need not keep a tenth free.
"""


def problem() -> str:
    """Return what is wrong with a disk of this machine, and what to do, or an empty string."""
    folders = {"REPOS_DIR": settings.REPOS_DIR}
    for name, folder in (folders | temporary_folder(settings.REPOS_DIR)).items():
        if error := write_error(folder):
            return f"{name} is not writable ({error.strerror}): check its permissions, and that its disk is not full"
        disk = shutil.disk_usage(folder)
        if disk.free < free_bytes_needed(disk.total):
            return f"only {format_bytes(disk.free)} of disk space is left for {name}: free up space"
    return ""


def free_bytes_needed(total: int) -> float:
    """Return how many bytes must be free on a disk of `total` bytes."""
    return min(MIN_FREE_BYTES, MIN_FREE_SHARE * total)


def temporary_folder(*others: Path) -> dict[str, Path]:
    """Return the folder of temporary files as `{"TMPDIR": path}`, or nothing if it is on the same disk as one of the others.

    A sync spools its plan there, and the web process large bodies and responses. `tempfile.gettempdir()` skips a full folder,
    but processes that used it before still do.
    """
    folder = Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108  nothing is created under a fixed name
    disks = {other.stat().st_dev for other in others if other.exists()}
    return {"TMPDIR": folder} if folder.is_dir() and folder.stat().st_dev not in disks else {}


def write_error(directory: Path) -> OSError | None:
    """Return why a file can't be written, by writing one: permissions do not show that a disk is full or read-only."""
    try:
        make_private(directory)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        return error
    return None
