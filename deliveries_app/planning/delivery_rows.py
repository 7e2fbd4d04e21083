"""The database side of a plan: `Delivery` rows in byte order of their paths, and the delivery rules of a watch.

Rows are read in keyset pages, so memory use stays constant.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import batched
from typing import Any, NamedTuple

from django.conf import settings
from django.db.models import Count, Q, QuerySet

from deliveries_app.models import AppRepository, Delivery, DeliveryFailure, FailureKind
from deliveries_app.planning import transforms
from deliveries_app.planning.plan import DeliveryRules, Plan, Row
from docora.db.compiled import compiled
from repositories_app.mirror.tree import MAX_DIFF_PATHS

PAGE = 2000


class SourceRow(NamedTuple):
    """The columns that link a row to the source file it was transformed from, in query order."""

    source_path: str
    path: str
    source_key: str | None
    size: int


def delivery_rules_of(watch: AppRepository) -> DeliveryRules:
    """Return the rules that currently apply to the watch."""
    return DeliveryRules(
        watch.generation,
        watch.resend_floor,
        settings.MAX_FILE_BYTES,
        watch.ignore_patterns,
        transforms.active(),
        include=watch.include_patterns,
        exclude=watch.exclude_patterns,
    )


def _all_pages[Item](page_after: Callable[[Item | None], list[Item]]) -> Iterator[Item]:
    """Yield the rows of all pages. `page_after` returns at most `PAGE` rows after the given one, or the first ones."""
    last: Item | None = None
    while True:
        page = page_after(last)
        yield from page
        if len(page) < PAGE:
            return
        last = page[-1]


def all_rows(watch_pk: int) -> Iterator[Row]:
    """Yield every row of the watch."""
    return _all_pages(lambda last: list(map(_row, _page_after(watch_pk, last.path if last else ""))))


@compiled
def _page_after(watch_pk: int, path: str) -> "QuerySet[Delivery, tuple[Any, ...]]":
    return Delivery.objects.filter(watch_id=watch_pk, path__gt=path).order_by("path").values_list(*Row._fields)[:PAGE]


def rows_by_source(watch_pk: int) -> Iterator[SourceRow]:
    """Yield the rows that transforms produced, in byte order of their source paths."""
    transformed = Delivery.objects.filter(watch_id=watch_pk).exclude(source_path="").order_by("source_path", "path")

    def page_after(last: SourceRow | None) -> list[SourceRow]:
        rows = transformed
        if last:
            later = Q(source_path=last.source_path, path__gt=last.path) | Q(source_path__gt=last.source_path)
            rows = rows.filter(later)
        return [SourceRow._make(values) for values in rows.values_list(*SourceRow._fields)[:PAGE]]

    return _all_pages(page_after)


@compiled
def count_remarks(watch_pk: int) -> "QuerySet[Delivery, tuple[str, int]]":
    """Return each remark and the number of files with it."""
    remarked = Delivery.objects.filter(watch_id=watch_pk).exclude(remark="").order_by()
    return remarked.values_list("remark").annotate(Count("pk"))


def tree_fields(plan: Plan, remarks: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """Return the columns of the watch that describe the planned tree. `remarks` as in `count_remarks`."""
    left_out = dict(plan.left_out) | dict(remarks)
    return {"tree_files": plan.tree_files, "tree_bytes": plan.tree_bytes, "left_out": left_out}


def rows_at(watch_pk: int, paths: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of `paths`. Both are in byte order."""
    for some in batched(paths, PAGE):
        rows = Delivery.objects.filter(watch_id=watch_pk, path__in=some).order_by("path")
        yield from map(_row, rows.values_list(*Row._fields))


def unsettled_paths(watch_pk: int, limit: int) -> list[str] | None:
    """Return the paths that are in doubt or listed as failed, or None if there are more than `limit`.

    `limit` is at most `MAX_DIFF_PATHS`.
    """
    paths = {*_paths_in_doubt(watch_pk), *_failed_paths(watch_pk)}
    return sorted(paths) if len(paths) <= limit else None


@compiled
def _paths_in_doubt(watch_pk: int) -> "QuerySet[Delivery, str]":
    in_doubt = Delivery.objects.filter(watch_id=watch_pk, acknowledged=False)
    # By path, as in the index of these rows. By primary key, PostgreSQL would often read every delivery in vain.
    return in_doubt.order_by("path").values_list("path", flat=True)[: MAX_DIFF_PATHS + 1]


@compiled
def _failed_paths(watch_pk: int) -> "QuerySet[DeliveryFailure, str]":
    failed = DeliveryFailure.objects.filter(watch_id=watch_pk, kind=FailureKind.FAILED).order_by()
    return failed.values_list("path", flat=True)[: MAX_DIFF_PATHS + 1]


class HeldFile(NamedTuple):
    """A file that the app has acknowledged. The fields are in query order."""

    path: str
    sha: str
    sequence: int


def acknowledged_files(watch_pk: int, tick: Callable[[], None]) -> Iterator[HeldFile]:
    """Yield every file the app acknowledged, in byte order of the paths. Call `tick` before each page of rows."""
    rows = Delivery.objects.filter(watch_id=watch_pk, acknowledged=True).order_by("path")
    columns = rows.values_list(*HeldFile._fields)

    def page_after(last: HeldFile | None) -> list[HeldFile]:
        tick()
        return list(map(HeldFile._make, columns.filter(path__gt=last.path if last else "")[:PAGE]))

    return _all_pages(page_after)


def _row(values: tuple[Any, ...]) -> Row:
    row = Row._make(values)
    hold_until: Any = row.hold_until  # a datetime
    return row._replace(hold_until=hold_until.timestamp()) if hold_until else row
