"""Compute what to send: a merge join of a commit's files with the delivery rows. Pure and streaming.

Both sides are sorted by the bytes of their paths (`mirror/tree.py`, the database and Python's `str` comparison agree),
so the join keeps one item of each in memory. The result is spooled to temporary files, two per phase: each phase
ends with the files that failed before, so files that always fail do not block the others.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import orjson

from deliveries_app.models.deliveries import PHASES, Kind
from deliveries_app.planning import transforms
from deliveries_app.planning.eligibility import UNLISTED, PatternCheck, Skipped, eligible
from deliveries_app.planning.paths import MAX_PATH_BYTES
from deliveries_app.planning.transforms import Transforms
from repositories_app.mirror.tree import Entry

MAX_SKIPPED_LISTED = 1000
_MAX_LISTED_BYTES = 1 << 20  # of their paths, which may be of any length
_RULES_VERSION = 3
"""Raise this with each change of the rules in `eligibility` and `paths`: each watch then gets a full plan, which applies them."""


class Row(NamedTuple):
    """The columns of a `Delivery` that the plan reads, in query order."""

    path: str
    kind: str
    source_key: str | None
    sha: str
    sequence: int
    generation: int
    acknowledged: bool
    acknowledged_sha: str | None
    attempts: int
    hold_until: float | None
    source_path: str = ""


class Change(NamedTuple):
    """One notification to send.

    - `blob` is the blob of the source file, `size` the size of what is sent.
    - `sha` is what the app has: set for deletes, and with `compare`.
    - `sequence` is the row's number if this repeats the same notification, else None.
    - `lenient`: a delete for which 404 and 410 count as success.
    - `compare`: if the content matches the row's `sha`, adopt the row instead of sending (after an import, or if
      transforms are or were active).
    - `source_path` is set while transforms are active. `failure` says why they failed; then nothing is sent.
    """

    kind: str
    path: str
    mode: str = ""
    blob: str = ""
    size: int = 0
    sha: str = ""
    previous_sha: str | None = None
    sequence: int | None = None
    lenient: bool = False
    compare: bool = False
    attempts: int = 0
    hold_until: float | None = None
    source_path: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class TransformedEntry(Entry):
    """A file after its transforms: `path` and `size` describe what is sent, `mode` and `blob` the source."""

    source_path: str


@dataclass(frozen=True, slots=True)
class RetainedEntry(Entry):
    """A path whose source cannot be transformed. Its row stays unchanged if it was made from `source_path`."""

    source_path: str


@dataclass(frozen=True)
class DeliveryRules:
    """What decides, together with the tree, what is sent: the run's generation, the watch's floor, and the rules for files.

    The rules are the size limit, the watch's ignore `patterns`, the app's own `include` and `exclude` patterns, and the
    `transforms`.
    """

    generation: int
    floor: int
    max_file_bytes: int
    patterns: str = ""
    transforms: Transforms = transforms.NONE
    include: str = ""
    exclude: str = ""

    @property
    def has_patterns(self) -> bool:
        """Whether this watch has patterns of its own, so that its totals say little about those of other watches."""
        return bool(self.patterns or self.include or self.exclude)

    def source_key(self, blob: str, source_path: str = "") -> str:
        """Return a key for what the content is made from. The same key means the same content.

        With transforms it includes the path, because a transform may depend on it.
        """
        if not self.transforms:
            return blob
        digest = hashlib.sha256(f"{self.transforms.fingerprint}|{source_path}".encode()).hexdigest()
        return f"{blob}:{digest[:32]}"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides what is sent, except the tree. If it changes, a full plan is needed."""
        patterns = hashlib.sha256(self.patterns.encode()).hexdigest()
        text = f"{_RULES_VERSION}|{self.floor}|{self.max_file_bytes}|{MAX_PATH_BYTES}|{patterns}|{self.transforms.fingerprint}"
        if self.include or self.exclude:
            text += "".join(f"|{hashlib.sha256(one.encode()).hexdigest()}" for one in (self.include, self.exclude))
        return hashlib.sha256(text.encode()).hexdigest()


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
    """The changes of each phase, new ones first, and the totals of the resulting tree.

    - `left_out`: cause → number of files in the tree that are not sent.
    - `skipped`: those to list by path, at most `MAX_SKIPPED_LISTED`, and remarks on ignore patterns.
    - `retained`: paths that the app keeps while their transforms fail.
    - `paths`: those that a fast plan covers (None: all paths).
    """

    files: int = 0
    size: int = 0
    tree_files: int = 0
    tree_bytes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    retained: list[str] = field(default_factory=list)
    paths: list[bytes] | None = None
    _listed_bytes: int = 0
    _spools: dict[tuple[str, bool], Spool] = field(
        default_factory=lambda: {(kind, tried): Spool() for kind in PHASES for tried in (False, True)}
    )

    def add(self, change: Change) -> None:
        self._spools[change.kind, change.attempts > 0].append(change)
        self.files += 1
        self.size += change.size

    def skip(self, skipped: Skipped) -> None:
        self.left_out[skipped.cause] += 1
        if skipped.cause in UNLISTED or len(self.skipped) >= MAX_SKIPPED_LISTED:
            return
        if self._listed_bytes < _MAX_LISTED_BYTES:
            self.skipped.append(skipped)
        self._listed_bytes += len(skipped.path)

    def phase(self, kind: str) -> Iterator[Change]:
        yield from self._spools[kind, False]
        yield from self._spools[kind, True]

    def count(self, kind: str) -> int:
        return self._spools[kind, False].count + self._spools[kind, True].count

    @property
    def repeats_deletes(self) -> bool:
        """Whether the plan repeats a delete before it sends other files."""
        deletes = self.count(Kind.DELETE)
        return self.files > deletes > 0 and any(change.sequence is not None for change in self.phase(Kind.DELETE))

    @property
    def has_untried(self) -> bool:
        """Whether there are changes that have not failed before."""
        return any(spool.count for (_, tried), spool in self._spools.items() if not tried)

    def close(self) -> None:
        for spool in self._spools.values():
            spool.close()


def make_plan(
    entries: Iterable[Entry],
    rows: Iterable[Row],
    delivery_rules: DeliveryRules,
    patterns: PatternCheck | None = None,
) -> Plan:
    """Return the plan for these tree entries and rows, both in byte order of their paths."""
    plan = Plan()
    fill(plan, eligible(entries, delivery_rules.max_file_bytes, patterns, plan.skip), rows, delivery_rules)
    return plan


def fill(plan: Plan, entries: Iterable[Entry], rows: Iterable[Row], delivery_rules: DeliveryRules) -> None:
    """Add the changes for these eligible files and rows, both in byte order of their paths."""
    files = size = 0
    for path, entry, row in _join(entries, rows):
        if entry is not None and type(entry) is not RetainedEntry:
            files += 1
            size += entry.size
        change = decide(path, entry, row, delivery_rules)
        if change is not None:
            plan.add(change)
        elif row is not None and type(entry) is RetainedEntry:
            plan.retained.append(path)
    plan.tree_files += files
    plan.tree_bytes += size


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


def decide(path: str, entry: Entry | None, row: Row | None, delivery_rules: DeliveryRules) -> Change | None:
    """Apply the rules of `engine.md` §2 to one path. Return None if there is nothing to send."""
    if entry is None:
        return _delete(row, delivery_rules) if row else None
    if isinstance(entry, RetainedEntry):
        return None if row is None or _is_retained(row, entry) else _delete(row, delivery_rules)
    if row is None:
        return _write(Kind.CREATE, path, entry, None, None)
    key = delivery_rules.source_key(entry.blob, _source_path(entry)) if delivery_rules.transforms else entry.blob
    if not row.acknowledged:
        # Repeat the notification if this generation announced it. Otherwise it is unknown what the client has.
        same = row.generation == delivery_rules.generation and row.source_key == key and row.kind != Kind.DELETE
        return _write(row.kind if same else Kind.CREATE, path, entry, row, row.sequence if same else None)
    if row.generation < delivery_rules.floor:
        return _write(Kind.CREATE, path, entry, row, None)
    if row.source_key == key:
        return None
    # A different key may mean the same content if the old key is unknown, depends on more than the blob, or is a blob id
    # of another object format.
    old = row.source_key
    compare = old is None or ":" in old or len(old) != len(key) or bool(delivery_rules.transforms)
    return _write(Kind.UPDATE, path, entry, row, None, compare=compare)


def _source_path(entry: Entry) -> str:
    return entry.source_path if isinstance(entry, TransformedEntry) else ""


def _is_retained(row: Row, entry: RetainedEntry) -> bool:
    return row.kind != Kind.DELETE and (row.source_path or row.path) == entry.source_path


def _write(
    kind: str, path: str, entry: Entry, row: Row | None, sequence: int | None, *, compare: bool = False
) -> Change:
    previous = row.acknowledged_sha if row and kind == Kind.UPDATE else None
    attempts, hold = (row.attempts, row.hold_until) if row and not row.acknowledged else (0, None)
    sha = row.sha if row and compare else ""
    return Change(
        str(kind), path, entry.mode, entry.blob, entry.size, sha, previous, sequence, compare=compare, attempts=attempts,
        hold_until=hold, source_path=_source_path(entry),
    )  # fmt: skip


def _delete(row: Row, delivery_rules: DeliveryRules) -> Change:
    same = row.kind == Kind.DELETE and not row.acknowledged and row.generation == delivery_rules.generation
    lenient = not row.acknowledged or row.generation < delivery_rules.floor
    attempts, hold = (row.attempts, row.hold_until) if not row.acknowledged else (0, None)
    return Change(
        Kind.DELETE.value, row.path, sha=row.acknowledged_sha or row.sha, sequence=row.sequence if same else None,
        lenient=lenient, attempts=attempts, hold_until=hold,
    )  # fmt: skip


class PlanRefused(Exception):
    """No plan can be made until a user fixes something. The message says what; `cause` is a short code."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause
