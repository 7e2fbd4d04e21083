"""What a plan reads of the database: `Delivery` rows in byte order of the paths, page by page, so that memory stays
constant, and the terms that decide whether they count."""

from collections.abc import Iterator, Sequence
from typing import Any

from django.conf import settings

from deliveries_app.models import AppRepository, Delivery, DeliveryFailure, FailureKind
from deliveries_app.plan import Row, Terms

PAGE = 2000
_COLUMNS = (
    "path", "kind", "source_key", "sha", "intent", "generation", "acknowledged", "held_sha", "attempts", "hold_until",
)  # fmt: skip


def terms_of(pair: AppRepository) -> Terms:
    """What decides now whether the pair's rows count."""
    return Terms(pair.generation, pair.resend_floor, settings.MAX_FILE_BYTES)


def all_rows(pair_pk: int) -> Iterator[Row]:
    """Every row of the pair."""
    last = ""
    while True:
        page = list(
            Delivery.objects.filter(pair_id=pair_pk, path__gt=last).order_by("path").values_list(*_COLUMNS)[:PAGE]
        )
        yield from map(_row, page)
        if len(page) < PAGE:
            return
        last = page[-1][0]


def rows_at(pair_pk: int, paths: Sequence[str]) -> Iterator[Row]:
    """The rows of these paths, which come in byte order and so do the rows."""
    for start in range(0, len(paths), PAGE):
        part = paths[start : start + PAGE]
        yield from map(
            _row, Delivery.objects.filter(pair_id=pair_pk, path__in=part).order_by("path").values_list(*_COLUMNS)
        )


def unsettled_paths(pair_pk: int, limit: int) -> list[str] | None:
    """Paths in doubt and paths listed as failed; None when they are more than `limit`."""
    doubtful = Delivery.objects.filter(pair_id=pair_pk, acknowledged=False).values_list("path", flat=True)
    failed = DeliveryFailure.objects.filter(pair_id=pair_pk, kind=FailureKind.FAILED).values_list("path", flat=True)
    paths = {*doubtful[: limit + 1], *failed[: limit + 1]}
    return sorted(paths) if len(paths) <= limit else None


def held(pair_pk: int) -> Iterator[tuple[str, str]]:
    """(path, sha) of every file that the app acknowledged, in byte order of the paths."""
    return (
        Delivery.objects.filter(pair_id=pair_pk, acknowledged=True)
        .order_by("path")
        .values_list("path", "sha")
        .iterator(chunk_size=PAGE)
    )


def _row(values: tuple[Any, ...]) -> Row:
    row = Row._make(values)
    return row._replace(hold_until=values[-1].timestamp()) if values[-1] else row
