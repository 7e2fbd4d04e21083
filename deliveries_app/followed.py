"""The operations that are followed, read for many at once.

Whoever follows an operation asks for its numbers every second. What a bar shows of the row is never changed, so each
process keeps it; and a question to Redis costs about as much for fifty operations as for one, so who has to ask brings
along the numbers of those that will be asked for next. Each is used once, and soon: a bar is never older than
`_AHEAD_SECONDS`, and one that is followed alone is always read anew.
"""

import time
from dataclasses import dataclass, field

from deliveries_app import tallies
from deliveries_app.models import BulkOperation
from deliveries_app.tallies import Tally

EVERY_SECONDS = 1.0  # as the fragments say it
_AHEAD_SECONDS = 0.5
_SOON_SECONDS = 0.65  # since it was last asked for: early enough to be asked for again in time, even by a slow browser
_ROW_SECONDS = 60.0
_followed: dict[str, "_Followed"] = {}


@dataclass
class _Followed:
    """An operation, when it was last asked for, and its tally with the moment of its reading, if read ahead."""

    operation: BulkOperation
    since: float
    asked_at: float
    ahead: list[tuple[float, Tally]] = field(default_factory=list)  # one at most; `pop` gives it to one thread only


def read(operation_id: str) -> tuple[BulkOperation, Tally] | None:
    """The operation with its tally; None when there is none. Its row is asked for once a minute while Redis counts: when
    it ends, its counters are taken away."""
    now = time.monotonic()
    mine = _followed.get(operation_id)
    if mine is not None and now - mine.since < _ROW_SECONDS:
        tally = _taken(mine, now) or _read_with_others(mine, now)
        if tally is not None:
            mine.asked_at = now
            return mine.operation, tally
    _followed.pop(operation_id, None)
    operation = BulkOperation.objects.filter(operation_id=operation_id).first()
    if operation is None:
        return None
    if not operation.ended_at:
        _followed[operation_id] = _Followed(operation, since=now, asked_at=now)
    return operation, tallies.of_operation(operation)


def _taken(mine: _Followed, now: float) -> Tally | None:
    """The tally that another reader brought along, unless it is too old by now."""
    try:
        read_at, tally = mine.ahead.pop()
    except IndexError:
        return None
    return tally if now - read_at < _AHEAD_SECONDS else None


def _read_with_others(mine: _Followed, now: float) -> Tally | None:
    others = []
    for operation_id, other in list(_followed.items()):
        if now - other.since > _ROW_SECONDS + EVERY_SECONDS:
            _followed.pop(operation_id, None)  # nobody follows it any more
        elif other is not mine and _SOON_SECONDS <= now - other.asked_at <= 2 * EVERY_SECONDS:
            others.append(other)
    found = tallies.live([mine.operation, *(other.operation for other in others)])
    for other, tally in zip(others, found[1:], strict=True):
        if tally is not None:
            other.ahead[:] = [(now, tally)]
    return found[0]
