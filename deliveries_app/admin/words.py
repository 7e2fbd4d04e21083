"""Words for what the engine keeps as a short cause."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

AS_IT_IS_NOT = {"lfs_pointer", "ignore_pattern"}
"""Causes that leave no file out, but are worth a line."""

LEFT_OUT: dict[str, tuple[str, str]] = {
    "symlink": ("Symbolic links", "A link is not sent; the file that it points to is, if it lies in the repository."),
    "submodule": ("Submodules", "Another repository at this place. Let the app watch that one, if it wants its files."),
    "too_large": ("Too large", "Larger than MAX_FILE_BYTES. An administrator can raise it."),
    "path_too_long": ("Path too long", "Longer than 1,024 bytes. A shorter path is sent."),
    "not_utf8": ("Path is not UTF-8", "JSON cannot carry it. Rename the file in the repository."),
    "unsafe_path": ("Unsafe path", "It leads out of the client's folder, or into its .git. Rename the file."),
    "ignored": (
        "Ignored",
        "Matched by .docoraignore or by the patterns below, and deleted at the client if it was sent.",
    ),
    "transform": ("Dropped by a transform", "One of FILE_TRANSFORMS leaves it out."),
    "collision": ("Same path", "A transform gave it the path of another file; only one of them is sent."),
    "ignore_pattern": ("Patterns without meaning", "Lines of .docoraignore that cannot be read; the others hold."),
    "lfs_pointer": ("Git LFS pointers", "Sent as they stand in git: the small pointer, not the large file behind it."),
    "other": ("Other", "The list below says why."),
}
"""Cause → its name, and what it means."""

GIT_HINTS = {
    "auth": "Replace the token on the page of the watched repository: the sync then begins at once.",
    "not_found": "If it was moved or renamed, let the app watch the new address; if it is gone for good, unwatch it.",
    "timeout": "Once the git host is well again, resetting the circuit tries it at once.",
    "network": "Once the git host can be reached again, resetting the circuit tries it at once.",
    "too_large": "When it is smaller, or the limit is higher, resetting the circuit tries it at once.",
    "corrupt": "Nothing is to be done, unless it happens again and again: then look at the disk of REPOS_DIR.",
    "other": "Docora's log has more. Resetting the circuit tries it at once.",
}
"""Cause of a git failure → what a person can do here; what the failure means stands in its message."""


@dataclass(frozen=True)
class LeftOut:
    """So many files of one cause."""

    name: str
    meaning: str
    count: int


def left_out(counts: Mapping[str, int]) -> list[LeftOut]:
    """What a tree's `left_out` says, in the order above."""
    known = [*LEFT_OUT, *(cause for cause in counts if cause not in LEFT_OUT)]
    return [
        LeftOut(*LEFT_OUT.get(cause, (cause.replace("_", " ").capitalize(), "")), counts[cause])
        for cause in known
        if counts.get(cause)
    ]


def number_left_out(counts: Mapping[str, int]) -> int:
    """Files that are not sent at all."""
    return sum(count for cause, count in counts.items() if cause not in AS_IT_IS_NOT)


def sentence(found: Iterable[LeftOut]) -> str:
    """`Symbolic links 3, Ignored 12`, or empty."""
    return ", ".join(f"{item.name} {item.count:,}" for item in found)
