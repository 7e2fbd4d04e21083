"""Files that were not delivered, grouped by equal failures: an app that is down fails every file in the same way."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import nlargest
from zlib import crc32

from django.db.models import Q

from deliveries_app.models import App, AppRepository, DeliveryFailure, FailureKind, Status

READ_FILES = 2000
"""Group at most this many files: an app that rejects everything may have millions."""
SHOWN_GROUPS = 10
LISTED_FILES = 50
LISTED_FILES_OF_APP = 10
"""Number of files listed in a group, newest first, on the page of a watch and on that of an app."""

_COLUMNS = (
    "watch_id", "path", "cause", "status_code", "body", "attempts", "last_at", "watch__repository__owner",
    "watch__repository__name",
)  # fmt: skip


@dataclass(frozen=True)
class FileGroup:
    """`count` files of `watches` repositories with one failure. `listed` are the newest of them."""

    status_code: int | None
    message: str
    count: int
    watches: int
    last_at: datetime
    listed: Sequence[DeliveryFailure]

    @property
    def key(self) -> str:
        """An HTML id, unique on the page and the same after a refresh."""
        return f"failure-{self.status_code or 0}-{crc32(self.message.encode()):08x}"

    @property
    def title(self) -> str:
        """`HTTP 500`, or the message without its full stop if the failure is not an HTTP response."""
        return f"HTTP {self.status_code}" if self.status_code else self.message.removesuffix(".")

    @property
    def explanation(self) -> str:
        """The message, unless it only repeats the title."""
        return "" if not self.status_code or self.listed[0].cause == "http" else self.message


@dataclass(frozen=True)
class FailingFiles:
    """The largest groups. A further `more_groups` have `more_files`. `is_more` if not all files were read."""

    groups: Sequence[FileGroup] = ()
    count: int = 0
    is_more: bool = False
    more_groups: int = 0
    more_files: int = 0


def of_watch(watch: AppRepository | None) -> FailingFiles:
    return _grouped(Q(watch=watch), LISTED_FILES) if watch else FailingFiles()


def of_app(app: App) -> FailingFiles:
    """Return the failing files of all the app's repositories. Watches that cannot have any are not searched."""
    may_have = Q(failing_since__isnull=False) | Q(files_failing__gt=0) | Q(status=Status.SCANNING)
    watches = AppRepository.objects.alive().filter(may_have, app=app).order_by()
    return _grouped(Q(watch__in=watches.values("pk")), LISTED_FILES_OF_APP)


def _grouped(condition: Q, most: int) -> FailingFiles:
    """Read a bounded number of rows through the index, group them, and then read those that are listed: two queries."""
    rows = DeliveryFailure.objects.filter(condition, kind=FailureKind.FAILED)
    columns = rows.order_by().values_list("status_code", "message", "last_at", "pk", "watch_id")
    found = list(columns[: READ_FILES + 1])
    is_more = len(found) > READ_FILES
    by_failure: dict[tuple[int | None, str], list[tuple[datetime, int, int]]] = defaultdict(list)
    for status_code, message, last_at, pk, watch_id in found[:READ_FILES]:
        by_failure[status_code, message].append((last_at, pk, watch_id))
    largest = sorted(by_failure.items(), key=lambda item: (-len(item[1]), item[0][1]))
    shown, rest = largest[:SHOWN_GROUPS], largest[SHOWN_GROUPS:]
    newest = {failure: [pk for _, pk, _ in nlargest(most, files)] for failure, files in shown}
    failures = DeliveryFailure.objects.select_related("watch__repository").only(*_COLUMNS)
    listed = failures.in_bulk([pk for pks in newest.values() for pk in pks])
    groups = [
        FileGroup(
            *failure,
            count=len(files),
            watches=len({watch for *_, watch in files}),
            last_at=max(files)[0],
            listed=[listed[pk] for pk in newest[failure] if pk in listed],
        )
        for failure, files in shown
    ]
    return FailingFiles(
        [group for group in groups if group.listed],  # a worker may have removed rows in between
        min(len(found), READ_FILES),
        is_more,
        len(rest),
        sum(len(files) for _, files in rest),
    )
