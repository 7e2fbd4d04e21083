"""Decide which files patterns leave out: the app's own, those in the commit's `.docoraignore`, and an administrator's.

The file and the administrator's patterns form one list, so an administrator can re-include what the file excludes (`!x`).
The app's include and exclude patterns are separate lists: an app must not get files that the repository's owner excludes. In
each list, as in git, the last matching pattern decides, for each directory from the top and then for the file. A file in a
directory that matches always matches, too.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import re2

from deliveries_app.planning.eligibility import REGULAR, PatternCheck, Skipped
from deliveries_app.planning.gitignore import InvalidPattern, Pattern, compile_pattern, lines_of
from deliveries_app.planning.paths import RE2_OPTIONS
from deliveries_app.planning.plan import DeliveryRules, PlanRefused
from docora.text import clean_text, counted
from repositories_app.mirror import tree
from repositories_app.mirror.blobs import BlobReader
from repositories_app.mirror.tree import DIRECTORY, Entry

FILE_NAME = ".docoraignore"
MAX_FILE_BYTES = 65_536
MAX_FILE_PATTERNS = 1000
_LISTED = b"/" + FILE_NAME.encode()
"""Invalid lines are listed under this path. No file can have it, so it never conflicts with the file's own entry."""

_ALLOWED_SECONDS = 10.0  # of processor time for matching a whole tree, plus a share for each path
_ALLOWED_SECONDS_PER_PATH = 0.0005  # 100 times what fifty ordinary patterns take
_CACHED_DIRECTORIES = 10_000


class _AnyPattern:
    """Match a path against many patterns at once, with one pass over its name and one over the whole path."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._name = _union([pattern.regex for pattern in patterns if pattern.by_name])
        self._path = _union([pattern.regex for pattern in patterns if not pattern.by_name])

    def matches(self, path: bytes, name: bytes) -> bool:
        by_name = self._name is not None and self._name.fullmatch(name) is not None
        return by_name or (self._path is not None and self._path.fullmatch(path) is not None)


class _LastMatch:
    """Apply the last matching pattern of a list. Adjacent patterns of the same kind are combined."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._all = _AnyPattern(patterns)
        self._groups = [
            (includes, _AnyPattern(list(group)))
            for includes, group in groupby(patterns, lambda pattern: pattern.includes)
        ][::-1]

    def matches(self, path: bytes, name: bytes) -> bool:
        if not self._all.matches(path, name):
            return False
        return next((not includes for includes, group in self._groups if group.matches(path, name)), False)


@dataclass
class IgnoreRules:
    """Match the paths of a tree one by one, in bounded memory. Raises `PlanRefused` if matching takes far too long.

    `problems` are the invalid lines of the file, to be listed.
    """

    patterns: Sequence[Pattern]
    problems: Sequence[Skipped] = ()
    _directories: dict[bytes, bool] = field(default_factory=dict)
    _checked: int = 0
    _seconds: float = 0.0  # of this thread's processor time: it may wait for others

    def __post_init__(self) -> None:
        self._for_directories = _LastMatch(self.patterns)
        self._for_files = _LastMatch([pattern for pattern in self.patterns if not pattern.directories_only])

    def matches(self, entry: Entry) -> bool:
        """Return whether the patterns match the entry or a directory above it."""
        started = time.thread_time()
        self._checked += 1
        remaining = _ALLOWED_SECONDS + _ALLOWED_SECONDS_PER_PATH * self._checked - self._seconds
        if remaining < 0:
            raise _takes_too_long()
        parent, _, name = entry.path.rpartition(b"/")
        try:
            if parent and self._is_directory_matched(parent, started + remaining):
                return True
            rules = self._for_directories if entry.mode == "160000" else self._for_files
            return rules.matches(entry.path, name)
        finally:
            self._seconds += time.thread_time() - started

    def _is_directory_matched(self, path: bytes, until: float) -> bool:
        known = self._directories.get(path)
        if known is not None:
            return known
        if len(self._directories) > _CACHED_DIRECTORIES:
            self._directories.clear()
        parts = path.split(b"/")
        ignored = False
        for depth, name in enumerate(parts, start=1):
            if time.thread_time() > until:
                raise _takes_too_long()
            above = b"/".join(parts[:depth])
            known = self._directories.get(above)
            ignored = known if known is not None else ignored or self._for_directories.matches(above, name)
            self._directories[above] = ignored
        return ignored


@dataclass(frozen=True)
class PatternRules:
    """All patterns of a watch and a commit. `included` is None without include patterns, so that every file is included."""

    ignored: IgnoreRules
    included: IgnoreRules | None = None
    excluded: IgnoreRules | None = None

    @property
    def check(self) -> PatternCheck | None:
        """What the planner calls for each entry, or None if there are no patterns."""
        return self.cause if self.included or self.excluded or self.ignored.patterns else None

    def cause(self, entry: Entry) -> str:
        """Return the cause for which the entry is left out, or an empty string."""
        if self.included and not self.included.matches(entry):
            return "not_included"
        if self.excluded and self.excluded.matches(entry):
            return "excluded"
        return "ignored" if self.ignored.patterns and self.ignored.matches(entry) else ""


def _takes_too_long() -> PlanRefused:
    return PlanRefused(
        f"Matching the patterns takes too long. Use fewer or simpler patterns in {FILE_NAME} or for this watched "
        "repository. Each * in a pattern costs time.",
        "rules",
    )


def _union(regexes: Sequence[bytes]) -> re2._Regexp | None:
    return re2.compile(b"|".join(regexes), RE2_OPTIONS) if regexes else None


def read_rules(reader: BlobReader, commit: str, delivery_rules: DeliveryRules) -> PatternRules:
    """Return all patterns that apply to a commit for a watch.

    Raises `PlanRefused` if `.docoraignore` is too large or not text: without its patterns, Docora would send what it excludes.
    """
    ignored = _read_ignored(reader, commit, delivery_rules.patterns)
    return PatternRules(ignored, _rules_of(delivery_rules.include), _rules_of(delivery_rules.exclude))


def _rules_of(text: str) -> IgnoreRules | None:
    patterns, _ = compile_lines(text.encode())
    return IgnoreRules(patterns) if patterns else None


def _read_ignored(reader: BlobReader, commit: str, patterns_of_watch: str) -> IgnoreRules:
    file = _read_ignore_file(reader, commit)
    if file is not None:
        return build_rules(file, patterns_of_watch)
    added, _ = compile_lines(patterns_of_watch.encode())
    return IgnoreRules(
        added, _remark(" is a link or a submodule in this commit. It is not read, so it ignores nothing.")
    )


def build_rules(file: bytes, patterns_of_watch: str) -> IgnoreRules:
    """Return the rules made of the content of `.docoraignore` and the watch's patterns. Raises `PlanRefused`."""
    patterns, problems = compile_lines(file, in_file=True)
    if len(patterns) > MAX_FILE_PATTERNS:
        raise _refused(f"has {len(patterns):,} patterns, more than {MAX_FILE_PATTERNS:,}. Use fewer patterns")
    added, _ = compile_lines(patterns_of_watch.encode())
    return IgnoreRules(
        [*patterns, *added], _remark(f": {describe_problems(problems)} Docora skips such lines.") if problems else []
    )


def _remark(message: str) -> list[Skipped]:
    """Return an entry about the file itself for the list of skipped files."""
    return [Skipped(_LISTED, "ignore_pattern", clean_text(f"{FILE_NAME}{message}", 500))]


def _read_ignore_file(reader: BlobReader, commit: str) -> bytes | None:
    """Return the content of `.docoraignore`: empty if there is no such file, None if it is a link or a submodule.

    Raises `PlanRefused` and `GitError`.
    """
    path = FILE_NAME.encode()
    entry = tree.entries(reader, commit, [path]).get(path)
    if entry is None or entry.mode == DIRECTORY:
        return b""
    if entry.mode not in REGULAR:
        return None
    if entry.size > MAX_FILE_BYTES:
        raise _refused(f"has {entry.size:,} bytes, more than {MAX_FILE_BYTES:,}. Make it shorter")
    [content] = reader.read([entry.blob])
    if b"\0" in content:  # probably UTF-16: git ends each line at its first NUL byte
        raise _refused("is not UTF-8 text: it contains NUL bytes. Save it as UTF-8")
    try:
        content.decode()
    except UnicodeDecodeError as error:  # such a pattern would match no path that Docora sends
        line = content.count(b"\n", 0, error.start) + 1
        raise _refused(f"is not UTF-8 text (line {line:,}). Save it as UTF-8") from None
    return content


def _refused(message: str) -> PlanRefused:
    return PlanRefused(f"{FILE_NAME} {message}. Nothing is sent until it is fixed.", "rules")


def deciding_line(patterns: Sequence[Pattern], entry: Entry) -> tuple[Pattern, bytes] | None:
    """Return the pattern that matches an entry, and the path that it matches: the entry's own, or of a directory above it.

    Return None if `IgnoreRules` with these patterns do not match the entry. They are faster, but cannot name the pattern.
    Raises `PlanRefused` if matching takes far too long: a web process does this for a page.
    """
    until = time.monotonic() + _ALLOWED_SECONDS
    lines = [(pattern, _AnyPattern([pattern])) for pattern in reversed(patterns)]
    parts = entry.path.split(b"/")
    for depth, name in enumerate(parts, start=1):
        if time.monotonic() > until:
            raise _takes_too_long()
        path = b"/".join(parts[:depth])
        is_file = depth == len(parts) and entry.mode != "160000"
        for pattern, any_pattern in lines:
            if not (is_file and pattern.directories_only) and any_pattern.matches(path, name):
                if not pattern.includes:
                    return pattern, path
                break
    return None


def compile_lines(text: bytes, *, in_file: bool = False) -> tuple[list[Pattern], list[tuple[int, bytes, str]]]:
    """Return the valid patterns of a text, and (line number, line, problem) for the invalid ones.

    `in_file`: it is the content of `.docoraignore`.
    """
    patterns, problems = [], []
    for number, line in lines_of(text):
        try:
            patterns.append(compile_pattern(line, number, in_file=in_file))
        except InvalidPattern as error:
            problems.append((number, line, str(error)))
    return patterns, problems


def describe_problems(problems: Sequence[tuple[int, bytes, str]]) -> str:
    """Return the first five problems as sentences: `Line 3 ("[a") matches nothing: its bracket is not closed.`"""
    sentences = [f'Line {number} ("{clean_text(line, 40)}") {problem}.' for number, line, problem in problems[:5]]
    if len(problems) > len(sentences):
        more = counted(len(problems) - len(sentences), "more line is", "more lines are")
        sentences.append(f"{more} invalid.")
    return " ".join(sentences)
