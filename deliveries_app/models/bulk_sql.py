"""Hand-written SQL for batches of files. The ORM takes several times as long (`make bench`).

Call these functions inside the batch's transaction. PostgreSQL takes a batch in one statement, with each column as an
array; COPY into a temporary table pays off only for batches much larger than `RECORD_BATCH`. SQLite runs in this process
and takes the batch row by row.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import orjson
from django.db import connection

from docora.db.prepared import prepared

_COUNT = (
    "UPDATE deliveries_app_syncrun SET files_done = files_done + %s, bytes_done = bytes_done + %s,"
    " files_failed = files_failed + %s WHERE id = %s AND outcome = ''"
)
_COUNT_HOUR = (
    "UPDATE deliveries_app_hourlytraffic SET files = files + %s, bytes = bytes + %s, failed = failed + %s,"
    " requests = requests + %s, milliseconds = milliseconds + %s, acknowledged_at = COALESCE(%s, acknowledged_at),"
    " acknowledged_by = COALESCE(%s, acknowledged_by) WHERE app_id = %s AND hour = %s"
)
_TABLE = "deliveries_app_delivery"
_BATCH_COLUMNS = {"watch_id": "bigint", "generation": "bigint", "acknowledged": "boolean", "updated_at": "timestamptz"}
_ROW_COLUMNS = {
    "path": "text", "mode": "text", "kind": "text", "source_key": "text", "sha": "text", "size": "bigint",
    "sequence": "bigint", "attempts": "integer", "source_path": "text", "remark": "text",
}  # fmt: skip
_KEY_COLUMNS = {"watch_id", "path"}
_COLUMNS = ", ".join([*_BATCH_COLUMNS, *_ROW_COLUMNS])
_SOURCE_COLUMNS = ("mode", "source_key", "size", "source_path", "remark")


def _upsert(columns: Iterable[str]) -> str:
    changes = (f"{name} = excluded.{name}" for name in columns if name not in _KEY_COLUMNS)
    return f"ON CONFLICT (watch_id, path) DO UPDATE SET {', '.join(changes)}"


_INSERT_ARRAYS = (
    f"INSERT INTO {_TABLE} ({_COLUMNS}) SELECT {', '.join(f'%s::{kind}' for kind in _BATCH_COLUMNS.values())}, new.*"  # noqa: S608
    f" FROM unnest({', '.join(f'%s::{kind}[]' for kind in _ROW_COLUMNS.values())}) AS new"
)
_INSERT_ROW = f"INSERT INTO {_TABLE} ({_COLUMNS}) VALUES ({', '.join(['%s'] * len([*_BATCH_COLUMNS, *_ROW_COLUMNS]))})"  # noqa: S608
_ON_CONFLICT = {"announce": _upsert([*_BATCH_COLUMNS, *_ROW_COLUMNS]), "adopt": _upsert(_SOURCE_COLUMNS)}
_ACKNOWLEDGED = (
    "acknowledged = TRUE, acknowledged_sha = sha, attempts = 0, hold_until = NULL, updated_at = %s, delivered_at = %s"
)
# The answers are one JSON object, {path: [status, milliseconds]}. PostgreSQL would plan a join with arrays by its
# statistics, which know nothing of a watch that is synced for the first time.
_ACKNOWLEDGE_BATCH = (
    f"UPDATE {_TABLE} SET {_ACKNOWLEDGED}, delivered_status = (answers.by_path -> path ->> 0)::smallint,"  # noqa: S608
    " delivered_ms = (answers.by_path -> path ->> 1)::integer FROM (SELECT %s::jsonb AS by_path) AS answers"
    " WHERE watch_id = %s AND path = ANY(%s::text[])"
)
_ACKNOWLEDGE_ROW = (
    f"UPDATE {_TABLE} SET {_ACKNOWLEDGED}, delivered_status = %s, delivered_ms = %s WHERE watch_id = %s AND path = %s"  # noqa: S608
)


class Announced(NamedTuple):
    """One notification, in the column order of `_ROW_COLUMNS`. `size` is in bytes."""

    path: str
    mode: str
    kind: str
    source_key: str | None
    sha: str
    size: int
    sequence: int
    attempts: int
    source_path: str
    remark: str


class Acknowledged(NamedTuple):
    """A notification that the app has accepted, with the status and the duration in milliseconds."""

    path: str
    status: int
    milliseconds: int


def count(run_pk: int, *, files_done: int, bytes_done: int, files_failed: int) -> bool:
    """Add to the counters of a run. Return False if it has ended."""
    with prepared("count", _COUNT) as statement, connection.cursor() as cursor:
        cursor.execute(statement, [files_done, bytes_done, files_failed, run_pk])
        return bool(cursor.rowcount)


def count_hour(
    app_pk: int, hour: datetime, *, files: int, size: int, failed: int, requests: int, milliseconds: int,
    acknowledged_at: datetime | None, acknowledged_by: str | None,
) -> bool:  # fmt: skip
    """Add to the app's traffic of an hour. Return False if that hour has no row yet."""
    moment = connection.ops.adapt_datetimefield_value
    added = files, size, failed, requests, milliseconds
    values = [*added, moment(acknowledged_at), acknowledged_by, app_pk, moment(hour)]
    with prepared("count_hour", _COUNT_HOUR) as statement, connection.cursor() as cursor:
        cursor.execute(statement, values)
        return bool(cursor.rowcount)


def announce(watch_pk: int, generation: int, rows: Sequence[Announced], now: datetime) -> None:
    """Insert or replace the rows, which must be sorted by path."""
    _write("announce", watch_pk, generation, rows, now)


def adopt(watch_pk: int, generation: int, rows: Sequence[Announced], now: datetime) -> None:
    """Record another source of contents that the app holds already. The rows must be sorted by path.

    Nothing is sent, so the last notifications stay as they are.
    """
    _write("adopt", watch_pk, generation, rows, now)


def _write(how: str, watch_pk: int, generation: int, rows: Sequence[Announced], now: datetime) -> None:
    """Insert the rows. `how` is a key of `_ON_CONFLICT`, which says what happens to rows that exist."""
    acknowledged = how == "adopt"
    batch_values = (watch_pk, generation, acknowledged, connection.ops.adapt_datetimefield_value(now))
    if connection.vendor == "postgresql":
        columns = zip(_ROW_COLUMNS.values(), zip(*rows, strict=True), strict=True)
        arrays = (_texts(values) if kind == "text" else _numbers(values) for kind, values in columns)
        with prepared(how, f"{_INSERT_ARRAYS} {_ON_CONFLICT[how]}") as statement, connection.cursor() as cursor:
            cursor.execute(statement, [*batch_values, *arrays])
    else:
        with connection.cursor() as cursor:
            cursor.executemany(f"{_INSERT_ROW} {_ON_CONFLICT[how]}", [(*batch_values, *row) for row in rows])


def acknowledge(watch_pk: int, rows: Sequence[Acknowledged], now: datetime) -> None:
    """Record that the app holds what was announced for these paths."""
    moment = connection.ops.adapt_datetimefield_value(now)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            answers = orjson.dumps({row.path: row[1:] for row in rows}).decode()
            paths = _texts([row.path for row in rows])
            cursor.execute(_ACKNOWLEDGE_BATCH, [moment, moment, answers, watch_pk, paths])
        else:
            values = [(moment, moment, status, milliseconds, watch_pk, path) for path, status, milliseconds in rows]
            cursor.executemany(_ACKNOWLEDGE_ROW, values)


def _numbers(values: Iterable[int]) -> str:
    return f"{{{','.join(map(str, values))}}}"


def _texts(values: Sequence[str | None]) -> str:
    """Return the values as a PostgreSQL array literal."""
    if all(values):
        joined = '","'.join(values)  # type: ignore[arg-type]
        if "\\" not in joined and joined.count('"') == 2 * (len(values) - 1):  # nothing to escape, the usual case
            return f'{{"{joined}"}}'
    return f"{{{','.join(map(_quoted, values))}}}"


def _quoted(value: str | None) -> str:
    if value is None:
        return "NULL"
    if "\\" in value or '"' in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'
