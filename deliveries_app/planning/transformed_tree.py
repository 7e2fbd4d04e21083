"""The tree as transforms make it: sources in byte order → files as they are sent, in byte order of *their* paths.

What a file becomes is read off its row where the row was made from the same blob by the same transforms; else its content
is read and transformed. The results are put in order by a temporary SQLite database on disk, so memory stays constant;
its primary key finds two files that end at one path.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import batched

from deliveries_app.models.deliveries import Kind
from deliveries_app.planning.delivery_rows import SourceRow
from deliveries_app.planning.eligibility import Skipped, reason_by_path, too_large
from deliveries_app.planning.plan import Change, DeliveryRules, Held, Made, Plan
from deliveries_app.planning.transforms import SourceFile, TransformFailed
from repositories_app.git.process import Tick
from repositories_app.mirror.mirror import BlobReader, Entry

_BLOCK = 200  # files whose contents are asked for together
_TABLE = """
    CREATE TABLE file (path TEXT PRIMARY KEY, source TEXT, mode TEXT, blob TEXT, size INTEGER, held INTEGER)
    WITHOUT ROWID
"""
_PUT = """
    INSERT INTO file VALUES (:path, :source, :mode, :blob, :size, 0)
    ON CONFLICT (path) DO UPDATE SET source = :source, mode = :mode, blob = :blob, size = :size, held = 0 WHERE held
"""


class Transforming:
    """For one plan, which is told what is dropped, what collides and what fails. Use it as a context manager."""

    def __init__(self, plan: Plan, delivery_rules: DeliveryRules, reader: BlobReader, tick: Tick) -> None:
        self._plan, self._terms, self._reader, self._tick = plan, delivery_rules, reader, tick
        self._table = sqlite3.connect("", isolation_level=None)  # "": a file that SQLite removes by itself
        self._table.execute(_TABLE)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("BEGIN")

    def __enter__(self) -> "Transforming":
        return self

    def __exit__(self, *exception: object) -> None:
        self._table.close()

    def files(self, entries: Iterable[Entry], rows: Iterable[SourceRow]) -> Iterator[Made | Held]:
        """`entries` and `rows` in byte order of the source paths."""
        for block in batched(_with_rows(entries, rows), _BLOCK):
            self._transform(block)
        yield from self._in_order()

    def _transform(self, block: Iterable[tuple[Entry, list[SourceRow]]]) -> None:
        """In the order of the sources, as the first one gets a path that several want."""
        known = [(entry, rows, self._known(entry, rows)) for entry, rows in block]
        contents = self._reader.read([entry.blob for entry, _, row in known if row is None])
        for entry, rows, row in known:
            if row is not None:
                self._put(entry, row.path, row.size)
                continue
            self._tick()
            try:
                made = self._terms.transforms.apply(SourceFile(entry.path.decode(), next(contents)))
            except TransformFailed as error:
                self._fail(entry, rows, str(error))
                continue
            if made is None:
                self._plan.skip(Skipped(entry.path, "transform", "Dropped by a transform."))
            else:
                self._take(entry, made)

    def _known(self, entry: Entry, rows: list[SourceRow]) -> SourceRow | None:
        if not rows:
            return None
        key = self._terms.source_key(entry.blob, entry.path.decode())
        limit = self._terms.max_file_bytes
        found = (row for row in rows if row.source_key == key and row.size <= limit)
        return next((row for row in found if reason_by_path(row.path.encode()) is None), None)

    def _take(self, entry: Entry, made: SourceFile) -> None:
        """The same rules for the path and the size that a file gets as for those that it had."""
        path = made.path.encode("utf-8", "surrogatepass")
        size = len(made.content)
        reason = reason_by_path(path)
        if reason is None and size > self._terms.max_file_bytes:
            reason = too_large(path, size, self._terms.max_file_bytes)
        if reason is None:
            self._put(entry, made.path, size)
        else:
            self._plan.skip(Skipped(entry.path, reason.cause, f"After its transforms: {reason.message}"))

    def _put(self, entry: Entry, path: str, size: int) -> None:
        facts = {
            "path": path,
            "source": entry.path.decode(),
            "mode": entry.mode,
            "blob": entry.blob,
            "size": size,
        }
        if self._table.execute(_PUT, facts).rowcount == 0:
            (other,) = self._table.execute("SELECT source FROM file WHERE path = ?", [path]).fetchone()
            self._collide(entry.path.decode(), path, other)

    def _collide(self, source: str, path: str, other: str) -> None:
        words = f"Its transforms give it the path {path}, which {other} has already."
        self._plan.skip(Skipped(source.encode(), "collision", words))

    def _fail(self, entry: Entry, rows: list[SourceRow], message: str) -> None:
        """It counts as a file that was tried and failed; what the app has of it stays until the transform works."""
        source = entry.path.decode()
        self._plan.tree_files += 1
        self._plan.tree_bytes += entry.size
        self._plan.add(
            Change(
                Kind.CREATE.value, source, entry.mode, entry.blob, entry.size, "", None, None, False, False, 0, None,
                source, message,
            )
        )  # fmt: skip
        for path in {source, *(row.path for row in rows)}:
            self._table.execute(
                "INSERT OR IGNORE INTO file VALUES (?, ?, ?, ?, 0, 1)", [path, source, entry.mode, entry.blob]
            )

    def _in_order(self) -> Iterator[Made | Held]:
        """A file cannot lie in a directory that is a file: what is above wins."""
        above: list[tuple[str, str]] = []  # (path, source) of files whose path the current one begins with
        for path, source, mode, blob, size, held in self._table.execute("SELECT * FROM file ORDER BY path"):
            if held:
                yield Held(path.encode(), mode, blob, size, source)
                continue
            while above and not path.startswith(above[-1][0]):
                above.pop()
            blocking = next((other for other in above if path.startswith(f"{other[0]}/")), None)
            if blocking:
                self._plan.skip(
                    Skipped(
                        source.encode(),
                        "collision",
                        f"Its transforms give it the path {path}, which lies below the file that {blocking[1]} becomes.",
                    )
                )
                continue
            above.append((path, source))
            yield Made(path.encode(), mode, blob, size, source)


def _with_rows(entries: Iterable[Entry], rows: Iterable[SourceRow]) -> Iterator[tuple[Entry, list[SourceRow]]]:
    """Each entry with the rows that were made from it."""
    waiting = iter(rows)
    row = next(waiting, None)
    for entry in entries:
        path = entry.path.decode()
        made_from = []
        while row is not None and row.source_path <= path:
            if row.source_path == path:
                made_from.append(row)
            row = next(waiting, None)
        yield entry, made_from
