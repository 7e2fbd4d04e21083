"""What is ignored: the `.docoraignore` of the pinned commit, then the patterns that an administrator adds to the watch.

Both are one list, so that the watch's patterns can also take back what the file says (`!x`). As with git, the last
pattern that matches decides, for each directory from the top and then for the file, and what lies in an ignored
directory cannot be taken back.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import re2

from deliveries_app.planning.eligibility import REGULAR, Skipped
from deliveries_app.planning.gitignore import InvalidPattern, Pattern, compile_pattern, lines_of
from deliveries_app.planning.plan import PlanRefused
from docora.text import clean_text
from repositories_app.git.process import LOCAL_TIMEOUT
from repositories_app.mirror.mirror import Entry, Mirror
from repositories_app.mirror.tree import DIRECTORY

FILE_NAME = ".docoraignore"
MAX_FILE_BYTES = 65_536
MAX_FILE_PATTERNS = 1000
_LISTED = b"/" + FILE_NAME.encode()
"""Under this path its bad lines are listed: no file has it, so that it never stands in the way of the file's own."""

_ALLOWED_SECONDS = 10.0  # of matching before anybody asks …
_ALLOWED_PER_PATH = 0.0005  # … and for each path: a hundred times what fifty ordinary patterns take
_CACHED_DIRECTORIES = 10_000
_OPTIONS = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1  # a byte is a character, as for git
_OPTIONS.dot_nl = True
_OPTIONS.never_capture = True
_OPTIONS.log_errors = False


class _Any:
    """Whether a path matches any of some patterns, in one pass over its name and one over the whole path."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._name = _union([pattern.regex for pattern in patterns if pattern.by_name])
        self._path = _union([pattern.regex for pattern in patterns if not pattern.by_name])

    def matches(self, path: bytes, name: bytes) -> bool:
        by_name = self._name is not None and self._name.fullmatch(name) is not None
        return by_name or (self._path is not None and self._path.fullmatch(path) is not None)


class _LastMatch:
    """What the last matching pattern of a list says. Patterns that say the same and stand together are one."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._all = _Any(patterns)
        self._groups = [
            (includes, _Any(list(group))) for includes, group in groupby(patterns, lambda pattern: pattern.includes)
        ][::-1]

    def ignores(self, path: bytes, name: bytes) -> bool:
        if not self._all.matches(path, name):
            return False
        return next((not includes for includes, group in self._groups if group.matches(path, name)), False)


@dataclass
class IgnoreRules:
    """Asked path by path. Memory is bounded, and so is time: `PlanRefused` once matching takes far more than it may.

    `problems`: lines of the file that are passed over, to be listed.
    """

    patterns: Sequence[Pattern]
    problems: Sequence[Skipped] = ()
    _directories: dict[bytes, bool] = field(default_factory=dict)
    _asked: int = 0
    _spent: float = 0.0

    def __post_init__(self) -> None:
        self._for_directories = _LastMatch(self.patterns)
        self._for_files = _LastMatch([pattern for pattern in self.patterns if not pattern.directories_only])

    @property
    def check(self) -> Callable[[Entry], bool] | None:
        """`ignores`, or None where nothing can be ignored and nobody need ask."""
        return self.ignores if self.patterns else None

    def ignores(self, entry: Entry) -> bool:
        """Whether the entry, or a directory above it, is ignored."""
        started = time.monotonic()
        self._asked += 1
        left = _ALLOWED_SECONDS + _ALLOWED_PER_PATH * self._asked - self._spent
        if left < 0:
            raise _takes_too_long()
        parent, _, name = entry.path.rpartition(b"/")
        try:
            if parent and self._is_directory_ignored(parent, started + left):
                return True
            rules = self._for_directories if entry.mode == "160000" else self._for_files
            return rules.ignores(entry.path, name)
        finally:
            self._spent += time.monotonic() - started

    def _is_directory_ignored(self, path: bytes, until: float) -> bool:
        known = self._directories.get(path)
        if known is not None:
            return known
        if len(self._directories) > _CACHED_DIRECTORIES:
            self._directories.clear()
        parts = path.split(b"/")
        ignored = False
        for depth, name in enumerate(parts, start=1):
            if time.monotonic() > until:
                raise _takes_too_long()
            above = b"/".join(parts[:depth])
            known = self._directories.get(above)
            ignored = known if known is not None else ignored or self._for_directories.ignores(above, name)
            self._directories[above] = ignored
        return ignored


def _takes_too_long() -> PlanRefused:
    return PlanRefused(
        f"Matching the ignore patterns takes too long. Use fewer or simpler ones in {FILE_NAME} or in the watch's "
        "patterns: each * in a pattern costs.",
        "rules",
    )


def _union(regexes: Sequence[bytes]) -> re2._Regexp | None:
    return re2.compile(b"|".join(regexes), _OPTIONS) if regexes else None


def read_rules(mirror: Mirror, commit: str, patterns_of_watch: str) -> IgnoreRules:
    """What the commit and the watch ignore. Raises `PlanRefused` for a file that is no text or beyond the bounds: going
    on without it would send what its owner wants hidden."""
    entry = mirror.entry(commit, FILE_NAME.encode())
    if entry is None or entry.mode == DIRECTORY:
        return rules_of(b"", patterns_of_watch)
    if entry.mode in REGULAR:
        return rules_of(_content_of(entry, mirror), patterns_of_watch)
    added, _ = compile_lines(patterns_of_watch.encode())
    return IgnoreRules(added, _remark(" is a link or a submodule here, which is not read: it ignores nothing."))


def rules_of(file: bytes, patterns_of_watch: str) -> IgnoreRules:
    """What this `.docoraignore` and the watch ignore. Raises `PlanRefused`."""
    patterns, problems = compile_lines(file)
    if len(patterns) > MAX_FILE_PATTERNS:
        raise _refused(f"has {len(patterns):,} patterns, more than {MAX_FILE_PATTERNS:,}. Use fewer")
    added, _ = compile_lines(patterns_of_watch.encode())
    return IgnoreRules([*patterns, *added], _remark(f": {words_for(problems)} It is passed over.") if problems else [])


def _remark(words: str) -> list[Skipped]:
    """A line about the file itself, in the list of what is left out."""
    return [Skipped(_LISTED, "ignore_pattern", clean_text(f"{FILE_NAME}{words}", 500))]


def content_of_file(mirror: Mirror, commit: str, *, timeout: float = LOCAL_TIMEOUT) -> bytes:
    """Of the regular file in the root, as a link could point anywhere; empty for anything else. Raises `PlanRefused`."""
    entry = mirror.entry(commit, FILE_NAME.encode(), timeout=timeout)
    return _content_of(entry, mirror, timeout) if entry and entry.mode in REGULAR else b""


def _content_of(entry: Entry, mirror: Mirror, timeout: float = LOCAL_TIMEOUT) -> bytes:
    if entry.size > MAX_FILE_BYTES:
        raise _refused(f"has {entry.size:,} bytes, more than {MAX_FILE_BYTES:,}. Make it shorter")
    content = mirror.content(entry.blob, timeout=timeout)
    if b"\0" in content:  # UTF-16, most likely: of each line the first letter would be left
        raise _refused("is not text in UTF-8, it holds NUL bytes. Save it as UTF-8")
    return content


def _refused(words: str) -> PlanRefused:
    return PlanRefused(f"{FILE_NAME} {words}; nothing is sent until then.", "rules")


@dataclass(frozen=True)
class IgnoredBy:
    """The line that decides: of `.docoraignore`, or, if not `in_file`, of the watch's patterns. `matched` is the path
    that it matches, the file's own or that of a directory above it."""

    in_file: bool
    number: int
    line: bytes
    matched: bytes


def ignored_by(file: bytes, patterns_of_watch: str, entry: Entry) -> IgnoredBy | None:
    """Which line ignores the entry, for the page that explains one file; syncs ask `IgnoreRules`, made for millions."""
    lines = [*_numbered(file, in_file=True), *_numbered(patterns_of_watch.encode(), in_file=False)][::-1]
    any_line = _Any([line.pattern for line in lines])
    parts = entry.path.split(b"/")
    for depth, name in enumerate(parts, start=1):
        path = b"/".join(parts[:depth])
        if not any_line.matches(path, name):
            continue
        is_file = depth == len(parts) and entry.mode != "160000"
        asked = (line for line in lines if not (is_file and line.pattern.directories_only))
        last = next((line for line in asked if line.matches(path, name)), None)
        if last and not last.pattern.includes:
            return IgnoredBy(last.in_file, last.number, last.text, path)
    return None


@dataclass(frozen=True)
class _Line:
    in_file: bool
    number: int
    text: bytes
    pattern: Pattern

    @cached_property
    def _any(self) -> _Any:
        return _Any([self.pattern])

    def matches(self, path: bytes, name: bytes) -> bool:
        return self._any.matches(path, name)


def _numbered(text: bytes, *, in_file: bool) -> Iterator[_Line]:
    for number, line in lines_of(text):
        with contextlib.suppress(InvalidPattern):
            yield _Line(in_file, number, line, compile_pattern(line))


def compile_lines(text: bytes) -> tuple[list[Pattern], list[tuple[int, bytes, str]]]:
    """The patterns of a text, and (line number, line, what is wrong) of those that cannot match anything."""
    patterns, problems = [], []
    for number, line in lines_of(text):
        try:
            patterns.append(compile_pattern(line))
        except InvalidPattern as error:
            problems.append((number, line, str(error)))
    return patterns, problems


def words_for(problems: Sequence[tuple[int, bytes, str]]) -> str:
    """The first few problems as sentences: `Line 3 ("[a") matches nothing, as its bracket is not closed.`"""
    told = [f'Line {number} ("{clean_text(line, 40)}") {problem}.' for number, line, problem in problems[:5]]
    if len(problems) > len(told):
        told.append(f"{len(problems) - len(told):,} more lines are like that.")
    return " ".join(told)
