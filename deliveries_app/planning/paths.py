"""Path checks: paths that are unsafe for a client to write, and paths that conflict with each other."""

import unicodedata
from collections.abc import Iterator

import re2

MAX_PATH_BYTES = 1024

_IGNORED_BY_MACOS = rb"(?:\xe2\x80[\x8c-\x8f\xaa-\xae]|\xe2\x81[\xaa-\xaf]|\xef\xbb\xbf)*"
_DOT_GIT = _IGNORED_BY_MACOS.join([b"", rb"\.", rb"[gG]", rb"[iI]", rb"[tT]", b""])
_UNSAFE = (
    rb"(?:^|/)\.{0,2}(?:/|$)",  # an empty name, "." or ".."
    rb"(?:^|[/\\])\.\. *(?:[/\\]|$)",  # "..", as Windows reads it
    rb"(?:^|[/\\])(?:" + _DOT_GIT + rb"|[gG][iI][tT]~1)[ .]*(?:[/\\:]|$)",  # ".git", as Windows and macOS read it too
    rb"^(?:\\|[A-Za-z]:.)",  # the root of a drive, or a path on another drive: "C:/x", "C:x"
    rb"\x00",
)
RE2_OPTIONS = re2.Options()
RE2_OPTIONS.encoding = re2.Options.Encoding.LATIN1  # one byte is one character, as in git
RE2_OPTIONS.never_capture = True
RE2_OPTIONS.dot_nl = True
RE2_OPTIONS.log_errors = False
_unsafe = re2.compile(b"|".join(_UNSAFE), RE2_OPTIONS)


def is_unsafe(path: bytes) -> bool:
    """Return whether the path leads out of the client's folder or into `.git` on any system, including Windows and macOS.

    Device names (`aux.c`) and streams (`file.txt:x`) are ordinary files everywhere but on Windows, so they are sent. Clients
    on Windows have to refuse them.
    """
    return _may_be_unsafe(path) and _unsafe.search(path) is not None


def _may_be_unsafe(path: bytes) -> bool:
    """Return False for almost every safe path, much faster than the expression. Every path of every tree is checked."""
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


def is_utf8(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


def folded(path: str) -> str:
    """Return a key that is equal for paths that may be one file at the client.

    Windows and macOS ignore case, and macOS does not distinguish composed from decomposed characters.
    """
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


class PathSet:
    """A set of paths that also knows their ancestors and descendants. Compares them `folded`."""

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._ancestors: set[str] = set()

    def add(self, path: str) -> None:
        key = folded(path)
        self._paths.add(key)
        self._ancestors.update(_ancestors_of(key))

    def touches(self, path: str) -> bool:
        """Return whether `path` may be equal to, above or below a path in the set."""
        if not self._paths:
            return False
        key = folded(path)
        return key in self._paths or key in self._ancestors or any(part in self._paths for part in _ancestors_of(key))


def _ancestors_of(path: str) -> Iterator[str]:
    """Yield the directories above a path: `a`, `a/b` for `a/b/c`."""
    position = path.find("/")
    while position != -1:
        yield path[:position]
        position = path.find("/", position + 1)
