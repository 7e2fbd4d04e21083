"""Check what a commit's tree expands to, before it is listed.

Ten tree objects that name each other ten times each take a few hundred bytes, but list ten billion files. A tree may
also name another one with huge file names many times, and git keeps each copy in memory while it lists.
"""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass

from django.conf import settings

from docora.text import format_bytes
from repositories_app.git import errors as git_errors
from repositories_app.git.process import Tick
from repositories_app.mirror.blobs import BlobReader
from repositories_app.mirror.tree import DIRECTORY, canonical_mode, root_of, stored_entries

MAX_DEPTH = 2000  # nested folders; git itself lists at most 2,048
MAX_EXPANDED_BYTES = 1 << 30  # of tree objects; those of a million files take about 60 MB
_FILE_MODES = {b"100644", b"100755", b"120000", b"160000"}


@dataclass(frozen=True, slots=True)
class _Folder:
    """A tree object: the number of its own entries, its size in bytes, and how often it names which other trees."""

    entries: int
    size: int
    folders: Counter[str]


def check_extent(reader: BlobReader, commit: str, tick: Tick) -> None:
    """Raise `GitError` if the commit has more than `MAX_FILES` files and folders, nests them too deep, or lists too much.

    Reads each distinct tree object only once, so this takes no longer for a tree that expands to many files.
    """
    root = root_of(commit)
    trees = _read_trees(reader, root, len(commit) // 2, tick)
    entries, size = _expanded(trees, root)
    _check_count(entries)
    if size > MAX_EXPANDED_BYTES:
        text = (
            f"The repository's folders take {format_bytes(size)} to list. Use shorter names or fewer copies of folders."
        )
        raise git_errors.too_large(text)


def _check_count(entries: int) -> None:
    if entries > settings.MAX_FILES:
        raise git_errors.too_large(
            f"The repository has more than MAX_FILES ({settings.MAX_FILES:,}) files and folders. "
            "Split it, or ask an administrator to raise the limit."
        )


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        text = f"The repository has folders nested more than {MAX_DEPTH:,} levels deep. Flatten them."
        raise git_errors.too_large(text)


def _read_trees(reader: BlobReader, root: str, id_bytes: int, tick: Tick) -> dict[str, _Folder]:
    """Return the distinct trees below `root` by name. Reads level by level, and stops when there are too many."""
    trees: dict[str, _Folder] = {}
    level = [root]
    count = depth = 0
    while level:
        below: dict[str, None] = {}
        with closing(reader.trees(level)) as contents:
            for name, raw in zip(level, contents, strict=True):
                tick()
                trees[name] = folder = _folder(raw, id_bytes)
                count += folder.entries
                _check_count(count)
                below.update(dict.fromkeys(folder.folders))
        level = [name for name in below if name not in trees]
        depth += 1
        _check_depth(depth)
    return trees


def _folder(raw: bytes, id_bytes: int) -> _Folder:
    entries, folders = 0, Counter[str]()
    for mode, _, oid in stored_entries(raw, id_bytes):
        entries += 1
        if mode not in _FILE_MODES and canonical_mode(mode) == DIRECTORY:
            folders[oid.hex()] += 1
    return _Folder(entries, len(raw), folders)


def _expanded(trees: dict[str, _Folder], root: str) -> tuple[int, int]:
    """Return how many entries a recursive list of `root` has, folders included, and how many bytes of trees git reads for it."""
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    depths: dict[str, int] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        folders = trees[name].folders
        if name in counts:
            continue
        if unknown := [below for below in folders if below not in counts]:
            waiting += [name, *unknown]
            continue
        counts[name] = trees[name].entries + sum(times * counts[below] for below, times in folders.items())
        sizes[name] = trees[name].size + sum(times * sizes[below] for below, times in folders.items())
        depths[name] = 1 + max((depths[below] for below in folders), default=0)
        _check_depth(depths[name])
    return counts[root], sizes[root]
