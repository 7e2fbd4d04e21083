"""Tables as CSV that spreadsheets may open: streamed, UTF-8, and with no cell that is taken for a formula."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from django.http import StreamingHttpResponse
from django.utils import timezone

type Cell = str | int | float | datetime | None

# Also behind what a spreadsheet in another country takes for the end of a cell; and Japanese ones know wide signs.
_FORMULA = re.compile(r"(^|[;\t\r\n])(?=\s*[=+\-@＝＋－＠])")


def cell(value: Cell) -> str:
    """Times in UTC and ISO 8601; text with an apostrophe before what would begin a formula."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    if isinstance(value, str):
        return _FORMULA.sub(r"\1'", value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def lines(header: Sequence[str], pages: Iterable[Iterable[Sequence[Cell]]]) -> Iterator[bytes]:
    """The header and then each page of rows, encoded. Everything is quoted, so that no cell can begin inside another."""
    yield _written([header])
    for page in pages:
        yield _written(page)


def _written(rows: Iterable[Sequence[Cell]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([[cell(value) for value in row] for row in rows])
    return text.getvalue().encode("utf-8", "replace")


def attachment(name: str, header: Sequence[str], pages: Iterable[Iterable[Sequence[Cell]]]) -> StreamingHttpResponse:
    """The download, as `docora-<name>-<today>.csv`."""
    answer = StreamingHttpResponse(lines(header, pages), content_type="text/csv; charset=utf-8; header=present")
    answer["Content-Disposition"] = f'attachment; filename="docora-{name}-{timezone.localdate():%Y-%m-%d}.csv"'
    return answer
