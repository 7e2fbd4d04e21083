"""What has to be sent: the tree of a commit joined with what the app holds. Pure and streaming.

Both sides come in byte order of their paths (`git ls-tree -r` and the database agree on it, and so does Python's
comparison of `str`), so the join needs one row of each in memory. The result is spooled to temporary files, one per
phase, and each phase ends with what has failed before: files that always fail must not keep others from being tried.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from deliveries_app.kinds import PHASES, Kind
from repositories_app.mirror import Entry

MAX_PATH_BYTES = 1024
MAX_SKIPPED_LISTED = 1000
REGULAR = {"100644", "100755", "100664"}


class Row(NamedTuple):
    """What the plan reads of a `Delivery`, in this order."""

    path: str
    kind: str
    source_key: str | None
    sha: str
    intent: int
    generation: int
    acknowledged: bool
    held_sha: str | None
    attempts: int
    hold_until: float | None


class Change(NamedTuple):
    """One notification to send. `blob` and `size` are the source's; `sha` is what the app holds, set for deletes and
    where `compare` is.

    `intent` is kept from the row when it is the same notification again, else None. `lenient`: a delete that the client
    may rightly answer with "not here". `compare`: adopt the row if the content is what it says (after an import).
    """

    kind: str
    path: str
    mode: str
    blob: str
    size: int
    sha: str
    previous_sha: str | None
    intent: int | None
    lenient: bool
    compare: bool
    attempts: int
    hold_until: float | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A path that is not sent, and why."""

    path: bytes
    cause: str
    message: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What decides whether a row counts: the run's generation, the pair's floor, the version of the rules."""

    generation: int
    floor: int
    max_file_bytes: int

    def source_key(self, blob: str) -> str:
        """What the content is made from; the same key means the same content."""
        return blob

    @property
    def fingerprint(self) -> str:
        """Of everything but the tree that decides what is sent: with another one, only a full plan is right."""
        facts = f"1|{self.floor}|{self.max_file_bytes}|{MAX_PATH_BYTES}"
        return hashlib.sha256(facts.encode()).hexdigest()


class Spool:
    """A list of changes on disk: append, then iterate once in order."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self.count = 0

    def append(self, change: Change) -> None:
        self._file.write(orjson.dumps(tuple(change)) + b"\n")
        self.count += 1

    def __iter__(self) -> Iterator[Change]:
        self._file.seek(0)
        for line in self._file:
            yield Change(*orjson.loads(line))

    def close(self) -> None:
        self._file.close()


@dataclass
class Plan:
    """The changes of each phase, fresh ones first, and the numbers of the tree that they lead to."""

    files: int = 0
    bytes: int = 0
    tree_files: int = 0
    tree_bytes: int = 0
    skipped_count: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    _spools: dict[tuple[str, bool], Spool] = field(
        default_factory=lambda: {(kind, tried): Spool() for kind in PHASES for tried in (False, True)}
    )

    def add(self, change: Change) -> None:
        self._spools[change.kind, change.attempts > 0].append(change)
        self.files += 1
        self.bytes += change.size

    def skip(self, skipped: Skipped) -> None:
        self.skipped_count += 1
        if len(self.skipped) < MAX_SKIPPED_LISTED:
            self.skipped.append(skipped)

    def phase(self, kind: str) -> Iterator[Change]:
        yield from self._spools[kind, False]
        yield from self._spools[kind, True]

    def count(self, kind: str) -> int:
        return self._spools[kind, False].count + self._spools[kind, True].count

    def close(self) -> None:
        for spool in self._spools.values():
            spool.close()


def reason_to_skip(entry: Entry, max_file_bytes: int) -> Skipped | None:
    """Why a tree entry is not sent, None for one that is."""
    if entry.mode == "120000":
        return Skipped(entry.path, "symlink", "Symbolic links are not sent.")
    if entry.mode == "160000":
        return Skipped(entry.path, "submodule", "Submodules are not sent; watch their repository instead.")
    if entry.mode not in REGULAR:
        return Skipped(entry.path, "other", f"Entries of mode {entry.mode} are not sent.")
    if len(entry.path) > MAX_PATH_BYTES:
        return Skipped(entry.path, "path_too_long", f"Paths over {MAX_PATH_BYTES} bytes are not sent.")
    if entry.size > max_file_bytes:
        return Skipped(
            entry.path, "too_large", f"{entry.size:,} bytes are more than MAX_FILE_BYTES ({max_file_bytes:,})."
        )
    try:
        entry.path.decode("utf-8")
    except UnicodeDecodeError:
        return Skipped(entry.path, "not_utf8", "The path is not UTF-8 and cannot be written in JSON.")
    return None


def make_plan(entries: Iterable[Entry], rows: Iterable[Row], terms: Terms) -> Plan:
    """The whole plan: every tree entry and every row, both in byte order of their paths."""
    plan = Plan()
    for path, entry, row in _join(_eligible(entries, terms, plan), rows):
        change = decide(path, entry, row, terms)
        if change is not None:
            plan.add(change)
    return plan


def _eligible(entries: Iterable[Entry], terms: Terms, plan: Plan) -> Iterator[Entry]:
    for entry in entries:
        skipped = reason_to_skip(entry, terms.max_file_bytes)
        if skipped:
            plan.skip(skipped)
        else:
            plan.tree_files += 1
            plan.tree_bytes += entry.size
            yield entry


def _join(entries: Iterable[Entry], rows: Iterable[Row]) -> Iterator[tuple[str, Entry | None, Row | None]]:
    left, right = iter(entries), iter(rows)
    entry, row = next(left, None), next(right, None)
    path = entry.path.decode() if entry else ""
    while entry or row:
        if entry and (row is None or path < row.path):
            yield path, entry, None
            entry = next(left, None)
            path = entry.path.decode() if entry else ""
        elif row and (entry is None or row.path < path):
            yield row.path, None, row
            row = next(right, None)
        else:
            yield path, entry, row
            entry, row = next(left, None), next(right, None)
            path = entry.path.decode() if entry else ""


def decide(path: str, entry: Entry | None, row: Row | None, terms: Terms) -> Change | None:
    """The rules of `engine.md` §2 for one path; None when there is nothing to send."""
    if entry is None:
        return _delete(row, terms) if row else None
    if row is None:
        return _write(Kind.CREATE, path, entry, None, None)
    key = terms.source_key(entry.blob)
    if not row.acknowledged:
        # Announced by this very generation: the same notification again. Anything else: what the client holds is open.
        same = row.generation == terms.generation and row.source_key == key and row.kind != Kind.DELETE
        return _write(row.kind if same else Kind.CREATE, path, entry, row, row.intent if same else None)
    if row.generation < terms.floor:
        return _write(Kind.CREATE, path, entry, row, None)
    if row.source_key == key:
        return None
    return _write(Kind.UPDATE, path, entry, row, None, compare=row.source_key is None)


def _write(kind: str, path: str, entry: Entry, row: Row | None, intent: int | None, *, compare: bool = False) -> Change:
    previous = row.held_sha if row and kind == Kind.UPDATE else None
    attempts, hold = (row.attempts, row.hold_until) if row and not row.acknowledged else (0, None)
    sha = row.sha if row and compare else ""
    return Change(
        str(kind), path, entry.mode, entry.blob, entry.size, sha, previous, intent, False, compare, attempts, hold
    )


def _delete(row: Row, terms: Terms) -> Change:
    same = row.kind == Kind.DELETE and not row.acknowledged and row.generation == terms.generation
    lenient = not row.acknowledged or row.generation < terms.floor
    attempts, hold = (row.attempts, row.hold_until) if not row.acknowledged else (0, None)
    return Change(
        Kind.DELETE.value,
        row.path,
        "",
        "",
        0,
        row.held_sha or row.sha,
        None,
        row.intent if same else None,
        lenient,
        False,
        attempts,
        hold,
    )
