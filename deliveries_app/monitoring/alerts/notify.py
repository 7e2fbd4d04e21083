"""Send each channel the alerts that it has not reported yet, and retry later if that fails.

A process claims a channel by a conditional UPDATE, so two processes never send the same message. Progress is stored
after each accepted message; if a process is killed in between, the message is sent again. After a failure the channel
waits, twice as long each time and at most an hour. It never stops trying. Nothing is queued, because the rows show what
was not reported yet. After a message, alerts are collected for a while, so a spreading outage takes a few messages
instead of one per round.
"""

import logging
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models import F, Max, Min, Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.models import Alert, AlertChannel, AlertRound
from deliveries_app.monitoring.alerts import messages
from deliveries_app.monitoring.alerts.channels import Channel, configured
from deliveries_app.monitoring.alerts.messages import Message
from docora.backoff import backoff
from docora.db.clock import from_now

logger = logging.getLogger(__name__)

GATHER_SECONDS = 300.0
_CLAIM_SECONDS = 180.0  # longer than three messages take
_BASE_DELAY_SECONDS = 30.0


def notify(channel: Channel) -> None:
    """Send the alerts that the channel has not reported yet, if there are any and the channel is due."""
    row, _ = AlertChannel.objects.get_or_create(name=channel.name)
    if min(row.reported_opened, row.reported_closed) >= _last_round() and not _lasting(row).exists():
        return
    this_row = AlertChannel.objects.filter(pk=row.pk)
    if not this_row.filter(Q(due_at=None) | Q(due_at__lte=Now())).update(due_at=from_now(_CLAIM_SECONDS)):
        return
    row.refresh_from_db()  # the previous owner may have sent something since
    last = _last_round()
    # Each message, with the columns to set once it is accepted.
    ended, unreported = _ended(row, last)
    steps: list[tuple[Message | None, dict[str, Any]]] = [
        (messages.of("resolved", ended, unreported=unreported), {"reported_closed": last}),
        (messages.of("alert", _begun(row, last)), {"reported_opened": last}),
        (messages.of("alert", _lasting(row), reminder=True), {"reminded_at": timezone.now()}),
    ]
    due = [(message, fields) for message, fields in steps if message]
    for message, fields in due:
        problem = channel.send(message)
        if problem:
            wait = backoff(row.attempts + 1, base=_BASE_DELAY_SECONDS, jitter=0.0)
            this_row.update(attempts=F("attempts") + 1, last_error=problem[:500], due_at=from_now(wait))
            logger.warning("alert_not_sent", extra={"channel": channel.name, "cause": problem, "again_in": wait})
            return
        this_row.update(**fields)
        logger.info("alert_sent", extra={"channel": channel.name, "alert": message.event, "count": message.total})
    pause = from_now(GATHER_SECONDS) if due else None
    this_row.update(reported_opened=last, reported_closed=last, attempts=0, last_error="", due_at=pause)


def retry_soon(channel: Channel) -> bool:
    """End the wait of a channel that works again, so that the next round sends what it refused. Return whether it was waiting.

    Short waits stay: they can't be told from a process that is sending to the channel now. Raises `DatabaseError`.
    """
    waiting = AlertChannel.objects.filter(name=channel.name, attempts__gt=0, due_at__gt=from_now(_CLAIM_SECONDS))
    return bool(waiting.update(due_at=None))


def undelivered() -> list[AlertChannel]:
    """Return the channels whose last attempt failed. Run no query unless alerts are on."""
    names = [channel.name for channel in configured()]
    return list(AlertChannel.objects.filter(name__in=names, attempts__gt=0).order_by("name")) if names else []


def _last_round() -> int:
    return AlertRound.objects.get().number


def _begun(row: AlertChannel, last: int) -> QuerySet[Alert]:
    """Return alerts that began and are still open."""
    return Alert.objects.filter(opened__gt=row.reported_opened, opened__lte=last, ended_at=None)


def _ended(row: AlertChannel, last: int) -> tuple[QuerySet[Alert], int]:
    """Return alerts that ended, the last of each subject, and how many of them began without a message that was accepted.

    A new channel does not report those that ended before it existed. One whose beginning was not reported is left out. After a
    failed attempt, all are returned: the receiver may have processed the message, and the end is all that it gets about what an
    outage of the channel hid.
    """
    ended = Alert.objects.filter(closed__gt=row.reported_closed, closed__lte=last, ended_at__gt=row.created_at)
    subjects = ended.order_by().values("kind", "subject").annotate(first=Min("opened"), last=Max("pk"))
    unreported = subjects.filter(first__gt=row.reported_opened).count() if row.attempts else 0
    if not row.attempts:
        subjects = subjects.filter(first__lte=row.reported_opened)
    return Alert.objects.filter(pk__in=subjects.values("last")), unreported


def _lasting(row: AlertChannel) -> QuerySet[Alert]:
    """Return reported alerts that have lasted `ALERT_REPEAT_SECONDS`, if the last reminder is that long ago."""
    long_ago = timezone.now() - timedelta(seconds=settings.ALERT_REPEAT_SECONDS)
    if not settings.ALERT_REPEAT_SECONDS or row.reminded_at > long_ago:
        return Alert.objects.none()
    return Alert.objects.filter(opened__lte=row.reported_opened, ended_at=None, since__lte=long_ago)
