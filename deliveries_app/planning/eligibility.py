"""What of a tree is sent, and why the rest is not. Everything else is sent as the commit holds it.

| cause | what | listed by path |
|---|---|---|
| `ignored` | matched by `.docoraignore` or the watch's patterns | no, counted |
| `symlink`, `submodule`, `other` | not a regular file: a link may point anywhere, a submodule is another repository | yes |
| `path_too_long`, `not_utf8` | more than 1,024 bytes; no UTF-8, which JSON cannot carry | yes |
| `unsafe_path` | would lead a client astray that writes files where paths say, see `paths` | yes |
| `too_large` | more than `MAX_FILE_BYTES` | yes |
| `transform`, `collision` | dropped by `FILE_TRANSFORMS`; given a path that another file has | no, yes |

A Git LFS pointer is sent, because the pointer is what the commit holds; its row is remarked and counted as `lfs_pointer`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from deliveries_app.planning.paths import MAX_PATH_BYTES, is_unsafe
from repositories_app.mirror.mirror import Entry

REGULAR = {"100644", "100755", "100664"}
UNLISTED = {"ignored", "transform"}
"""Causes that are counted only: what the owner or the administrator wants left out may be most of the tree."""
REMARKS = {"lfs_pointer"}
"""Counted beside the causes, though such files are sent."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
_LFS_POINTER_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Skipped:
    """A path that is not sent, and why."""

    path: bytes
    cause: str
    message: str


def eligible(
    entries: Iterable[Entry],
    max_file_bytes: int,
    ignores: Callable[[Entry], bool] | None,
    skip: Callable[[Skipped], None],
) -> Iterator[Entry]:
    """The entries that are sent; `skip` is told of the others."""
    for entry in entries:
        skipped = reason_to_skip(entry, max_file_bytes, ignores)
        if skipped:
            skip(skipped)
        else:
            yield entry


def reason_to_skip(entry: Entry, max_file_bytes: int, ignores: Callable[[Entry], bool] | None = None) -> Skipped | None:
    """Why a tree entry is not sent, None for one that is."""
    if ignores and len(entry.path) <= MAX_PATH_BYTES and ignores(entry):
        return Skipped(entry.path, "ignored", "Ignored.")
    if entry.mode == "120000":
        return Skipped(entry.path, "symlink", "Symbolic links are not sent.")
    if entry.mode == "160000":
        return Skipped(entry.path, "submodule", "Submodules are not sent; watch their repository instead.")
    if entry.mode not in REGULAR:
        return Skipped(entry.path, "other", f"Entries of mode {entry.mode} are not sent.")
    if entry.size > max_file_bytes:
        return too_large(entry.path, entry.size, max_file_bytes)
    return reason_by_path(entry.path)


def reason_by_path(path: bytes) -> Skipped | None:
    if len(path) > MAX_PATH_BYTES:
        return Skipped(path, "path_too_long", f"Paths over {MAX_PATH_BYTES} bytes are not sent.")
    if is_unsafe(path):
        return Skipped(path, "unsafe_path", "The path leads out of the client's folder, or into its .git.")
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        return Skipped(path, "not_utf8", "The path is not UTF-8 and cannot be written in JSON.")
    return None


def too_large(path: bytes, size: int, max_file_bytes: int) -> Skipped:
    return Skipped(path, "too_large", f"{size:,} bytes are more than MAX_FILE_BYTES ({max_file_bytes:,}).")


def remark_on(size: int, beginning: bytes) -> str:
    """What is special about a content, for the `remark` of its row."""
    return "lfs_pointer" if size < _LFS_POINTER_BYTES and beginning.startswith(_LFS_POINTER) else ""
