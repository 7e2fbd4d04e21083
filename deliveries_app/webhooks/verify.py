"""Read an app's answers to `/verify`, and compare the files in them with what the app has acknowledged. Pure.

Both sides are in byte order of the paths, so the comparison keeps one page and one row in memory.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from deliveries_app.models import DriftKind
from deliveries_app.planning.delivery_rows import HeldFile
from deliveries_app.planning.paths import MAX_PATH_BYTES, is_unsafe
from docora.text import clean_text, visible

MAX_ANSWER_BYTES = 1024 * 1024
MAX_ENTRIES = 4000  # of one page; at 262 bytes each, they fill it
MAX_LISTED = 10_000  # differences of one check
_SHA = re.compile(r"[0-9a-f]{64}")


class Unusable(ValueError):
    """The answer does not follow the webhook reference. The message says in one sentence how."""


class Entry(NamedTuple):
    """One file that the app says it holds."""

    path: str
    sha: str


@dataclass(frozen=True)
class Page:
    """One answer: `is_equal`, or some files. `after` is the path to continue after; None on the last page."""

    is_equal: bool = False
    files: tuple[Entry, ...] = ()
    after: str | None = None


class Difference(NamedTuple):
    """One file that differs. `sha` is what the app holds, `sequence` that of the notification which it acknowledged."""

    path: str
    kind: DriftKind
    sha: str = ""
    sequence: int | None = None


def read_page(body: bytes, *, tree_sha256: str, after: str, limit: int) -> Page:
    """Parse the answer to a request with these fields. Raises `Unusable`."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Unusable("The answer isn't JSON.") from None
    if not isinstance(answer, dict):
        raise Unusable("The answer isn't a JSON object.")
    if "files" not in answer:
        return _read_hash(answer, tree_sha256, after)
    files, following = answer["files"], answer.get("next")
    if not isinstance(files, list):
        raise Unusable("files isn't a list.")
    if len(files) > limit:
        raise Unusable(f"The answer has {len(files):,} files, but limit was {limit:,}.")
    entries = tuple(_read_files(files, after))
    if following is not None and not (entries and following == entries[-1].path):
        raise Unusable("next is neither null nor the path of the last file.")
    return Page(files=entries, after=following)


def _read_hash(answer: dict[str, Any], tree_sha256: str, after: str) -> Page:
    if "tree_sha256" not in answer:
        raise Unusable("The answer has neither tree_sha256 nor files.")
    if answer["tree_sha256"] != tree_sha256:
        raise Unusable("The answer has another tree_sha256, but no files.")
    if after:
        raise Unusable("A page of files was followed by an equal tree_sha256.")
    return Page(is_equal=True)


def _read_files(files: list[Any], after: str) -> Iterator[Entry]:
    last = after
    for entry in files:
        path, sha = (entry.get("path"), entry.get("sha")) if isinstance(entry, dict) else (None, None)
        if not isinstance(path, str) or not isinstance(sha, str):
            raise Unusable("An entry of files has no path or no sha.")
        if not _SHA.fullmatch(sha):
            raise Unusable(f"The sha of {_quoted(path)} isn't a hexadecimal SHA-256 in lower case.")
        as_bytes = path.encode()
        if not path or len(as_bytes) > MAX_PATH_BYTES or is_unsafe(as_bytes):
            raise Unusable(f"{_quoted(path)} isn't a path that Docora sends.")
        if path <= last:
            fault = "is listed twice" if path == last else f"comes after {_quoted(last)}: files must be in byte order"
            raise Unusable(f"{_quoted(path)} {fault}.")
        yield Entry(path, sha)
        last = path


def _quoted(path: str) -> str:
    return f"“{visible(clean_text(path, 100))}”"


@dataclass
class Comparison:
    """A merge of the acknowledged files (`held`) with the pages of the app's files. Call `add` for each page, then `finish`."""

    held: Iterator[HeldFile]
    compared: int = 0
    missing: int = 0
    different: int = 0
    extra: int = 0
    listed: list[Difference] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._next = next(self.held, None)

    def add(self, entries: Iterable[Entry]) -> None:
        for path, sha in entries:
            while self._next is not None and self._next.path < path:
                self._miss(self._next)
            self.compared += 1
            if self._next is None or self._next.path != path:
                self.extra += 1
                self._list(Difference(path, DriftKind.EXTRA, sha))
                continue
            if self._next.sha != sha:
                self.different += 1
                self._list(Difference(path, DriftKind.DIFFERENT, sha, self._next.sequence))
            self._next = next(self.held, None)

    def finish(self) -> None:
        """Count the files after the last page, which the app lacks, as missing."""
        while self._next is not None:
            self._miss(self._next)

    @property
    def differences(self) -> int:
        return self.missing + self.different + self.extra

    def _miss(self, held: HeldFile) -> None:
        self.compared += 1
        self.missing += 1
        self._list(Difference(held.path, DriftKind.MISSING, "", held.sequence))
        self._next = next(self.held, None)

    def _list(self, difference: Difference) -> None:
        if len(self.listed) < MAX_LISTED:
            self.listed.append(difference)
