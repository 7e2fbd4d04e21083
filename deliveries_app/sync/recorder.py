"""Write outcomes and announcements to the database, in fenced batches (`engine.md` §1 and §4).

One transaction checks that the watch is still ours, records what was acknowledged and what failed, and announces the next
batch. If the worker is killed afterwards, the rows show which paths are in doubt.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import batched
from typing import Any, NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q

from deliveries_app.models import (
    AppRepository,
    Delivery,
    DeliveryAttempt,
    DeliveryFailure,
    FailureKind,
    SyncRun,
    bulk_sql,
    root_causes,
)
from deliveries_app.models.bulk_sql import Acknowledged, Announced
from deliveries_app.models.deliveries import Kind, path_digest
from deliveries_app.planning.eligibility import Skipped
from deliveries_app.planning.plan import Change
from deliveries_app.progress import runs
from deliveries_app.sync import failed_attempts
from deliveries_app.sync.failed_attempts import Sent
from deliveries_app.sync.lease import HOLD_AFTER_TIMEOUT, Lease
from deliveries_app.webhooks import endpoint_stats
from deliveries_app.webhooks.keyring import SHOWN_CHARS, response_texts
from deliveries_app.webhooks.payloads import masked_headers
from docora.db.clock import from_now
from docora.http.messages import Cause
from docora.redis import counters
from docora.text import clean_text

logger = logging.getLogger(__name__)

BLOCKED = "blocked"


@dataclass
class Notification:
    """A change whose content has been read, with the SHA-256 and size in bytes of what is sent, and its sequence.

    `content` is None for deletes and for files that are too large to be kept in memory. `remark` says what is special about
    the content. `waits` counts how often the notification was sent again in this run.
    """

    change: Change
    source_key: str
    sha: str
    size: int
    content: bytes | None
    remark: str = ""
    waits: int = 0
    sequence: int = field(init=False)

    def __post_init__(self) -> None:
        self.sequence = self.change.sequence or 0  # `commit` replaces 0 by a new number


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a notification was not delivered in this run. Its path must not be sent again for `hold_seconds`."""

    cause: str
    message: str
    status: int | None = None
    body: bytes = b""
    hold_seconds: float = 0.0

    @property
    def lost_connection(self) -> bool:
        """Whether the connection was lost after the request was sent. The app may still be processing it."""
        return self.cause == Cause.NETWORK

    @property
    def may_be_under_way(self) -> bool:
        """Whether the app may still be processing the request."""
        return self.hold_seconds > 0 or self.lost_connection

    @property
    def counted_as(self) -> str:
        """The label of this failure in the metrics: the root cause, or `BLOCKED` for a path that waits for another one."""
        return BLOCKED if self.cause == BLOCKED else root_causes.of_delivery(self.cause, self.status).value


class _Failed(NamedTuple):
    """A notification or change that failed, with the request if one was sent."""

    what: Notification | Change
    failure: Failure
    at: datetime
    sent: Sent | None

    @property
    def was_announced(self) -> bool:
        """Whether it counts as an attempt. A change that could not be sent in this run does not."""
        return isinstance(self.what, Notification)

    @property
    def change(self) -> Change:
        return self.what.change if isinstance(self.what, Notification) else self.what

    @property
    def digest(self) -> str:
        return path_digest(self.change.path.encode())


_READ_BYTES = 4096  # of a body: as much as the HTTP client keeps of a response
# A sixth of the lease would do, but with a slow client, a second keeps the bar moving and leaves less in doubt.
_SHOW_SECONDS = 1.0
PUBLISH_SECONDS = 0.5
"""Time between two updates of Redis and of the app's hourly row. A fast run records dozens of batches a second."""


class Recorder:
    """Collects outcomes until `commit` writes them.

    - `had_failures`: the watch has listed failures, which a success clears.
    - `on_first`: columns of the watch that the first announcement changes.
    """

    def __init__(self, lease: Lease, run: SyncRun, *, had_failures: bool, on_first: Mapping[str, Any]) -> None:
        self._lease = lease
        self.run = run
        """The run that is counted. A retry may replace it."""
        self._had_failures = had_failures
        self._on_first = dict(on_first)
        self._acknowledged: list[tuple[Notification, Acknowledged]] = []
        self._acknowledged_at: datetime | None = None
        self._failed: list[_Failed] = []
        self.failed_count = 0
        self._latest = endpoint_stats.Latest()
        self._unpublished: Counter[str] = Counter()
        self._unpublished_causes: Counter[str] = Counter()
        self._published_at = time.monotonic()
        self._is_shown = False  # the live counters are those of this attempt, and nothing is missing in them
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
        self._failed.append(_Failed(what, failure, self._lease.clock.now(), sent))
        self.failed_count += 1
        if failure.cause != BLOCKED or self.last_failure is None:
            # A path that waits for another one says nothing about the cause.
            self.failures_differ |= self.last_message not in {"", failure.message}
            self.last_failure = failure
        self.longest_hold = max(self.longest_hold, failure.hold_seconds)

    def first_failed_at(self, change: Change) -> datetime | None:
        """Return when the listed failure of this path began, by the database's clock, or None if there is none."""
        listed = DeliveryFailure.objects.filter(
            watch=self._lease.watch, path_digest=path_digest(change.path.encode()), kind=FailureKind.FAILED
        )
        return listed.values_list("first_at", flat=True).first()

    def commit(
        self, announce: Sequence[Notification] = (), adopt: Sequence[Notification] = (), *, is_last: bool = False
    ) -> None:
        """Write everything collected and announce the next batch. If it raises `Superseded`, nothing was written.

        `adopt`: notifications whose content the app already holds. Nothing is sent for them. `is_last`: unless
        something failed, the run ends next, which updates what progress bars show.
        """
        fresh = [notification for notification in announce if notification.change.sequence is None]
        first = self._lease.reserve_sequences(len(fresh)) if fresh else 0
        for number, notification in enumerate(fresh, first):
            notification.sequence = number
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
        changes = self._on_first if announce else {}
        if done and self._lease.watch.crash_count:  # an attempt with progress does not count, even if its process dies
            changes = changes | {"crash_count": 0}
            self._lease.watch.crash_count = 0
        if any(failed.failure.lost_connection for failed in self._failed):
            changes = changes | {"doubt_until": from_now(HOLD_AFTER_TIMEOUT)}
        now = self._lease.clock.now()
        publish = not announce or time.monotonic() - self._published_at >= PUBLISH_SECONDS
        with transaction.atomic():
            self._lease.extend(**changes)
            self._write_acknowledged(now)
            self._write_failed(now)
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
        failures = {counters.field(counters.DELIVERY_FAILURES, why): n for why, n in self._unpublished_causes.items()}
        counts = {counters.FILES: self._unpublished["files"], counters.BYTES: self._unpublished_bytes, **failures}
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

    def _write_acknowledged(self, now: datetime) -> None:
        if not self._acknowledged:
            return
        written = [answer for item, answer in self._acknowledged if item.change.kind != Kind.DELETE]
        deleted = [answer.path for item, answer in self._acknowledged if item.change.kind == Kind.DELETE]
        if written:
            bulk_sql.acknowledge(self._lease.watch.pk, written, now)
        if deleted:
            Delivery.objects.filter(watch=self._lease.watch, path__in=deleted).delete()
        if self._had_failures:
            digests = [path_digest(answer.path.encode()) for _, answer in self._acknowledged]
            # Keep those of this attempt: if transforms failed, another file may have got the path of a listed one.
            listed = DeliveryFailure.objects.filter(watch=self._lease.watch, path_digest__in=digests)
            listed.exclude(fencing_token=self._lease.fencing_token).delete()

    def _write_failed(self, now: datetime) -> None:
        if not self._failed:
            return
        rows = Delivery.objects.filter(watch=self._lease.watch)
        announced = [failed for failed in self._failed if failed.was_announced]
        for seconds in {failed.failure.hold_seconds for failed in announced}:
            paths = [failed.change.path for failed in announced if failed.failure.hold_seconds == seconds]
            hold = datetime.fromtimestamp(now.timestamp() + seconds, tz=UTC) if seconds else None
            rows.filter(path__in=paths).update(attempts=F("attempts") + 1, hold_until=hold, updated_at=now)
        watch, listed, attempts = self._lease.watch, [], []
        bodies = [(failed.failure.body, failed.sent.body if failed.sent else b"") for failed in self._failed]
        texts = response_texts(watch.app, [body for pair in bodies for body in pair], most=_READ_BYTES)
        for failed, response_body, request_body in zip(self._failed, texts[::2], texts[1::2], strict=True):
            change, failure = failed.change, failed.failure
            body = clean_text(response_body, SHOWN_CHARS)
            path, tries = change.path.encode(), change.attempts + int(failed.was_announced)
            listed.append(_failure_row(watch, path, failure, FailureKind.FAILED, now, tries, body))
            if failed.sent:
                attempts.append(_attempt_row(watch, failed, failed.sent, request_body, response_body))
        failed_attempts.write(watch, attempts)
        DeliveryFailure.objects.bulk_create(
            sorted(listed, key=lambda row: row.path_digest),  # one order for every writer: no deadlock
            batch_size=500,
            update_conflicts=True,
            unique_fields=["watch", "path_digest"],
            update_fields=["kind", "cause", "status_code", "message", "body", "attempts", "fencing_token", "last_at"],
        )


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


def _attempt_row(
    watch: AppRepository, failed: _Failed, sent: Sent, request_body: str, response_body: str
) -> DeliveryAttempt:
    return DeliveryAttempt(
        app_id=watch.app_id,
        watch=watch,
        path_digest=failed.digest,
        at=failed.at,
        event=failed.change.kind,
        cause=failed.failure.cause,
        status_code=failed.failure.status,
        message=failed.failure.message[:500],
        milliseconds=sent.milliseconds,
        headers=masked_headers(sent.headers),
        request_body=failed_attempts.beginning(request_body),
        response_body=failed_attempts.beginning(response_body),
    )


def disown_failures(lease: Lease) -> None:
    """Treat the files that this claim has listed as failed as those of an earlier claim, because it plans again."""
    with transaction.atomic():
        lease.extend()
        listed = DeliveryFailure.objects.filter(watch=lease.watch, fencing_token=lease.fencing_token)
        listed.update(fencing_token=lease.fencing_token - 1)
    lease.had_listed = True


def settle_lists(
    watch: AppRepository, skipped: Sequence[Skipped], *, among: Sequence[bytes] | None, now: datetime
) -> None:
    """Update the lists after an attempt that tried its whole plan: keep its own failures and the paths that its tree skips.

    `among`: the paths that a fast plan covers (None: all paths). Compare claims, not times, because the database's clock may
    be set back. Call this in the transaction that sets the base: until then, an earlier failure may be the only trace of a
    path.
    """
    listed = DeliveryFailure.objects.filter(watch=watch)
    failed_before = Q(kind=FailureKind.FAILED) & ~Q(fencing_token=watch.fencing_token)
    known = Q(kind=FailureKind.SKIPPED)
    if among is not None:
        known &= Q(path_digest__in=[path_digest(path) for path in among])
    rows = [
        _failure_row(watch, item.path, Failure(item.cause, item.message), FailureKind.SKIPPED, now, 1)
        for item in skipped
    ]
    if not rows:
        listed.filter(known | failed_before).delete()
        return
    # A path that is still skipped for the same reason keeps its place in the list, which clients read in pages.
    still = {(row.path_digest, row.cause, row.message) for row in rows}
    before = listed.filter(known).values_list("pk", "path_digest", "cause", "message")
    gone = [pk for pk, *reason in before if tuple(reason) not in still]
    listed.filter(failed_before).delete()
    for some in batched(gone, 500):
        listed.filter(pk__in=some).delete()
    listed.filter(known).update(last_at=now)
    DeliveryFailure.objects.bulk_create(
        sorted(rows, key=lambda row: row.path_digest),
        batch_size=500,
        ignore_conflicts=True,  # a failed delete of the path takes precedence
    )


def _failure_row(
    watch: AppRepository,
    path: bytes,
    failure: Failure,
    kind: FailureKind,
    now: datetime,
    attempts: int,
    body: str = "",
) -> DeliveryFailure:
    return DeliveryFailure(
        watch=watch,
        path_digest=path_digest(path),
        path=clean_text(path.decode("utf-8", "backslashreplace"), 1024)
        if kind == FailureKind.SKIPPED
        else path.decode(),
        kind=kind,
        cause=failure.cause,
        status_code=failure.status,
        message=failure.message[:500],
        body=body,
        attempts=attempts,
        fencing_token=watch.fencing_token,
        first_at=now,
        last_at=now,
    )
