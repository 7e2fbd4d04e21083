"""Transform a tree: take source files in byte order, and yield the files to send in byte order of their own paths.

If a row was made from the same blob by the same transforms, its path and size are reused. Otherwise the content is read
and transformed. A temporary SQLite database on disk sorts the results, so memory use stays constant. Its primary key
detects files that end up at the same path.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import batched

from deliveries_app.models.deliveries import Kind
from deliveries_app.planning.delivery_rows import SourceRow
from deliveries_app.planning.eligibility import Skipped, reason_after_transforms
from deliveries_app.planning.plan import Change, DeliveryRules, Plan, RetainedEntry, TransformedEntry
from deliveries_app.planning.transforms import SourceFile, TransformFailed
from repositories_app.git.process import Tick
from repositories_app.mirror.blobs import BlobReader
from repositories_app.mirror.tree import Entry

_BLOCK = 200  # files whose contents are requested together
_TABLE = """
    CREATE TABLE file (path TEXT PRIMARY KEY, source TEXT, mode TEXT, blob TEXT, size INTEGER, retained INTEGER)
    WITHOUT ROWID
"""
_PUT = """
    INSERT INTO file VALUES (:path, :source, :mode, :blob, :size, 0)
    ON CONFLICT (path) DO UPDATE SET source = :source, mode = :mode, blob = :blob, size = :size, retained = 0
    WHERE retained
"""


class TransformedTree:
    """The transformed tree for one plan. Dropped, colliding and failed files are added to the plan.

    Use it as a context manager.
    """

    def __init__(self, plan: Plan, delivery_rules: DeliveryRules, reader: BlobReader, tick: Tick) -> None:
        self._plan, self._rules, self._reader, self._tick = plan, delivery_rules, reader, tick
        self._table = sqlite3.connect("", isolation_level=None)  # "": a temporary file that SQLite deletes
        self._table.execute(_TABLE)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("BEGIN")

    def __enter__(self) -> "TransformedTree":
        return self

    def __exit__(self, *exception: object) -> None:
        self._table.close()

    def files(self, entries: Iterable[Entry], rows: Iterable[SourceRow]) -> Iterator[TransformedEntry | RetainedEntry]:
        """Yield the transformed files. `entries` and `rows` are in byte order of the source paths.

        Reads all of them before it yields the first file.
        """
        for block in batched(_with_rows(entries, rows), _BLOCK):
            self._transform(block)
        yield from self._sorted()

    def _transform(self, block: Iterable[tuple[Entry, list[SourceRow]]]) -> None:
        """Transform in the order of the sources: if several get the same path, the first one keeps it."""
        sources = [(entry, rows, self._reusable_row(entry, rows)) for entry, rows in block]
        contents = self._reader.read([entry.blob for entry, _, row in sources if row is None])
        for entry, rows, row in sources:
            if row is not None:
                self._put(entry, row.path, row.size)
                continue
            self._tick()
            try:
                result = self._rules.transforms.apply(SourceFile(entry.path.decode(), next(contents)))
            except TransformFailed as error:
                self._fail(entry, rows, str(error))
                continue
            if result is None:
                self._plan.skip(Skipped(entry.path, "transform"))
            else:
                self._accept(entry, result)

    def _reusable_row(self, entry: Entry, rows: list[SourceRow]) -> SourceRow | None:
        """Return the row that was already made from this entry by the same transforms."""
        if not rows:
            return None
        key = self._rules.source_key(entry.blob, entry.path.decode())
        limit = self._rules.max_file_bytes
        same = (row for row in rows if row.source_key == key)
        return next((row for row in same if not reason_after_transforms(entry.path, row.path, row.size, limit)), None)

    def _accept(self, entry: Entry, result: SourceFile) -> None:
        """Apply the same path and size rules to the result as to the source."""
        size = len(result.content)
        reason = reason_after_transforms(entry.path, result.path, size, self._rules.max_file_bytes)
        if reason:
            self._plan.skip(reason)
        else:
            self._put(entry, result.path, size)

    def _put(self, entry: Entry, path: str, size: int) -> None:
        source = entry.path.decode()
        values = {"path": path, "source": source, "mode": entry.mode, "blob": entry.blob, "size": size}
        if self._table.execute(_PUT, values).rowcount == 0:
            (other,) = self._table.execute("SELECT source FROM file WHERE path = ?", [path]).fetchone()
            self._skip_collision(source, f"Its transforms give it the path {path}, which {other} already has.")

    def _skip_collision(self, source: str, message: str) -> None:
        self._plan.skip(Skipped(source.encode(), "collision", message))

    def _fail(self, entry: Entry, rows: list[SourceRow], message: str) -> None:
        """Add the file as a failed change. The app keeps its copy until the transform works."""
        source = entry.path.decode()
        self._plan.tree_files += 1
        self._plan.tree_bytes += entry.size
        kind = Kind.CREATE.value
        self._plan.add(Change(kind, source, entry.mode, entry.blob, entry.size, source_path=source, failure=message))
        for path in {source, *(row.path for row in rows)}:
            self._table.execute(
                "INSERT OR IGNORE INTO file VALUES (?, ?, ?, ?, 0, 1)", [path, source, entry.mode, entry.blob]
            )

    def _sorted(self) -> Iterator[TransformedEntry | RetainedEntry]:
        """Yield the files by path, without those whose path would be below another file."""
        prefixes: list[tuple[str, str]] = []  # (path, source) of earlier files whose path the current path starts with
        for path, source, mode, blob, size, retained in self._table.execute("SELECT * FROM file ORDER BY path"):
            if retained:
                yield RetainedEntry(path.encode(), mode, blob, size, source)
                continue
            while prefixes and not path.startswith(prefixes[-1][0]):
                prefixes.pop()
            parent = next((other for other in prefixes if path.startswith(f"{other[0]}/")), None)
            if parent:
                message = f"Its transforms give it the path {path}, which is below the file that {parent[1]} becomes."
                self._skip_collision(source, message)
                continue
            prefixes.append((path, source))
            yield TransformedEntry(path.encode(), mode, blob, size, source)


def _with_rows(entries: Iterable[Entry], rows: Iterable[SourceRow]) -> Iterator[tuple[Entry, list[SourceRow]]]:
    """Yield each entry with the rows that were made from it."""
    remaining = iter(rows)
    row = next(remaining, None)
    for entry in entries:
        path = entry.path.decode()
        rows_of_entry = []
        while row is not None and row.source_path <= path:
            if row.source_path == path:
                rows_of_entry.append(row)
            row = next(remaining, None)
        yield entry, rows_of_entry
