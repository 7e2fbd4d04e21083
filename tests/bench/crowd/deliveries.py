"""The delivery records: millions of rows, one for each file and app."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from deliveries_app.models import AppRepository
from tests.bench.crowd.layout import Amounts, DrawnWatch, Role

COLUMNS = (
    "watch_id", "path", "source_path", "mode", "kind", "source_key", "sha", "size", "sequence", "generation",
    "acknowledged", "acknowledged_sha", "remark", "attempts", "hold_until", "updated_at",
)  # fmt: skip
IN_FLIGHT = 8
_RECORDED_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class WatchRow:
    """A drawn watch with its row."""

    drawn: DrawnWatch
    watch: AppRepository

    @property
    def role(self) -> Role:
        return self.drawn.role


def deliveries(amounts: Amounts, watched: list[WatchRow], now: datetime) -> Iterator[tuple[Any, ...]]:
    for one in watched:
        yield from _of_watch(amounts, one, now)


def _of_watch(amounts: Amounts, watched: WatchRow, now: datetime) -> Iterator[tuple[Any, ...]]:
    """Yield one row per file. Failing files and those that a re-sync is sending are in doubt.

    Files that a re-sync has not reached are below the floor.
    """
    watch, tree = watched.watch, watched.drawn.tree
    content = amounts.dice("content", tree.number)
    sent = {Role.REQUESTED: 0, Role.SENDING: tree.files // 2}.get(watched.role, tree.files)
    doubtful = range(sent, sent + IN_FLIGHT) if watched.role == Role.SENDING else range(watch.files_failing)
    first = watch.sequence_high - tree.files
    sent_at = now
    for number in range(tree.files):
        if number % _RECORDED_AT_ONCE == 0:
            sent_at = now - timedelta(minutes=content.randrange(60 * 24 * 30))
        in_doubt, update = number in doubtful, number % 5 == 0
        sha = f"{content.getrandbits(256):064x}"
        counts = number < sent or in_doubt
        yield (
            watch.pk,
            tree.path(number),
            "",
            "100644",
            "update" if update else "create",
            sha[:40],
            sha,
            tree.size_of(number),
            first + number,
            watch.generation if counts else watch.resend_floor - 1,
            not in_doubt,
            (sha[::-1] if update else None) if in_doubt else sha,
            "",
            max(1, watch.retry_count) if in_doubt and watch.is_failing else 0,
            None,
            sent_at,
        )
