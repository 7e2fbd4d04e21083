"""Keyset pagination: a page continues after a row, so there are no gaps or repetitions while rows come and go."""

import base64
from datetime import UTC
from typing import Annotated, Any

from django.db.models import Model, Q, QuerySet
from ninja import Query
from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, TypeAdapter

from docora.web.errors import ApiError

MAX_LIMIT = 500
DEFAULT_LIMIT = 100
_LONGEST = 10_000  # characters of a cursor; JSON escapes a control character of a path as six, and base64 adds a third

After = Annotated[
    str,
    Query(max_length=_LONGEST, description="The `next` of the previous page. Empty for the first page.", example=""),
]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Rows per page.")]

# Values of a cursor that a query accepts.
Number = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
Moment = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]


class Order:
    """A total order of rows: by `field`, then by primary key. A page can continue after any row.

    `kind` is the type of the field's value in a cursor.
    """

    def __init__(self, field: str, kind: Any, *, newest_first: bool = False) -> None:
        self._field = field
        self._values: TypeAdapter[tuple[Any, int]] = TypeAdapter(tuple[kind, Number])
        self._newest_first = newest_first

    def page[M: Model](self, rows: QuerySet[M], after: str, limit: int, *, skip: int = 0) -> tuple[list[M], str | None]:
        """Return at most `limit` rows after the cursor, without the first `skip`, and the cursor of the next page.

        Raises `ApiError` (422) for a malformed cursor.
        """
        sign, comparison = ("-", "lt") if self._newest_first else ("", "gt")
        if after:
            value, pk = self._parse(after)
            rows = rows.filter(
                Q(**{f"{self._field}__{comparison}": value}) | Q(**{self._field: value, f"pk__{comparison}": pk})
            )
        found = list(rows.order_by(f"{sign}{self._field}", f"{sign}pk")[skip : skip + limit + 1])
        if len(found) <= limit:
            return found, None
        last = self._values.dump_json((getattr(found[limit - 1], self._field), found[limit - 1].pk))
        return found[:limit], base64.urlsafe_b64encode(last).decode("ascii").rstrip("=")

    def _parse(self, cursor: str) -> tuple[Any, int]:
        try:
            text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            return self._values.validate_json(text)
        except (ValueError, OverflowError):
            raise ApiError("The query parameter after must be the value of next on an earlier page", 422) from None
