"""Streamed CSV exports in UTF-8 that are safe to open in a spreadsheet: no cell is interpreted as a formula."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain

from django.http import StreamingHttpResponse
from django.utils import timezone

type Cell = str | int | float | datetime | None

# Some locales also separate cells by `;` or tab, after which a quote may precede the formula, and Japanese ones accept
# full-width signs.
_FORMULA = re.compile(r"(^|[;\t\r\n])(?=[\s\"]*[=+\-@＝＋－＠])")


def cell(value: Cell) -> str:
    """Format a value: times as ISO 8601 in UTC, and text that would start a formula with an apostrophe before it."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    if isinstance(value, str):
        return _FORMULA.sub(r"\1'", value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def lines(header: Sequence[str], pages: Iterable[Iterable[Sequence[Cell]]]) -> Iterator[bytes]:
    """Yield the header and each page of rows as bytes. Every cell is quoted, so none can start inside another."""
    for rows in chain([[header]], pages):
        text = io.StringIO()
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows([[cell(value) for value in row] for row in rows])
        yield text.getvalue().encode("utf-8", "replace")


def attachment(name: str, header: Sequence[str], pages: Iterable[Iterable[Sequence[Cell]]]) -> StreamingHttpResponse:
    """Return the download, named `docora-<name>-<today>.csv`."""
    answer = StreamingHttpResponse(lines(header, pages), content_type="text/csv; charset=utf-8; header=present")
    answer["Content-Disposition"] = f'attachment; filename="docora-{name}-{timezone.localdate():%Y-%m-%d}.csv"'
    return answer
