"""What has to be sent: the files of a commit joined with what the app holds. Pure and streaming.

Both sides come in byte order of their paths (`git ls-tree -r` and the database agree on it, and so does Python's
comparison of `str`), so the join needs one row of each in memory. The result is spooled to temporary files, one per
phase, and each phase ends with what has failed before: files that always fail must not keep others from being tried.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import orjson

from deliveries_app.models.deliveries import PHASES, Kind
from deliveries_app.planning import transforms
from deliveries_app.planning.eligibility import UNLISTED, Skipped, eligible
from deliveries_app.planning.paths import MAX_PATH_BYTES
from deliveries_app.planning.transforms import Transforms
from repositories_app.mirror.mirror import Entry

MAX_SKIPPED_LISTED = 1000


class Row(NamedTuple):
    """What the plan reads of a `Delivery`, in this order."""

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
    """One notification to send. `blob` is the source's; `size` is that of what is sent; `sha` is what the app holds, set
    for deletes and where `compare` is.

    `source_path` is set while transforms are in use; `failure` says that they failed, and nothing can be sent.
    `sequence` is kept from the row when it is the same notification again, else None. `lenient`: a delete that the client
    may rightly answer with "not here". `compare`: adopt the row if the content is what it says (after an import, or
    where transforms are or were in use).
    """

    kind: str
    path: str
    mode: str
    blob: str
    size: int
    sha: str
    previous_sha: str | None
    sequence: int | None
    lenient: bool
    compare: bool
    attempts: int
    hold_until: float | None
    source_path: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Made(Entry):
    """A file as transforms made it: `path` and `size` are of what is sent, `mode` and `blob` the source's."""

    source_path: str


@dataclass(frozen=True, slots=True)
class Held(Entry):
    """A path whose row stays as it is if it came from `source_path`: what that would be now cannot be told."""

    source_path: str


@dataclass(frozen=True)
class DeliveryRules:
    """What decides whether a row counts: the run's generation, the watch's floor, and the rules outside the tree: the
    limit, the watch's ignore `patterns`, the `transforms`."""

    generation: int
    floor: int
    max_file_bytes: int
    patterns: str = ""
    transforms: Transforms = transforms.NONE

    def source_key(self, blob: str, source_path: str = "") -> str:
        """What the content is made from; the same key means the same content. A transform may look at the path too."""
        if not self.transforms:
            return blob
        made_by = hashlib.sha256(f"{self.transforms.fingerprint}|{source_path}".encode()).hexdigest()
        return f"{blob}:{made_by[:32]}"

    @cached_property
    def fingerprint(self) -> str:
        """Of everything but the tree that decides what is sent: with another one, only a full plan is right."""
        patterns = hashlib.sha256(self.patterns.encode()).hexdigest()
        facts = f"2|{self.floor}|{self.max_file_bytes}|{MAX_PATH_BYTES}|{patterns}|{self.transforms.fingerprint}"
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
    """The changes of each phase, fresh ones first, and the numbers of the tree that they lead to.

    `left_out`: cause → files of that tree that are not sent. `skipped`: what is to be listed of them, and remarks. `kept`:
    paths that the app holds on to while their transforms fail.
    """

    files: int = 0
    bytes: int = 0
    tree_files: int = 0
    tree_bytes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    _spools: dict[tuple[str, bool], Spool] = field(
        default_factory=lambda: {(kind, tried): Spool() for kind in PHASES for tried in (False, True)}
    )

    def add(self, change: Change) -> None:
        self._spools[change.kind, change.attempts > 0].append(change)
        self.files += 1
        self.bytes += change.size

    def skip(self, skipped: Skipped) -> None:
        self.left_out[skipped.cause] += 1
        if skipped.cause not in UNLISTED and len(self.skipped) < MAX_SKIPPED_LISTED:
            self.skipped.append(skipped)

    def phase(self, kind: str) -> Iterator[Change]:
        yield from self._spools[kind, False]
        yield from self._spools[kind, True]

    def count(self, kind: str) -> int:
        return self._spools[kind, False].count + self._spools[kind, True].count

    def close(self) -> None:
        for spool in self._spools.values():
            spool.close()


def make_plan(
    entries: Iterable[Entry],
    rows: Iterable[Row],
    delivery_rules: DeliveryRules,
    ignores: Callable[[Entry], bool] | None = None,
) -> Plan:
    """The whole plan: every tree entry and every row, both in byte order of their paths."""
    plan = Plan()
    fill(plan, eligible(entries, delivery_rules.max_file_bytes, ignores, plan.skip), rows, delivery_rules)
    return plan


def fill(plan: Plan, entries: Iterable[Entry], rows: Iterable[Row], delivery_rules: DeliveryRules) -> None:
    """Plan for these files, all of which are to be sent, and every row, both in byte order of their paths."""
    files = size = 0
    for path, entry, row in _join(entries, rows):
        if entry is not None and type(entry) is not Held:
            files += 1
            size += entry.size
        change = decide(path, entry, row, delivery_rules)
        if change is not None:
            plan.add(change)
        elif row is not None and type(entry) is Held:
            plan.kept.append(path)
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
    """The rules of `engine.md` §2 for one path; None when there is nothing to send."""
    if entry is None:
        return _delete(row, delivery_rules) if row else None
    if isinstance(entry, Held):
        return None if row is None or _is_held(row, entry) else _delete(row, delivery_rules)
    if row is None:
        return _write(Kind.CREATE, path, entry, None, None)
    key = delivery_rules.source_key(entry.blob, _source_path(entry)) if delivery_rules.transforms else entry.blob
    if not row.acknowledged:
        # Announced by this very generation: the same notification again. Anything else: what the client holds is open.
        same = row.generation == delivery_rules.generation and row.source_key == key and row.kind != Kind.DELETE
        return _write(row.kind if same else Kind.CREATE, path, entry, row, row.sequence if same else None)
    if row.generation < delivery_rules.floor:
        return _write(Kind.CREATE, path, entry, row, None)
    if row.source_key == key:
        return None
    # Another key need not mean another content, where it is unknown or says more than the blob.
    compare = row.source_key is None or ":" in row.source_key or bool(delivery_rules.transforms)
    return _write(Kind.UPDATE, path, entry, row, None, compare=compare)


def _source_path(entry: Entry) -> str:
    return entry.source_path if isinstance(entry, Made) else ""


def _is_held(row: Row, held: Held) -> bool:
    return row.kind != Kind.DELETE and (row.source_path or row.path) == held.source_path


def _write(
    kind: str, path: str, entry: Entry, row: Row | None, sequence: int | None, *, compare: bool = False
) -> Change:
    previous = row.acknowledged_sha if row and kind == Kind.UPDATE else None
    attempts, hold = (row.attempts, row.hold_until) if row and not row.acknowledged else (0, None)
    sha = row.sha if row and compare else ""
    return Change(
        str(kind), path, entry.mode, entry.blob, entry.size, sha, previous, sequence, False, compare, attempts, hold,
        _source_path(entry),
    )  # fmt: skip


def _delete(row: Row, delivery_rules: DeliveryRules) -> Change:
    same = row.kind == Kind.DELETE and not row.acknowledged and row.generation == delivery_rules.generation
    lenient = not row.acknowledged or row.generation < delivery_rules.floor
    attempts, hold = (row.attempts, row.hold_until) if not row.acknowledged else (0, None)
    return Change(
        Kind.DELETE.value,
        row.path,
        "",
        "",
        0,
        row.acknowledged_sha or row.sha,
        None,
        row.sequence if same else None,
        lenient,
        False,
        attempts,
        hold,
    )


class PlanRefused(Exception):
    """What to send cannot be decided before a person changes something; the message says what, `cause` in a word."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause
