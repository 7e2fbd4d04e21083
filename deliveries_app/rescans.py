"""When HEAD is asked for again: often where it moved lately, rarely where nothing happens.

The pause is half of the time since HEAD was last seen at another commit, or since it is watched, between
`RESCAN_MIN_INTERVAL_SECONDS` and `RESCAN_INTERVAL_SECONDS`, and a little longer or shorter, so that checks do not come in
waves. That time is by our own clock: the dates in commits are set by whoever makes them. A push hook does not wait for
the next check.
"""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models import DateTimeField, DurationField, ExpressionWrapper, F, Func, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce, Greatest, Least, Now, Random

_JITTER = 0.1


def next_check(moved_at: Combinable | None = None) -> Combinable:
    """For `next_check_at`, as an expression; `moved_at` when it changes in the same update."""
    half = _Duration((Now() - (moved_at or Coalesce(F("moved_at"), F("created_at")))) * Value(0.5))
    shortest = _seconds(settings.RESCAN_MIN_INTERVAL_SECONDS)
    longest = _seconds(settings.RESCAN_INTERVAL_SECONDS)
    pause = Least(Greatest(half, shortest), longest)
    chance = Value(1 - _JITTER) + Value(2 * _JITTER) * Random()
    return ExpressionWrapper(Now() + _Duration(pause * chance), output_field=DateTimeField())


class _Duration(Func):
    """A duration that was multiplied; SQLite has them as whole microseconds, and Django's product there is a text."""

    template = "(%(expressions)s)"

    def __init__(self, product: Combinable) -> None:
        super().__init__(ExpressionWrapper(product, output_field=DurationField()), output_field=DurationField())

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template="CAST(%(expressions)s AS INTEGER)", **extra)


def _seconds(seconds: float) -> Value:
    return Value(timedelta(seconds=seconds), output_field=DurationField())
