"""Keep this machine's mirrors within REPOS_MAX_BYTES: measure them, and remove those not needed or least recently used.

Workers do this after a sync, one process at a time and at most once a minute. A mirror that is in use is left for the
next time. A removed mirror is fetched again when it is needed. The sync then compares the whole tree with the rows, so
no delivered file is sent again.
"""

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from django.conf import settings

from docora import file_locks
from docora.process import stopping
from repositories_app.mirror.mirror import Mirror
from repositories_app.models import Repository

logger = logging.getLogger(__name__)

EVERY_SECONDS = 60.0
EMPTY_BYTES = 65536
"""The size of a mirror without its packs, on a disk with 4 KiB blocks: some 18 folders, locks and refs."""
_OURS = re.compile(r"([A-Za-z0-9_-]+)\.git\.(?:use|fetch)\.lock|(repo_\w+)\.git")
"""Names by which a mirror is recognised.

These are the locks beside it, because imported ids may have any form. If Docora generated the id, the mirror's own name is
enough.
"""


@dataclass(frozen=True)
class Size:
    """The approximate size of all mirrors on the disk in bytes, and their number."""

    bytes: int
    mirrors: int


@dataclass(frozen=True)
class Cached:
    """The files of one repository's mirror. `size` is 0 if there are only locks."""

    repository_id: str
    mirror: Mirror
    size: int
    used_at: float


def maintain() -> None:
    """Remove mirrors that are not needed, and the least recently used ones if all together are too large.

    Called at the end of each sync job. Does nothing if this was done or tried within the last minute, or another process is
    doing it.
    """
    folder = settings.REPOS_DIR
    if not _is_due(folder):
        return
    try:
        with file_locks.hold(folder / "mirrors.lock", shared=False, wait=False):
            if _is_due(folder):
                _write(folder, _tidy(folder))
    except BlockingIOError:
        return
    except OSError as error:
        logger.warning("mirror_upkeep_failed", extra={"cause": str(error)})
        with contextlib.suppress(OSError):  # works even on a full disk
            _state(folder).touch()


def measure() -> Size:
    """Measure the mirrors now."""
    return _size_of(_found(settings.REPOS_DIR))


def last_measured() -> Size | None:
    """Return the size that a worker of this machine last measured, or None."""
    try:
        return Size(**json.loads(_state(settings.REPOS_DIR).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _tidy(folder: Path) -> Size:
    found = _found(folder)
    ids = [one.repository_id for one in found]
    watched = Repository.objects.only("repository_id").in_bulk(ids, field_name="repository_id")
    kept = []
    for one in found:
        needed = one.size > 0 and one.repository_id in watched
        if needed or not one.mirror.remove(wait=False):
            kept.append(one)
        elif one.size:
            logger.info("mirror_removed", extra={"repository": one.repository_id, "bytes": one.size})
    return _size_of(_within(kept, settings.REPOS_MAX_BYTES))


def _within(mirrors: list[Cached], bound: int) -> list[Cached]:
    """Remove mirrors until the others take at most `bound` bytes (0: no bound), and return those that remain.

    A mirror that is larger than the bound on its own goes first, because it could not stay anyway.
    """
    kept = []
    total = sum(one.size for one in mirrors)
    for one in sorted(mirrors, key=lambda one: (one.size <= bound, one.used_at)):
        if not bound or total <= bound or stopping() or not one.mirror.remove(wait=False):
            kept.append(one)
            continue
        total -= one.size
        fields = {"repository": one.repository_id, "bytes": one.size, "bound": bound}
        if one.size > bound:
            logger.warning("mirror_larger_than_bound", extra=fields)
        else:
            logger.info("mirror_evicted", extra=fields)
    return kept


def _found(folder: Path) -> list[Cached]:
    """Return the mirrors in the folder. Files that are not recognised as mirrors are never touched."""
    names = {match[1] or match[2] for path in folder.glob("*.git*") if (match := _OURS.fullmatch(path.name))}
    mirrors = [(name, Mirror(folder / f"{name}.git")) for name in sorted(names)]
    return [Cached(name, mirror, _disk_size(mirror.directory), mirror.used_at()) for name, mirror in mirrors]


def _disk_size(directory: Path) -> int:
    """Return the size of a mirror's packs plus a constant for the rest, which is small. Reads one folder only."""
    if not directory.is_dir():
        return 0
    with contextlib.suppress(FileNotFoundError), os.scandir(directory / "objects" / "pack") as packs:
        return EMPTY_BYTES + sum(pack.stat().st_size for pack in packs)
    return EMPTY_BYTES


def _size_of(mirrors: Iterable[Cached]) -> Size:
    sizes = [one.size for one in mirrors if one.size]
    return Size(sum(sizes), len(sizes))


def _state(folder: Path) -> Path:
    """Return the file with the last measurement. Its age says when that was."""
    return folder / "mirrors.json"


def _is_due(folder: Path) -> bool:
    try:
        return not 0 <= time.time() - _state(folder).stat().st_mtime < EVERY_SECONDS
    except OSError:
        return folder.is_dir()


def _write(folder: Path, size: Size) -> None:
    new = _state(folder).with_suffix(".new")
    new.write_text(json.dumps(asdict(size)))
    new.replace(_state(folder))
