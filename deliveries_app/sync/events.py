"""Notifications that are not about one file: `sync_failed` and `sync_completed`.

Each is stored as a row and sent by the worker that claims the watch, under the same lease and slots as files. So it survives
crashes, is retried, and keeps its number (`engine.md` §5 and §10).
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import orjson
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.models import AppRepository, Notice, NoticeKind
from deliveries_app.planning import delivery_rows
from deliveries_app.sync.channel import Channel
from deliveries_app.sync.exceptions import Paused
from deliveries_app.sync.lease import Lease
from deliveries_app.sync.notification import Failure
from deliveries_app.sync.responses import SHORTEST_WAIT
from deliveries_app.webhooks.client import asked_to_wait, describe_outcome
from deliveries_app.webhooks.payloads import Envelope, sync_completed_fields
from docora.backoff import MAX_WAIT_SECONDS, backoff
from docora.http.client import Outcome

logger = logging.getLogger(__name__)

GIVE_UP_AFTER = timedelta(days=1)
_BASE_DELAY_SECONDS = 2.0
BUSY_SECONDS = 10.0  # the wait if a busy app does not say how long it needs; the shortest wait grows up to this


class NoticeRefused(Exception):
    """All files were acknowledged, but the `sync_completed` notice was not accepted.

    `wait`: how many seconds to wait because the app is busy, which is not a failed attempt; None if it is not busy.
    """

    def __init__(self, failure: Failure, wait: float | None) -> None:
        super().__init__(failure.message)
        self.failure, self.wait = failure, wait


class HeldTree(NamedTuple):
    """What the app has acknowledged: one hash, and the number of files."""

    sha256: str
    files: int


def held_tree(watch_pk: int, tick: Callable[[], None]) -> HeldTree:
    """Hash the lines `{sha}  {path}\\n` of every file that the app acknowledged, in byte order of the paths."""
    digest, files = hashlib.sha256(), 0
    for path, sha, _ in delivery_rows.acknowledged_files(watch_pk, tick):
        digest.update(f"{sha}  {path}\n".encode())
        files += 1
    return HeldTree(digest.hexdigest(), files)


def send_due(channel: Channel, envelope: Envelope) -> None:
    """Send the watch's `sync_failed` notices that are due.

    A refused notice is retried with a backoff, and abandoned after a day or a 410. Files never wait for it.
    """
    lease = channel.lease
    if not lease.had_notices:
        return
    due = Notice.objects.filter(watch=lease.watch, kind=NoticeKind.SYNC_FAILED, due_at__lte=lease.clock.now())
    for notice in due:
        channel.alive()
        outcome = _send(channel, notice, envelope)
        if outcome.ok or outcome.status == 410 or timezone.now() - notice.created_at > GIVE_UP_AFTER:
            logger.info("notice_settled", extra={"notice": notice.pk, "status": outcome.status})
            with transaction.atomic():
                lease.extend()
                notice.delete()
            continue
        asked = asked_to_wait(outcome) or 0.0
        wait = max(backoff(notice.attempts, base=_BASE_DELAY_SECONDS, jitter=0.0), min(asked, MAX_WAIT_SECONDS))
        with transaction.atomic():
            lease.extend()
            Notice.objects.filter(pk=notice.pk).update(
                due_at=lease.clock.now() + timedelta(seconds=wait),
                last_error=describe_outcome(outcome)[:500],
            )


def send_sync_completed(channel: Channel, commit: str, envelope: Envelope, files: int) -> None:
    """Send the app one hash over everything that it should hold now. Raises `NoticeRefused` unless the app answers 2xx.

    The row is kept until the run has succeeded (`settle_completed`), so that a retry of the same notice keeps its number.
    """
    lease = channel.lease
    held = held_tree(lease.watch.pk, channel.alive)
    fields = sync_completed_fields(channel.repository, commit, files, held.sha256)
    fresh = new_notice(lease.watch, NoticeKind.SYNC_COMPLETED, fields)
    waiting = Notice.objects.filter(watch=lease.watch, kind=NoticeKind.SYNC_COMPLETED)
    notice = waiting.filter(generation=lease.generation, fields=fresh.fields).first()
    if notice is None:
        notice = fresh
        with transaction.atomic():
            lease.extend()
            waiting.delete()
            notice.save()
    lease.had_notices = True
    outcome = _send(channel, notice, envelope)
    if not outcome.ok:
        wait = asked_to_wait(outcome)
        if wait is None and outcome.status == 429:
            wait = BUSY_SECONDS
        if wait is not None:
            wait = max(wait, min(backoff(notice.attempts, base=SHORTEST_WAIT, jitter=0.0), BUSY_SECONDS))
        raise NoticeRefused(Failure.of(outcome), wait)


def settle_completed(lease: Lease) -> None:
    """Remove the notice of a run that has succeeded. Call this in the transaction that records the success."""
    if lease.had_notices:
        Notice.objects.filter(watch=lease.watch, kind=NoticeKind.SYNC_COMPLETED).delete()


def new_notice(watch: AppRepository, kind: NoticeKind, fields: Mapping[str, Any]) -> Notice:
    """Return an unsaved notice that is due now, by the database's clock."""
    body = orjson.dumps(fields).decode()
    return Notice(watch=watch, kind=kind, fields=body, generation=watch.generation, due_at=Now())


def _send(channel: Channel, notice: Notice, envelope: Envelope) -> Outcome:
    """Send the notice once. Its number is stored before the first byte is sent.

    A pause does not interrupt this: if the response were thrown away, the app would get the same notice twice.
    """

    def settling() -> None:
        with contextlib.suppress(Paused):
            channel.alive()

    if notice.sequence is None:
        notice.sequence = channel.lease.reserve_sequences(1)
    notice.attempts += 1
    with transaction.atomic():
        channel.lease.extend()
        Notice.objects.filter(pk=notice.pk).update(sequence=notice.sequence, attempts=notice.attempts)
    return channel.post(notice.kind, orjson.loads(notice.fields), notice.sequence, envelope, alive=settling)
