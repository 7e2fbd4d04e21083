"""What a commit's tree holds: all of its files, the entries at some paths, or the differences from another commit.

Tree objects are read by the `git cat-file` that also reads the contents, so no other process is started. They come from
strangers: a few of them that name each other many times list billions of files or empty folders, and a name may have
megabytes. Therefore everything is counted, and memory is bounded.
"""

import functools
import itertools
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from django.conf import settings

from docora.text import format_bytes
from repositories_app.git import errors as git_errors
from repositories_app.git.exceptions import Cause, GitError
from repositories_app.git.process import Tick
from repositories_app.mirror.blobs import MAX_TREE_BYTES, BlobReader, root_of

DIRECTORY, SYMLINK, SUBMODULE = "040000", "120000", "160000"
MAX_DEPTH = 2000  # nested folders
MAX_LISTED_BYTES = 4 << 30  # of paths; those of a million files take about 100 MB
MAX_OPEN_BYTES = 2 * MAX_TREE_BYTES  # of a folder and those that lead to it, which are in memory
MAX_DIFF_PATHS = 2000
MAX_DIFF_FOLDERS = 10_000
MAX_DIFF_BYTES = 1 << 20  # of those paths together
MAX_COMPARED_BYTES = 64 << 20  # of all tree objects that are compared
_MAX_PAIR_BYTES = 8 << 20  # of one folder in both commits, whose entries are in memory; about 100,000 files
_AT_ONCE = 400  # objects
_SIZES_KEPT = 10_000
_SMALL_TREE = 8192  # bytes; about two hundred files
_EMPTY_TREE = {
    40: "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    64: "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
"""Maps the number of digits of an object id to that of an empty tree, which git knows without reading it."""
_STORED = {size: re.compile(rb"([0-7]{1,10}) ([^\0]+)\0(.{%d})" % size, re.DOTALL) for size in (20, 32)}
"""Maps the length of an object id in bytes (SHA-1 or SHA-256) to the pattern of a tree object's entry.

git also reads a mode of megabytes, such as `000…0100644`. With it, a folder would be large although its paths are short.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a tree: `mode` as git writes it (`100644`, `100755`, `120000`, `160000`), `size` in bytes.

    Only `entries` returns directories (`040000`).
    """

    path: bytes
    mode: str
    blob: str
    size: int


type _Node = tuple[str, str]  # mode and object id
type Difference = tuple[Entry | None, Entry | None]
"""The entries of two commits at one path, before and after; None unless there is a file."""


def files(reader: BlobReader, commit: str, tick: Tick) -> Iterator[Entry]:
    """Yield the files, links and submodules of a commit in byte order of their paths. Call `tick` for each folder that is read.

    Raises `GitError` if an object cannot be read, if a tree is malformed, or if the commit has more than `MAX_FILES`
    files and folders, nests them too deep, or lists too much. Meanwhile, the reader may be used for something else.
    """
    folders = _Folders(reader, len(commit) // 2, tick)
    folders.enter(root_of(commit), b"")
    count = listed = 0
    while folders.stack:
        folder = folders.stack[-1]
        found = next(folder.entries, None)
        if found is None:
            folders.stack.pop()
            continue
        name, mode, oid, size = found
        path = folder.prefix + name
        count += 1
        listed += len(path)
        if count > settings.MAX_FILES:
            raise git_errors.too_large(
                f"The repository has more than MAX_FILES ({settings.MAX_FILES:,}) files and folders. "
                "Split it, or ask an administrator to raise the limit."
            )
        if listed > MAX_LISTED_BYTES:
            raise git_errors.explain(Cause.TOO_LARGE, f"its list of files exceeds {format_bytes(MAX_LISTED_BYTES)}")
        if mode == DIRECTORY:
            folders.enter(oid, path + b"/")
        else:
            yield Entry(path, mode, oid, size)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder that is being listed. `memory`: bytes that it and those that lead to it take."""

    prefix: bytes
    entries: Iterator[tuple[bytes, str, str, int]]  # name, mode, object id, size in bytes
    memory: int


class _Folders:
    """The folders from the root to the one that is being listed."""

    def __init__(self, reader: BlobReader, id_bytes: int, tick: Tick) -> None:
        self.stack: list[_Folder] = []
        self._reader = reader
        self._id_bytes = id_bytes
        self._tick = tick
        self._small: dict[str, bytes] = {}  # small trees that were read together, by object id
        self._sizes: dict[str, int] = {}  # by object id

    def enter(self, tree: str, prefix: bytes) -> None:
        """Begin to list a folder. Raises `GitError` if it is nested too deep or if the names on the way are too long."""
        self._tick()
        if len(self.stack) > MAX_DEPTH:  # with the root
            text = f"The repository has folders nested more than {MAX_DEPTH:,} levels deep. Flatten them."
            raise git_errors.too_large(text)
        raw = self._small.get(tree)
        if raw is None:
            [raw] = self._reader.trees([tree])
        memory = len(raw) + len(prefix) + (self.stack[-1].memory if self.stack else 0)
        if memory > MAX_OPEN_BYTES:
            text = f"The repository has nested folders whose names take {format_bytes(memory)}. Use shorter names."
            raise git_errors.too_large(text)
        self.stack.append(_Folder(prefix, self._entries(raw, prefix), memory))

    def _entries(self, raw: bytes, prefix: bytes) -> Iterator[tuple[bytes, str, str, int]]:
        for nodes in itertools.batched(_ordered(raw, prefix, self._id_bytes), _AT_ONCE):
            sizes = self._sizes_of([oid for _, mode, oid in nodes if mode != SUBMODULE])
            self._read_small([oid for _, mode, oid in nodes if mode == DIRECTORY and sizes[oid] <= _SMALL_TREE])
            for name, mode, oid in nodes:
                yield name, mode, oid, sizes[oid] if _has_size(mode) else 0

    def _sizes_of(self, oids: Sequence[str]) -> dict[str, int]:
        """Return object id → size. Those read last are not read again: one folder may be listed a hundred thousand times."""
        if len(self._sizes) > _SIZES_KEPT:
            self._sizes.clear()
        new = [oid for oid in dict.fromkeys(oids) if oid not in self._sizes]
        self._sizes.update(zip(new, self._reader.sizes(new), strict=True))
        return {oid: self._sizes[oid] for oid in oids}

    def _read_small(self, trees: Iterable[str]) -> None:
        """Read these trees together, to wait for git only once."""
        new = [tree for tree in dict.fromkeys(trees) if tree not in self._small]
        if len(self._small) + len(new) > 2 * _AT_ONCE:
            self._small.clear()
        with closing(self._reader.trees(new)) as contents:
            for tree, raw in zip(new, contents, strict=True):
                self._tick()
                self._small[tree] = raw


def entries(reader: BlobReader, commit: str, paths: Iterable[bytes]) -> dict[bytes, Entry]:
    """Return the commit's entries at exactly these paths, which may be folders. Paths without an entry are left out.

    Reads each folder once, level by level.
    """
    parts = {path: path.split(b"/") for path in paths}
    found: dict[bytes, _Node] = {}
    level = {root_of(commit): list(parts)} if parts else {}  # tree → the paths that lead through it
    depth = 0
    while level:
        below: dict[str, list[bytes]] = defaultdict(list)
        with closing(reader.trees(list(level))) as contents:
            for through, raw in zip(level.values(), contents, strict=True):
                named = _nodes_named(raw, {parts[path][depth] for path in through}, len(commit) // 2)
                for path in through:
                    node = named.get(parts[path][depth])
                    if node and len(parts[path]) == depth + 1:
                        found[path] = node
                    elif node and node[0] == DIRECTORY:
                        below[node[1]].append(path)
        level, depth = below, depth + 1
    sizes = _sizes(reader, found.values())
    return {path: _entry(path, node, sizes) for path, node in found.items()}


def _nodes_named(raw: bytes, names: set[bytes], id_bytes: int) -> dict[bytes, _Node]:
    """Return the nodes of a tree object that have these names, by name."""
    if len(names) == 1 and b" %b\0" % next(iter(names)) not in raw:
        return {}  # searching a large folder for one name takes a hundredth of the time of parsing it
    found: dict[bytes, _Node] = {}
    for mode, name, oid in stored_entries(raw, id_bytes):
        if name in names:
            found.setdefault(name, (canonical_mode(mode), oid.hex()))  # a tree made by hand may list a name twice
    return found


def differences(reader: BlobReader, base: str, commit: str, tick: Tick) -> dict[bytes, Difference] | None:
    """Return path → entries of both commits, for the files that differ. Return None if there is too much to compare.

    Reads each folder that differs once, level by level, and calls `tick` for each. Raises `GitError` as `files` does.
    """
    found: dict[bytes, tuple[_Node | None, _Node | None]] = {}
    nothing = _EMPTY_TREE[len(commit)]
    level = [(b"", root_of(base), root_of(commit))]  # a folder's prefix, and its trees before and after
    folders = listed = compared = 0
    while level:
        below = []
        with closing(reader.trees([tree for _, *trees in level for tree in trees])) as contents:
            for (prefix, *_), raws in zip(level, itertools.batched(contents, 2), strict=True):
                tick()
                size = sum(map(len, raws))
                compared += size
                if size > _MAX_PAIR_BYTES or compared > MAX_COMPARED_BYTES:
                    return None
                before, after = (
                    {name: (mode, oid) for name, mode, oid in _ordered(raw, prefix, len(commit) // 2)} for raw in raws
                )
                for name in {name for name, _ in before.items() ^ after.items()}:
                    path = prefix + name
                    listed += len(path)
                    nodes = before.get(name), after.get(name)
                    old, new = (None if node and node[0] == DIRECTORY else node for node in nodes)
                    if old or new:
                        found[path] = old, new
                    if (old, new) != nodes:
                        folders += 1
                        old_tree, new_tree = (node[1] if node and node[0] == DIRECTORY else nothing for node in nodes)
                        below.append((path + b"/", old_tree, new_tree))
                    if len(found) > MAX_DIFF_PATHS or folders > MAX_DIFF_FOLDERS or listed > MAX_DIFF_BYTES:
                        return None
        level = below
    sizes = _sizes(reader, [node for nodes in found.values() for node in nodes if node])
    return {
        path: (old and _entry(path, old, sizes), new and _entry(path, new, sizes))
        for path, (old, new) in sorted(found.items())
    }


def _ordered(raw: bytes, prefix: bytes, id_bytes: int) -> Iterator[tuple[bytes, str, str]]:
    """Yield name, mode and object id of each entry of a tree object.

    Raises `GitError` unless they are in git's order, have different names and no slashes. Therefore the paths of a commit
    are in order and differ, and `entries` finds each of them.
    """
    before = b""
    # Files whose names this entry's name begins with. A folder of a file's name is not always next to it: `a`, `a.b`, `a/`.
    files: list[bytes] = []
    for stored_mode, name, oid in stored_entries(raw, id_bytes):
        mode = canonical_mode(stored_mode)
        key = name + b"/" if mode == DIRECTORY else name
        while files and not name.startswith(files[-1]):
            files.pop()
        if key <= before or b"/" in name or (files and files[-1] == name):
            raise _malformed(prefix + name)
        before = key
        if mode != DIRECTORY:
            files.append(name)
        yield name, mode, oid.hex()


def _sizes(reader: BlobReader, nodes: Iterable[_Node]) -> dict[str, int]:
    """Return object id → size in bytes of those that are files or links."""
    oids = [oid for mode, oid in nodes if _has_size(mode)]
    return dict(zip(oids, reader.sizes(oids), strict=True))


def _entry(path: bytes, node: _Node, sizes: Mapping[str, int]) -> Entry:
    mode, oid = node
    return Entry(path, mode, oid, sizes[oid] if _has_size(mode) else 0)


def _has_size(mode: str) -> bool:
    return mode not in {DIRECTORY, SUBMODULE}


def stored_entries(raw: bytes, id_bytes: int) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield mode, name and object id of each entry of a tree object. Raises `GitError` where it is malformed."""
    position = 0
    while match := _STORED[id_bytes].match(raw, position):
        mode, name, oid = match.groups()
        yield mode, name, oid
        position = match.end()
    if position < len(raw):
        raise git_errors.explain(Cause.CORRUPT, "too-short tree object, or a malformed one")


@functools.lru_cache(maxsize=32)
def canonical_mode(mode: bytes) -> str:
    """Return the mode of a stored entry as git prints it, whatever its spelling."""
    number = int(mode, 8)
    if stat.S_ISREG(number):
        return "100755" if number & 0o100 else "100644"
    return DIRECTORY if stat.S_ISDIR(number) else SYMLINK if stat.S_ISLNK(number) else SUBMODULE


def _malformed(path: bytes) -> GitError:
    """Return the error for a tree that git would not write. It was made by hand and has no defined meaning."""
    problem = "is out of order, duplicated or has a slash in its name"
    message = f"its tree is malformed ({git_errors.quoted(path, '', 100)!r} {problem})"
    return git_errors.explain(Cause.OTHER, message)
