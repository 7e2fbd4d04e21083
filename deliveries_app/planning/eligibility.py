"""Decide which files of a tree are sent. All other content is sent exactly as committed.

| cause | not sent | listed by path |
|---|---|---|
| `not_included` | the app has include patterns, and none matches | no, only counted |
| `excluded` | matched by the app's exclude patterns | no, only counted |
| `ignored` | matched by `.docoraignore` or the watch's ignore patterns | no, only counted |
| `symlink`, `submodule` | not a regular file: a link may point anywhere, a submodule is another repository | yes |
| `path_too_long`, `not_utf8` | longer than 1,024 bytes; not UTF-8, so JSON cannot carry it | yes |
| `unsafe_path` | dangerous for a client that writes files at the paths it receives, see `paths` | yes |
| `too_large` | larger than `MAX_FILE_BYTES` | yes |
| `transform` | dropped by `FILE_TRANSFORMS` | no, only counted |
| `collision` | `FILE_TRANSFORMS` gave it a path that another file has | yes |

Git LFS pointers are sent, because the pointer is what the commit contains. Their rows get the remark `lfs_pointer` and
are counted under it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from deliveries_app.planning.paths import MAX_PATH_BYTES, is_unsafe, is_utf8
from repositories_app.mirror.tree import Entry

REGULAR = {"100644", "100755"}
"""The modes of regular files. `canonical_mode` reads every other one as a link, a submodule or a folder."""
UNLISTED = {"not_included", "excluded", "ignored", "transform"}
"""Causes that are only counted, not listed by path: they may leave out most of a tree on purpose."""
REMARKS = {"lfs_pointer"}
"""Counted alongside the causes, although these files are sent."""

type PatternCheck = Callable[[Entry], str]
"""Returns the cause for which patterns leave out an entry, or an empty string."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
LFS_POINTER_BYTES = 1024  # a pointer is shorter


@dataclass(frozen=True, slots=True)
class Skipped:
    """A path that is not sent, and why. `message` can be empty if the cause is only counted."""

    path: bytes
    cause: str
    message: str = ""


def eligible(
    entries: Iterable[Entry],
    max_file_bytes: int,
    patterns: PatternCheck | None,
    skip: Callable[[Skipped], None],
) -> Iterator[Entry]:
    """Yield the entries that are sent and pass the others to `skip`."""
    for entry in entries:
        skipped = reason_to_skip(entry, max_file_bytes, patterns)
        if skipped:
            skip(skipped)
        else:
            yield entry


def reason_to_skip(entry: Entry, max_file_bytes: int, patterns: PatternCheck | None = None) -> Skipped | None:
    """Return why a tree entry is not sent, or None if it is sent."""
    if patterns and len(entry.path) <= MAX_PATH_BYTES and (cause := patterns(entry)):
        return Skipped(entry.path, cause)
    if entry.mode == "120000":
        return Skipped(entry.path, "symlink", "Symbolic links are not sent.")
    if entry.mode == "160000":
        return Skipped(
            entry.path, "submodule", "Submodules are not sent. Watch the submodule's own repository instead."
        )
    if entry.size > max_file_bytes:
        return _too_large(entry.path, entry.size, max_file_bytes)
    return reason_by_path(entry.path)


def reason_by_path(path: bytes) -> Skipped | None:
    """Return why a file at this path is not sent, or None if the path is fine."""
    if len(path) > MAX_PATH_BYTES:
        return Skipped(path, "path_too_long", f"Paths longer than {MAX_PATH_BYTES} bytes are not sent.")
    if is_unsafe(path):
        return Skipped(path, "unsafe_path", "The path leads outside the client's folder or into its .git directory.")
    if not is_utf8(path):
        return Skipped(path, "not_utf8", "The path is not valid UTF-8, so JSON can't represent it.")
    return None


def reason_after_transforms(source: bytes, path: str, size: int, max_file_bytes: int) -> Skipped | None:
    """Return why a transformed file is not sent, with the path of its source, or None if it is sent."""
    result = path.encode("utf-8", "surrogatepass")
    reason = reason_by_path(result)
    if reason is None and size > max_file_bytes:
        reason = _too_large(result, size, max_file_bytes)
    return reason and Skipped(source, reason.cause, f"After its transforms: {reason.message}")


def _too_large(path: bytes, size: int, max_file_bytes: int) -> Skipped:
    return Skipped(path, "too_large", f"The file's {size:,} bytes exceed MAX_FILE_BYTES ({max_file_bytes:,}).")


def remark_on(size: int, beginning: bytes) -> str:
    """Return the `remark` for a file of `size` bytes that starts with `beginning`, or an empty string."""
    return "lfs_pointer" if size < LFS_POINTER_BYTES and beginning.startswith(_LFS_POINTER) else ""
