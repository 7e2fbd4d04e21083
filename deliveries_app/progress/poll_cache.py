"""The operations that are followed, read and drawn for many at once.

Whoever follows an operation asks for its bar every second. What a bar shows of the row is never changed, so each process
keeps it. A question to Redis costs about as much for fifty operations as for one, and the second bar that is drawn half
as much as the first, so who has to ask brings along those that will be asked for next. Each is used once, and soon: a bar
is never older than `_AHEAD_SECONDS`, and one that is followed alone is always read anew.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deliveries_app.models import BulkOperation
from deliveries_app.progress import live
from deliveries_app.progress.live import Progress

EVERY_SECONDS = 1.0  # as the fragments say it
_AHEAD_SECONDS = 0.5
_SOON_SECONDS = 0.65  # since it was last asked for: early enough to be asked for again in time, even by a slow browser
_ROW_SECONDS = 60.0
_followed: dict[str, "_Followed"] = {}

type Draw = Callable[[BulkOperation, Progress], str]


@dataclass(frozen=True)
class Bar:
    """An operation with its progress; `drawn` if it was brought along."""

    operation: BulkOperation
    progress: Progress
    drawn: str | None = None


@dataclass
class _Followed:
    """An operation, since when its row is kept, when it was last asked for, and what another reader brought along."""

    operation: BulkOperation
    since: float
    asked_at: float
    ahead: list[tuple[float, Bar]] = field(default_factory=list)  # one at most; `pop` gives it to one thread only


def read(operation_id: str, draw: Draw) -> Bar | None:
    """The bar of an operation; None when there is none. Its row is asked for once a minute while Redis counts: when it
    ends, its counters are taken away."""
    now = time.monotonic()
    mine = _followed.get(operation_id)
    if mine is not None and now - mine.since < _ROW_SECONDS:
        bar = _taken(mine, now) or _read_with_others(mine, now, draw)
        if bar is not None:
            mine.asked_at = now
            return bar
    _followed.pop(operation_id, None)
    operation = BulkOperation.objects.filter(operation_id=operation_id).first()
    if operation is None:
        return None
    if not operation.ended_at:
        _followed[operation_id] = _Followed(operation, since=now, asked_at=now)
    return Bar(operation, live.of_operation(operation))


def _taken(mine: _Followed, now: float) -> Bar | None:
    """What another reader brought along, unless it is too old by now."""
    try:
        read_at, bar = mine.ahead.pop()
    except IndexError:
        return None
    return bar if now - read_at < _AHEAD_SECONDS else None


def _read_with_others(mine: _Followed, now: float, draw: Draw) -> Bar | None:
    others = []
    for operation_id, other in list(_followed.items()):
        if now - other.since > _ROW_SECONDS + EVERY_SECONDS:
            _followed.pop(operation_id, None)  # nobody follows it any more
        elif other is not mine and _SOON_SECONDS <= now - other.asked_at <= 2 * EVERY_SECONDS:
            others.append(other)
    progress, *found = live.live([mine.operation, *(other.operation for other in others)])
    for other, its_progress in zip(others, found, strict=True):
        if its_progress is not None:
            bar = Bar(other.operation, its_progress, draw(other.operation, its_progress))
            other.ahead[:] = [(now, bar)]
    return Bar(mine.operation, progress) if progress is not None else None
