"""All mirrors of this machine together: how much room they take, which were used last, and which have to go.

Every machine has its own, and its own workers see to them: after a job, one process at a time, at most once a minute.
Nobody is waited for: a mirror that is in use stays, and is looked at again the next time. One that has gone is fetched
anew when it is needed; the plan is made from the whole tree then, and what the rows know as delivered is not sent again.
"""

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import batched
from pathlib import Path

from django.conf import settings

from docora import file_locks
from docora.server.worker import stopping
from repositories_app.mirror.mirror import Mirror
from repositories_app.models import Repository

logger = logging.getLogger(__name__)

EVERY_SECONDS = 60.0
EMPTY_BYTES = 65536
"""What a disk with blocks of 4 KiB gives to a mirror beside its packs: a dozen and a half folders, locks and refs."""
_OURS = re.compile(r"([A-Za-z0-9_-]+)\.git\.(?:use|fetch)\.lock|(repo_\w+)\.git")
"""A mirror is known by its locks, which stand beside it whatever its id is like (an import brings ids of another making),
and one of an id of our own making by its name too."""
_IDS_AT_ONCE = 1000


@dataclass(frozen=True)
class Size:
    """Bytes on the disk, nearly, and how many mirrors they are."""

    bytes: int
    mirrors: int


@dataclass(frozen=True)
class Cached:
    """What lies in the folder under the name of one repository: `size` is 0 where that is only locks."""

    repository_id: str
    mirror: Mirror
    size: int
    used_at: float


def look_after() -> None:
    """Remove what nobody needs any more, and what was used least lately where all of it is too large. For the end of a
    job: it returns at once unless it is time for it and nobody else is at it."""
    folder = Path(settings.REPOS_DIR)
    if not _is_due(folder):
        return
    try:
        with file_locks.hold(folder / "mirrors.lock", shared=False, wait=False):
            if _is_due(folder):
                _write(folder, _tidy(folder))
    except BlockingIOError:
        return
    except OSError as error:
        logger.warning("mirrors_not_looked_after", extra={"cause": str(error)})


def measure() -> Size:
    """As they are now."""
    return _size_of(_found(Path(settings.REPOS_DIR)))


def last_measured() -> Size | None:
    """As they were when a worker of this machine last looked; None if none has."""
    try:
        return Size(**json.loads(_state(Path(settings.REPOS_DIR)).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _tidy(folder: Path) -> Size:
    found = _found(folder)
    watched = _watched(one.repository_id for one in found)
    kept = []
    for one in found:
        needed = one.size > 0 and one.repository_id in watched
        if needed or not one.mirror.remove(wait=False):
            kept.append(one)
        elif one.size:
            logger.info("mirror_removed", extra={"repository": one.repository_id, "bytes": one.size})
    return _size_of(_within(kept, settings.REPOS_MAX_BYTES))


def _within(mirrors: list[Cached], bound: int) -> list[Cached]:
    """Those that are left once no more than `bound` bytes are (0: any number), or as few as can be. One that is larger
    by itself goes first: it could not stay whatever else went."""
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
    """Nothing that is not known as a mirror is ever touched."""
    names = {match[1] or match[2] for path in folder.glob("*.git*") if (match := _OURS.fullmatch(path.name))}
    mirrors = [(name, Mirror(folder / f"{name}.git")) for name in sorted(names)]
    return [Cached(name, mirror, _room(mirror.directory), mirror.used_at()) for name, mirror in mirrors]


def _room(directory: Path) -> int:
    """Of its packs alone, beside which the rest is small: a look at one folder and not at all that is in it."""
    if not directory.exists():
        return 0
    with contextlib.suppress(FileNotFoundError), os.scandir(directory / "objects" / "pack") as packs:
        return EMPTY_BYTES + sum(pack.stat().st_size for pack in packs)
    return EMPTY_BYTES


def _size_of(mirrors: Iterable[Cached]) -> Size:
    sizes = [one.size for one in mirrors if one.size]
    return Size(sum(sizes), len(sizes))


def _watched(repository_ids: Iterable[str]) -> set[str]:
    """Those of them that the database still has."""
    found: set[str] = set()
    for some in batched(repository_ids, _IDS_AT_ONCE):
        found.update(Repository.objects.filter(repository_id__in=some).values_list("repository_id", flat=True))
    return found


def _state(folder: Path) -> Path:
    """What was last measured; its age says when."""
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
