"""Write outcomes and announcements to the database, in fenced batches (`engine.md` §1 and §4).

One transaction checks that the watch is still ours, records what was acknowledged and what failed, and announces the next
batch. If the worker is killed afterwards, the rows show which paths are in doubt.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import transaction

from deliveries_app.models import Delivery, DeliveryFailure, SyncRun, bulk_sql
from deliveries_app.models.bulk_sql import Acknowledged, Announced
from deliveries_app.models.deliveries import Kind, path_digest
from deliveries_app.models.root_causes import SyncFailure
from deliveries_app.planning.plan import Change
from deliveries_app.progress import runs
from deliveries_app.sync import failures
from deliveries_app.sync.failures import Failed, Sent
from deliveries_app.sync.lease import HOLD_AFTER_TIMEOUT, Lease
from deliveries_app.sync.notification import BLOCKED, Failure, Notification
from deliveries_app.webhooks import endpoint_stats
from docora.db.clock import from_now
from docora.redis import counters

logger = logging.getLogger(__name__)

# A sixth of the lease would do, but with a slow client, a second keeps the bar moving and leaves less in doubt.
_SHOW_SECONDS = 1.0
PUBLISH_SECONDS = 0.5
"""Time between two updates of Redis and of the app's hourly row. A fast run records dozens of batches a second."""


class Recorder:
    """Collects outcomes until `commit` writes them. `on_first`: columns of the watch that the first announcement changes."""

    def __init__(self, lease: Lease, run: SyncRun, *, on_first: Mapping[str, Any]) -> None:
        self._lease = lease
        self.run = run
        """The run that is counted. A retry may replace it."""
        self._on_first = dict(on_first)
        self._acknowledged: list[tuple[Notification, Acknowledged]] = []
        self._acknowledged_at: datetime | None = None
        self._failed: list[Failed] = []
        self.failed_count = self.failed_deletes = 0
        self._latest = endpoint_stats.Latest()
        self._unpublished: Counter[str] = Counter()
        self._unpublished_causes: Counter[str] = Counter()
        self._published_at = time.monotonic()
        self._is_shown = False  # the live counters are those of this attempt, and complete
        self.longest_hold = 0.0  # the longest time in seconds that a path of this run has to wait
        self.last_failure: Failure | None = None
        self.failures_differ = False  # whether some have other messages than the last one
        self._committed_at = time.monotonic()

    @property
    def last_message(self) -> str:
        return self.last_failure.message if self.last_failure else ""

    @property
    def due(self) -> bool:
        """Whether the last commit was long enough ago. Each announcement commits outcomes too."""
        since = time.monotonic() - self._committed_at
        waiting = self._acknowledged or self._failed
        return since >= settings.LEASE_SECONDS / 6 or (bool(waiting) and since >= _SHOW_SECONDS)

    @property
    def has_unwritten_doubt(self) -> bool:
        """Whether the app may still be processing a request that failed, and this is not written yet."""
        return any(failed.failure.may_be_under_way for failed in self._failed)

    def sync_failure(self, message: str) -> SyncFailure:
        """Return a failure with this message and the cause of the last file that failed. There must be one."""
        assert self.last_failure is not None
        return self.last_failure.of_sync(self._lease.watch.app, message)

    def count_request(self, ok: bool, seconds: float) -> None:
        """Count a request that took `seconds`. `ok`: the app accepted it."""
        self._latest.add(ok, seconds)

    def acknowledge(self, notification: Notification, status: int, seconds: float) -> None:
        """Add a notification that the app accepted with this status. `seconds` is how long its requests took."""
        answer = Acknowledged(notification.change.path, status, round(seconds * 1000))
        self._acknowledged.append((notification, answer))
        self._acknowledged_at = self._lease.clock.now()

    def fail(self, what: Notification | Change, failure: Failure, sent: Sent | None = None) -> None:
        """Add a notification that failed with the request that was `sent`, or a change that could not be sent in this run."""
        self._failed.append(Failed(what, failure, self._lease.clock.now(), sent))
        self.failed_count += 1
        self.failed_deletes += self._failed[-1].change.kind == Kind.DELETE
        if failure.cause != BLOCKED or self.last_failure is None:
            # A path that waits for another one says nothing about the cause.
            self.failures_differ |= self.last_message not in {"", failure.message}
            self.last_failure = failure
        self.longest_hold = max(self.longest_hold, failure.hold_seconds)

    def commit(
        self, announce: Sequence[Notification] = (), adopt: Sequence[Notification] = (), *, is_last: bool = False
    ) -> None:
        """Write everything collected and announce the next batch. If it raises `Superseded`, nothing was written.

        `adopt`: notifications whose content the app already holds. Nothing is sent for them. `is_last`: unless
        something failed, the run ends next, which updates what progress bars show.
        """
        self._number(announce)
        done = [*(notification for notification, _ in self._acknowledged), *adopt]
        counts = {
            "files_done": len(done),
            "bytes_done": sum(notification.change.size for notification in done),
            "files_failed": len(self._failed),
        }
        self._unpublished.update(
            counts,
            files=len(self._acknowledged),
            adopted=sum(item.change.size for item in adopt),
            rejected=sum(failed.sent is not None for failed in self._failed),  # the others were not sent to the app
        )
        self._unpublished_causes.update(failed.failure.counted_as for failed in self._failed)
        now = self._lease.clock.now()
        publish = not announce or time.monotonic() - self._published_at >= PUBLISH_SECONDS
        with transaction.atomic():
            self._lease.extend(**self._changes_of_watch(has_progress=bool(done), announces=bool(announce)))
            self._write_acknowledged(now)
            failures.write(self._lease.watch, self._failed, now)
            if announce:
                bulk_sql.announce(self._lease.watch.pk, self._lease.generation, _rows_of(announce), now)
            if adopt:
                bulk_sql.adopt(self._lease.watch.pk, self._lease.generation, _rows_of(adopt), now)
            if any(counts.values()):
                counted = runs.count(self.run, **counts)
                self._is_shown = self._is_shown and counted is self.run
                self.run = counted
            if publish:
                self._count_traffic(now)
        if announce:
            self._on_first = {}
        self._acknowledged, self._failed = [], []
        self._committed_at = time.monotonic()
        if announce or any(counts.values()):
            logger.debug("batch_recorded", extra={**counts, "announced": len(announce)})
        if publish:
            self._publish(ends=is_last and not self.failed_count)

    def _number(self, announced: Sequence[Notification]) -> None:
        """Give each notification that repeats no earlier one a new sequence number."""
        fresh = [notification for notification in announced if notification.change.sequence is None]
        first = self._lease.reserve_sequences(len(fresh)) if fresh else 0
        for number, notification in enumerate(fresh, first):
            notification.sequence = number

    def _changes_of_watch(self, *, has_progress: bool, announces: bool) -> dict[str, Any]:
        """Return the columns of the watch that the next batch changes."""
        changes = dict(self._on_first) if announces else {}
        if has_progress and self._lease.watch.crash_count:  # this attempt does not count, even if its process dies
            self._lease.watch.crash_count = 0
            changes["crash_count"] = 0
        if any(failed.failure.lost_connection for failed in self._failed):
            changes["doubt_until"] = from_now(HOLD_AFTER_TIMEOUT)
        return changes

    def _write_acknowledged(self, now: datetime) -> None:
        if not self._acknowledged:
            return
        written = [answer for item, answer in self._acknowledged if item.change.kind != Kind.DELETE]
        deleted = [answer.path for item, answer in self._acknowledged if item.change.kind == Kind.DELETE]
        if written:
            bulk_sql.acknowledge(self._lease.watch.pk, written, now)
        if deleted:
            Delivery.objects.filter(watch=self._lease.watch, path__in=deleted).delete()
        if self._lease.had_listed:
            digests = [path_digest(answer.path.encode()) for _, answer in self._acknowledged]
            # Keep those of this attempt: if transforms failed, another file may have got the path of a listed one.
            listed = DeliveryFailure.objects.filter(watch=self._lease.watch, path_digest__in=digests)
            listed.exclude(fencing_token=self._lease.fencing_token).delete()

    @property
    def _unpublished_bytes(self) -> int:
        """Bytes that were sent, which excludes adopted files."""
        return self._unpublished["bytes_done"] - self._unpublished["adopted"]

    def _count_traffic(self, now: datetime) -> None:
        endpoint_stats.record_hour(
            self._lease.watch.app,
            self._latest,
            now,
            files=self._unpublished["files"],
            size=self._unpublished_bytes,
            failed=self._unpublished["rejected"],
            acknowledged_at=self._acknowledged_at,
        )

    def _publish(self, *, ends: bool) -> None:
        """Update what progress bars, the app's page and the metrics show. Call this after the commit.

        A run that `ends` before it was shown needs no live counters: until its end, progress bars show its row.
        """
        failed = {counters.field(counters.DELIVERY_FAILURES, why): n for why, n in self._unpublished_causes.items()}
        counts = {counters.FILES: self._unpublished["files"], counters.BYTES: self._unpublished_bytes, **failed}
        endpoint_stats.record_latest(self._lease.watch.app, self._latest, counts)
        shown = {name: self._unpublished[name] for name in ("files_done", "bytes_done", "files_failed")}
        # Adopted files need no request, and parts of a file do not count as files.
        if self._is_shown and (self._latest.requests or any(shown.values())):
            self._is_shown = runs.show(self.run, **shown)
        elif not self._is_shown and not ends:
            self._is_shown = runs.seed(self.run)
        self._latest, self._unpublished, self._unpublished_causes = endpoint_stats.Latest(), Counter(), Counter()
        self._acknowledged_at = None
        self._published_at = time.monotonic()


def _rows_of(notifications: Sequence[Notification]) -> list[Announced]:
    return [
        Announced(
            item.change.path,
            item.change.mode,
            item.change.kind,
            item.source_key or None,
            item.sha,
            item.size,
            item.sequence,
            item.change.attempts if item.change.sequence is not None else 0,
            item.change.source_path,
            item.remark,
        )
        for item in sorted(notifications, key=lambda item: item.change.path)
    ]
