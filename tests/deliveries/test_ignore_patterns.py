"""Ignore patterns, compared with `git check-ignore`."""

import contextlib
import random
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import Mock

import pytest

from deliveries_app.planning.ignore_rules import IgnoreRules, compile_lines, deciding_line, describe_problems
from deliveries_app.planning.plan import PlanRefused
from repositories_app.mirror.tree import Entry
from tests.support.git import git_environment

PATHS = [
    *("a", "b", "ab", "abc", "A", "readme.md", "docs/readme.md", "docs/a", "docs/b/c", "docs/deep/er/a", "src/main.py"),
    *("build/out", "build/keep.txt", "sub/build/out", "node_modules/x/y.js", "x/node_modules/y", "foo/bar", "foobar"),
    *(
        "foo/x/bar",
        "foox/y/bar",
        "foo/bar/baz",
        "a b",
        "a b/c",
        "trail",
        "trail ",
        "#hash",
        "!bang",
        "back\\slash",
        "[x]",
    ),
    *(
        "x]",
        "é",
        "é/ü",
        "-dash",
        "1",
        "a-b",
        "a.b",
        "star*",
        "q?",
        "tab\there",
        "new\nline",
        "new\nline/x",
        "{a,b}",
        "$x",
    ),
    *("deep/a/b/c/d/e/f", "deep/a/b", ".hidden", "dir/.hidden", "x.txt", "dir/x.txt", "dir/y.txt", "dir/sub/x.txt"),
    *("(p)", "p|q", "a+b", "^c", "temp~", "~", "logs/1.log", "logs/keep/1.log", "logs/keep/2.log"),
]
LISTS = [
    *(["a"], ["/a"], ["a/"], ["docs/"], ["/docs"], ["docs/a"], ["b/c"], ["docs/b/c"], ["*"], ["/*"], ["*/"], ["**"], ["**/"]),
    *(["*.md"], ["/*.md"], ["docs/*.md"], ["docs/**"], ["docs/**/a"], ["**/a"], ["**/build/out"], ["a/**/f"], ["deep/**/f"]),
    *(["foo**/bar"], ["foo**bar"], ["foo/**bar"], ["foo**"], ["/foo**"], ["***"], ["deep/***/f"], ["foo*/bar"], ["f?o/bar"]),
    *(["[ab]"], ["[!a]"], ["[^a]*"], ["[a-c]"], ["[]]"], ["[]x]*"], ["[!]a]"], ["[a"], ["a[", "b"], ["[c-a]"], ["[--0]"]),
    *(["[a-]*"], ["[[:alpha:]]"], ["[[:digit:]]"], ["[[:space:][:punct:]]*"], ["[[:nope:]]"], ["[[:alpha]"], ["[a\\-z]*"]),
    *(["\\[x\\]"], ["\\[x]"], ["\\#hash"], ["#hash"], ["\\!bang"], ["!bang"], ["back\\\\slash"], ["back\\slash"], ["a\\"]),
    *(["trail "], ["trail\\ "], ["trail\\  "], ["  a"], ["a b"], ["a\\ b"], ["tab\t"], ["tab\there"], ["tab*"], ["new*"]),
    *(["é"], ["?"], ["??"], ["é/"], ["é/*"], ["{a,b}"], ["$x"], ["(p)"], ["p|q"], ["a+b"], ["^c"], ["*~"], ["star\\*"], ["q\\?"]),
    *([""], ["/"], ["!"], ["//"], ["a//"], ["/a/"], ["./a"], ["../a"], ["#"], [".*"], [".hidden"], ["*.*"], ["a.b"]),
    *(["build", "!build/keep.txt"], ["build/*", "!build/keep.txt"], ["build/", "!build/"], ["*", "!*/", "!*.txt"]),
    *(["*.txt", "!dir", "x.txt"], ["dir/", "!dir/sub/"], ["/*", "!/dir", "/dir/*", "!/dir/sub"], ["!a", "a"], ["a", "!a", "a"]),
    *(["logs/**", "!logs/keep/", "!logs/keep/1.log"], ["logs/*", "!logs/keep/", "logs/keep/2.log"], ["foo/", "!/foo*/**/bar"]),
    *(["\ufeffa"], ["a\r"], ["node_modules/", "!node_modules/x/y.js"], ["node_modules"], ["/node_modules"], ["[a/b]c"]),
]  # fmt: skip
"""Every kind of pattern in git's manual and tests."""


_STARS_AFTER_NAME = re.compile(rb"^((?:\xef\xbb\xbf)?+!?+[^*?[\\\n]*[^/*?[\\\n])\*{2,}", re.MULTILINE)


class WorkTree:
    """Ask git.

    It gets `foo*/bar` for `foo**/bar`: by git's manual, both mean the same, but git 2.47 reads the latter in another way.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._git("init", "--quiet")

    def ignored(self, text: bytes, paths: Iterable[bytes]) -> set[bytes]:
        self._write(text)
        stdin = b"\0".join(paths)
        return set(self._git("check-ignore", "--stdin", "-z", "--no-index", stdin=stdin).split(b"\0")[:-1])

    def ignoring_line(self, text: bytes, path: bytes) -> tuple[int, bytes] | None:
        """Return (number, line) of the line that ignores the path, according to git."""
        self._write(text)
        output = self._git("check-ignore", "--stdin", "-z", "--no-index", "--verbose", stdin=path).split(b"\0")
        return (int(output[1]), output[2]) if len(output) > 3 and not output[2].startswith(b"!") else None

    def _write(self, text: bytes) -> None:
        (self.directory / ".gitignore").write_bytes(_STARS_AFTER_NAME.sub(rb"\1*", text))

    def _git(self, *arguments: str, stdin: bytes = b"") -> bytes:
        command = ["git", "-C", str(self.directory), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, check=False, env=git_environment()).stdout


@pytest.fixture
def work_tree(tmp_path: Path) -> WorkTree:
    return WorkTree(tmp_path)


def ours(text: bytes, paths: Iterable[bytes]) -> set[bytes]:
    rules = IgnoreRules(compile_lines(text)[0])
    return {path for path in paths if rules.matches(Entry(path, "100644", "", 0))}


def files_only(paths: Iterable[bytes]) -> list[bytes]:
    """Drop paths that are a directory of others: a tree cannot have both."""
    unique = sorted(set(paths))
    return [path for path in unique if not any(other.startswith(path + b"/") for other in unique)]


def test_known_patterns_match_like_git(work_tree: WorkTree) -> None:
    paths = files_only(path.encode() for path in PATHS)
    different = {}
    ignored = 0
    for patterns in LISTS:
        text = "".join(f"{pattern}\n" for pattern in patterns).encode()
        real, found = work_tree.ignored(text, paths), ours(text, paths)
        ignored += len(real)
        if real != found:
            different[tuple(patterns)] = (found - real, real - found)
    assert different == {}
    assert ignored > 500  # git was really asked


@pytest.mark.parametrize("pattern", [b"foo**/bar", b"foo***/bar", b"/foo**/bar", b"fo?**/bar"])
def test_stars_after_a_name_match_no_directories(pattern: bytes) -> None:
    assert ours(pattern, [b"foobar", b"foo/bar", b"foox/bar", b"foo/x/bar"]) == {b"foo/bar", b"foox/bar"}


def test_ignoring_line_is_the_one_git_reports(work_tree: WorkTree) -> None:
    paths = files_only(path.encode() for path in PATHS)
    named = 0
    for patterns in [*LISTS[-18:], ["", *(line for some in LISTS for line in ["# more", *some])]]:
        text = "".join(f"{pattern}\n" for pattern in patterns).encode()
        for path in paths[::3]:
            found = line_of(text, "", Entry(path, "100644", "", 0))
            real = work_tree.ignoring_line(text, path)
            named += real is not None
            assert (found and (found[1], found[2].rstrip(b"\r"))) == real, (patterns, path)
    assert named > 50


def line_of(file: bytes, patterns_of_watch: str, entry: Entry) -> tuple[bool, int, bytes, bytes] | None:
    """Return whether the line that ignores an entry is in the file, its number and text, and the path that it matches."""
    patterns = [*compile_lines(file, in_file=True)[0], *compile_lines(patterns_of_watch.encode())[0]]
    line = deciding_line(patterns, entry)
    assert (line is not None) == IgnoreRules(patterns).matches(entry)
    return line and (line[0].in_file, line[0].number, line[0].text, line[1])


def test_ignoring_line_of_the_file_or_the_watch() -> None:
    path = Entry(b"docs/draft/a.md", "100644", "", 0)
    file = b"# ours\n*.log\n\n/docs/draft/\n"
    assert line_of(file, "", path) == (True, 4, b"/docs/draft/", b"docs/draft")
    assert line_of(file, "!draft/", path) is None
    assert line_of(file, "!draft/\na.md", path) == (False, 2, b"a.md", b"docs/draft/a.md")
    assert line_of(b"[open\n", "", path) is None


PIECES = [
    *(b"*", b"**", b"***", b"?", b"[", b"]", b"[a", b"[!a]", b"[^b]", b"[a-c]", b"[]a]", b"[a\\]b]", b"[[:alpha:]]"),
    *(b"[[:foo:]]", b"[[:digit:][:space:]]", b"[[:a]", b"[a-\\z]", b"[--0]", b"[a-]", b"[c-a]", b"\\", b"\\*", b"\\a"),
    *(
        b"\\/",
        b"/",
        b"/",
        b"/",
        b"a",
        b"b",
        b"x.txt",
        b".",
        b"foo",
        b"\xc3",
        b"-",
        b"!",
        b"#",
        b" ",
        b"\\ ",
        b"\t",
        b"\r",
    ),
    *(b"+", b"(", b")", b"{", b"}", b"$", b"|", b"^"),
]
NAMES = [
    b"a",
    b"b",
    b"ab",
    b"x.txt",
    b"foo",
    "é".encode(),
    b"a b",
    b"a ",
    b"]",
    b"-",
    b"A1",
    b"[x",
    b"#h",
    b"!n",
    b"n\nl",
]
SEGMENTS = [*NAMES, b"*", b"**", b"*b", b"a*", b"?", b"[ab]", b"[!a]", b"*.txt", b"[[:alpha:]]", b"a**", b"**b", b"*o*"]


def random_pattern(chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        segments = b"/".join(chance.choices(SEGMENTS, k=chance.randrange(1, 5)))
        return (
            chance.choice([b"", b"", b"!"])
            + chance.choice([b"", b"", b"/"])
            + segments
            + chance.choice([b"", b"/", b" "])
        )
    return chance.choice([b"", b"!"]) + b"".join(chance.choices(PIECES, k=chance.randrange(1, 7)))


def test_random_patterns_match_like_git(work_tree: WorkTree) -> None:
    chance = random.Random(20260106)
    for _ in range(150):
        lines = [random_pattern(chance) + chance.choice([b"\n", b"\r\n"]) for _ in range(chance.randrange(1, 6))]
        text = chance.choice([b"", b"\xef\xbb\xbf"]) + b"".join(lines)
        paths = files_only(b"/".join(chance.choices(NAMES, k=chance.randrange(1, 5))) for _ in range(60))
        assert ours(text, paths) == work_tree.ignored(text, paths), text


def test_directory_pattern_matches_a_submodule(work_tree: WorkTree) -> None:
    rules = IgnoreRules(compile_lines(b"vendor/\n")[0])
    assert rules.matches(Entry(b"vendor", "160000", "", 0))
    assert not rules.matches(Entry(b"vendor", "100644", "", 0))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"[a", "its bracket is not closed"),
        (b"x[[:alpha:]", "its bracket is not closed"),
        (b"[[:nope:]]", "an unknown character class"),
        (b"[/]", "its bracket expression is empty"),
        (b"a\\", "it ends with a backslash"),
        (b"/", "matches nothing"),
    ],
)
def test_invalid_pattern_is_reported_with_its_line(line: bytes, problem: str) -> None:
    """The other patterns remain valid."""
    patterns, problems = compile_lines(b"# comment\n\n%b\nfine\n" % line)
    assert len(patterns) == 1
    assert [number for number, _, _ in problems] == [3]
    assert describe_problems(problems).startswith(f'Line 3 ("{line.decode()}") matches nothing')
    assert problem in describe_problems(problems)


HOSTILE = {
    "many stars": [b"*a" * 15 + b"b"],
    "many stars in a thousand patterns": [b"*a%d*b%d*c%d*d" % (n, n % 7, n % 11) for n in range(1000)],
    "doubled stars": [b"/" + b"**/a/" * 12 + b"b"],
    "alternating includes": [(b"!" if n % 2 else b"") + b"*a%d*b*" % n for n in range(1000)],
    "sets": [b"[!a]*[!b]*" * 5 + b"c"],
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_patterns_do_not_hang(name: str) -> None:
    """A backtracking engine would never finish the first of these. Matching that still takes too long is refused."""
    chance = random.Random(1)
    rules = IgnoreRules(compile_lines(b"\n".join(HOSTILE[name]))[0])
    paths = [b"a" * 250, b"/".join([b"a"] * 500), *(bytes(chance.choices(b"abcd0123/", k=400)) for _ in range(50))]
    with contextlib.suppress(PlanRefused):
        for _ in range(20):
            for path in paths:
                rules.matches(Entry(path.strip(b"/").replace(b"//", b"/a/"), "100644", "", 0))


def test_slow_directory_matching_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("deliveries_app.planning.ignore_rules._ALLOWED_SECONDS", 0.0)
    monkeypatch.setattr("deliveries_app.planning.ignore_rules._ALLOWED_SECONDS_PER_PATH", 0.0)
    rules = IgnoreRules(compile_lines(b"*a*b\n")[0])
    with pytest.raises(PlanRefused, match="Use fewer or simpler patterns"):
        rules.matches(Entry(b"x/y/z", "100644", "", 0))


def test_waiting_for_a_processor_does_not_count_as_matching(monkeypatch) -> None:
    """On a busy machine, ordinary patterns were refused as too slow, and nothing was sent."""
    monkeypatch.setattr("deliveries_app.planning.ignore_rules._ALLOWED_SECONDS", 0.02)
    rules = IgnoreRules(compile_lines(b"*.log\n")[0])
    rules._for_directories = rules._for_files = Mock(matches=lambda path, name: time.sleep(0.05))
    for path in (b"a/b/c", b"d", b"e"):
        assert not rules.matches(Entry(path, "100644", "", 0))


def test_slow_matching_of_sibling_files_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("deliveries_app.planning.ignore_rules._ALLOWED_SECONDS", 0.0)
    monkeypatch.setattr("deliveries_app.planning.ignore_rules._ALLOWED_SECONDS_PER_PATH", 0.0)
    rules = IgnoreRules(compile_lines(b"*a*b\n")[0])
    assert not rules.matches(Entry(b"x", "100644", "", 0))
    with pytest.raises(PlanRefused, match="Use fewer or simpler patterns"):
        rules.matches(Entry(b"y", "100644", "", 0))
