"""What a plan reads of the database: `Delivery` rows in byte order of the paths, page by page, so that memory stays
constant, and the terms that decide whether they count."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from django.conf import settings
from django.db.models import Count, Q

from deliveries_app.models import AppRepository, Delivery, DeliveryFailure, FailureKind
from deliveries_app.planning import transforms
from deliveries_app.planning.plan import DeliveryRules, Plan, Row

PAGE = 2000
_COLUMNS = (
    "path", "kind", "source_key", "sha", "sequence", "generation", "acknowledged", "acknowledged_sha", "attempts", "hold_until",
    "source_path",
)  # fmt: skip

_HOLD_UNTIL = _COLUMNS.index("hold_until")


class SourceRow(NamedTuple):
    """What a row says about the file of the repository that it was made from, in this order."""

    source_path: str
    path: str
    source_key: str | None
    size: int


def delivery_rules_of(watch: AppRepository) -> DeliveryRules:
    """What decides now whether the watch's rows count."""
    return DeliveryRules(
        watch.generation, watch.resend_floor, settings.MAX_FILE_BYTES, watch.ignore_patterns, transforms.active()
    )


def all_rows(watch_pk: int) -> Iterator[Row]:
    """Every row of the watch."""
    last = ""
    while True:
        page = list(
            Delivery.objects.filter(watch_id=watch_pk, path__gt=last).order_by("path").values_list(*_COLUMNS)[:PAGE]
        )
        yield from map(_row, page)
        if len(page) < PAGE:
            return
        last = page[-1][0]


def by_source(watch_pk: int) -> Iterator[SourceRow]:
    """The rows that were made by transforms, in byte order of their source paths."""
    made = Delivery.objects.filter(watch_id=watch_pk).exclude(source_path="").order_by("source_path", "path")
    last: SourceRow | None = None
    while True:
        rest = (
            made.filter(Q(source_path=last.source_path, path__gt=last.path) | Q(source_path__gt=last.source_path))
            if last
            else made
        )
        page = [SourceRow._make(values) for values in rest.values_list(*SourceRow._fields)[:PAGE]]
        yield from page
        if len(page) < PAGE:
            return
        last = page[-1]


def remarked(watch_pk: int) -> dict[str, int]:
    """Remark → how many files that the app was told about have it."""
    marked = Delivery.objects.filter(watch_id=watch_pk).exclude(remark="").order_by()
    return dict(marked.values_list("remark").annotate(Count("pk")))


def tree_facts(watch_pk: int, plan: Plan) -> dict[str, Any]:
    """Columns of the watch that tell of the planned tree."""
    left_out = dict(plan.left_out) | remarked(watch_pk)
    return {"tree_files": plan.tree_files, "tree_bytes": plan.tree_bytes, "left_out": left_out}


def rows_at(watch_pk: int, paths: Sequence[str]) -> Iterator[Row]:
    """The rows of these paths, which come in byte order and so do the rows."""
    for start in range(0, len(paths), PAGE):
        part = paths[start : start + PAGE]
        yield from map(
            _row, Delivery.objects.filter(watch_id=watch_pk, path__in=part).order_by("path").values_list(*_COLUMNS)
        )


def unsettled_paths(watch_pk: int, limit: int) -> list[str] | None:
    """Paths in doubt and paths listed as failed; None when they are more than `limit`."""
    doubtful = Delivery.objects.filter(watch_id=watch_pk, acknowledged=False).values_list("path", flat=True)
    failed = DeliveryFailure.objects.filter(watch_id=watch_pk, kind=FailureKind.FAILED).values_list("path", flat=True)
    paths = {*doubtful[: limit + 1], *failed[: limit + 1]}
    return sorted(paths) if len(paths) <= limit else None


def held(watch_pk: int) -> Iterator[tuple[str, str]]:
    """(path, sha) of every file that the app acknowledged, in byte order of the paths."""
    return (
        Delivery.objects.filter(watch_id=watch_pk, acknowledged=True)
        .order_by("path")
        .values_list("path", "sha")
        .iterator(chunk_size=PAGE)
    )


def _row(values: tuple[Any, ...]) -> Row:
    row = Row._make(values)
    return row._replace(hold_until=values[_HOLD_UNTIL].timestamp()) if values[_HOLD_UNTIL] else row
