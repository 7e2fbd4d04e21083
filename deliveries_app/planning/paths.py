"""Which paths a client could be led astray by, if it wrote the files where they say; and which stand in each other's way."""

from collections.abc import Iterator

import re2

MAX_PATH_BYTES = 1024

_IGNORED_BY_MACOS = rb"(?:\xe2\x80[\x8c-\x8f\xaa-\xae]|\xe2\x81[\xaa-\xaf]|\xef\xbb\xbf)*"
_DOT_GIT = _IGNORED_BY_MACOS.join([b"", rb"\.", rb"[gG]", rb"[iI]", rb"[tT]", b""])
_UNSAFE = (
    rb"(?:^|/)\.{0,2}(?:/|$)",  # no name at all, the directory itself, or the one above
    rb"(?:^|[/\\])\.\. *(?:[/\\]|$)",  # the one above, as Windows reads it
    rb"(?:^|[/\\])(?:" + _DOT_GIT + rb"|[gG][iI][tT]~1)[ .]*(?:[/\\:]|$)",  # .git, as Windows and macOS read it too
    rb"^(?:\\|[A-Za-z]:[/\\])",  # the root of a drive
    rb"\x00",
)
_OPTIONS = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1
_OPTIONS.never_capture = True
_unsafe = re2.compile(b"|".join(_UNSAFE), _OPTIONS)


def is_unsafe(path: bytes) -> bool:
    """Whether a part of the path is empty, `.`, `..` or `.git`, also as Windows or macOS would read it."""
    return _has_clues(path) and _unsafe.search(path) is not None


def _has_clues(path: bytes) -> bool:
    """False for almost every path, in a fraction of the expression's time: all paths of all trees come by here."""
    return (
        b"/." in path
        or b"\\" in path
        or b"~" in path
        or b"\xe2" in path
        or b"\xef" in path
        or b"//" in path
        or b"\0" in path
        or path[1:2] == b":"
        or path[:1] in b"./"
        or path[-1:] == b"/"
    )


class PathSet:
    """Asked whether a path is equal to, above or below one of those that were added."""

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._above: set[str] = set()

    def add(self, path: str) -> None:
        self._paths.add(path)
        self._above.update(_ancestors(path))

    def touches(self, path: str) -> bool:
        if not self._paths:
            return False
        return path in self._paths or path in self._above or any(part in self._paths for part in _ancestors(path))


def _ancestors(path: str) -> Iterator[str]:
    """`a/b/c` → `a`, `a/b`."""
    position = path.find("/")
    while position != -1:
        yield path[:position]
        position = path.find("/", position + 1)
