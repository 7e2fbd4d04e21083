"""Delivered files become `Delivery` rows: acknowledged, of the first generation, and without a source key, so that the
first sync compares each by its SHA-256 and adopts what is equal (`engine.md` §2).

The statement is written by hand: by the ORM a million rows take several times as long.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import batched

from django.db import connection, transaction
from django.utils import timezone

from deliveries_app.importing.source import SourceFile
from deliveries_app.models import AppRepository, Delivery

_BATCH = 2000  # rows in one transaction

# Size and mode are not known; the adoption fills them in.
_INSERT = (
    "INSERT INTO deliveries_app_delivery (pair_id, path, sha, held_sha, updated_at, source_path, mode, kind, size, intent,"
    " generation, acknowledged, remark, attempts) {rows} ON CONFLICT (pair_id, path) DO NOTHING"
)
_THE_SAME = "'', '100644', 'create', 0, 0, 1, true, '', 0"
_ARRAYS = _INSERT.format(
    rows=f"SELECT %s, new.path, new.sha, new.sha, new.at, {_THE_SAME}"  # noqa: S608
    " FROM unnest(%s::text[], %s::text[], %s::timestamptz[]) AS new (path, sha, at)"
)
_ROW = _INSERT.format(rows=f"VALUES (%s, %s, %s, %s, %s, {_THE_SAME})")


def write_records(pair: AppRepository, files: Iterable[SourceFile]) -> int:
    """How many were new. Those that are here already stay as they are, which makes an interrupted import go on.

    Every batch makes sure that the watch is still arriving: it ends with the first one that finds it unwatched.
    """
    rows = Delivery.objects.filter(pair=pair)
    before = rows.count()
    for batch in batched(files, _BATCH):
        with transaction.atomic():
            arriving = AppRepository.objects.filter(pk=pair.pk, arriving=True, ended_at=None).order_by()
            if not arriving.select_for_update(no_key=True).values_list("pk"):
                break
            _insert(pair.pk, batch, timezone.now())
    return rows.count() - before


def _insert(pair_pk: int, files: Sequence[SourceFile], now: datetime) -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            paths, shas, times = zip(*files, strict=True)
            cursor.execute(_ARRAYS, [pair_pk, list(paths), list(shas), [time or now for time in times]])
        else:
            adapt = connection.ops.adapt_datetimefield_value
            cursor.executemany(_ROW, [(pair_pk, path, sha, sha, adapt(time or now)) for path, sha, time in files])
