"""Keep the temporary files of the tests in memory. A run creates 170,000 files, which costs far more on a disk."""

import os
import shutil
import tempfile
from pathlib import Path

_FOLDER = Path("/dev/shm")
_NEEDED = 4 << 30  # bytes; a run uses about one gigabyte at most


def use_memory_for_temporary_files() -> None:
    """Use `/dev/shm` as the temporary folder of this process and its children, if it is large enough and allows programs.

    A `TMPDIR` that is already set stays. Docker's own `/dev/shm` is small, so there the disk is used.
    """
    if "TMPDIR" in os.environ or not _is_suitable():
        return
    os.environ["TMPDIR"] = str(_FOLDER)
    tempfile.tempdir = None  # pytest may have chosen one already


def _is_suitable() -> bool:
    try:
        can_run_programs = not os.statvfs(_FOLDER).f_flag & os.ST_NOEXEC
        free = min(shutil.disk_usage(_FOLDER).free, _available_memory())
    except OSError:
        return False
    return can_run_programs and os.access(_FOLDER, os.W_OK) and free >= _NEEDED


def _available_memory() -> int:
    """Return the bytes of memory that programs can still use."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
