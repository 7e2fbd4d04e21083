"""Telling a channel what it has not been told: once, and again later if it did not arrive.

Whoever tells has claimed the channel by a conditional UPDATE: two processes at once never send the same. How far it has
been told is written after each message that arrived; a process that is killed in between sends that one again, since it
cannot know. An attempt that fails rests the channel, twice as long each time and an hour at most; it is never given up,
because there is never more to keep than the difference. After a message the next one gathers for a while: a disaster
that spreads is told in a few messages, not in one for each round.
"""

import logging
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models import F, Q, QuerySet
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


def tell(channel: Channel) -> None:
    """Send the channel what it has not been told, if there is anything and its time has come."""
    row, _ = AlertChannel.objects.get_or_create(name=channel.name)
    if min(row.told_begun, row.told_ended) >= _last_round() and not _lasting(row).exists():
        return
    mine = AlertChannel.objects.filter(pk=row.pk)
    if not mine.filter(Q(due_at=None) | Q(due_at__lte=Now())).update(due_at=from_now(_CLAIM_SECONDS)):
        return
    row.refresh_from_db()  # whoever had it before may have told something since
    last = _last_round()
    # Each message with what is true once it has arrived.
    steps: list[tuple[Message | None, dict[str, Any]]] = [
        (messages.of("resolved", _ended(row, last)), {"told_ended": last}),
        (messages.of("alert", _begun(row, last)), {"told_begun": last}),
        (messages.of("alert", _lasting(row), reminder=True), {"reminded_at": timezone.now()}),
    ]
    due = [(message, facts) for message, facts in steps if message]
    for message, facts in due:
        problem = channel.send(message)
        if problem:
            wait = backoff(row.attempts + 1, base=_BASE_DELAY_SECONDS, jitter=0.0)
            mine.update(attempts=F("attempts") + 1, last_error=problem[:500], due_at=from_now(wait))
            logger.warning("alert_not_sent", extra={"channel": channel.name, "cause": problem, "again_in": wait})
            return
        mine.update(**facts)
        logger.info("alert_sent", extra={"channel": channel.name, "alert": message.event, "count": message.total})
    pause = from_now(GATHER_SECONDS) if due else None
    mine.update(told_begun=last, told_ended=last, attempts=0, last_error="", due_at=pause)


def undelivered() -> list[AlertChannel]:
    """The channels by which nothing arrives. No query unless alerts are on."""
    names = [channel.name for channel in configured()]
    return list(AlertChannel.objects.filter(name__in=names, attempts__gt=0).order_by("name")) if names else []


def _last_round() -> int:
    return AlertRound.objects.get().number


def _begun(row: AlertChannel, last: int) -> QuerySet[Alert]:
    """What has ended meanwhile is told as such only."""
    return Alert.objects.filter(opened__gt=row.told_begun, opened__lte=last, ended_at=None)


def _ended(row: AlertChannel, last: int) -> QuerySet[Alert]:
    """A channel that is new is not told of what was over before."""
    return Alert.objects.filter(closed__gt=row.told_ended, closed__lte=last, ended_at__gt=row.created_at)


def _lasting(row: AlertChannel) -> QuerySet[Alert]:
    """What was told and has gone on for `ALERT_REPEAT_SECONDS`, if the last reminder is that long ago."""
    long_ago = timezone.now() - timedelta(seconds=settings.ALERT_REPEAT_SECONDS)
    if not settings.ALERT_REPEAT_SECONDS or row.reminded_at > long_ago:
        return Alert.objects.none()
    return Alert.objects.filter(opened__lte=row.told_begun, ended_at=None, since__lte=long_ago)
