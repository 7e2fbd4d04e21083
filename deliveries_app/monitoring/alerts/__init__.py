"""Alerts: the operator is told outside of the admin what is wrong, when it begins and when it is over.

Off unless `ALERT_EMAILS` or `ALERT_WEBHOOK_URL` is set; then nothing here asks the database anything.

- `looking` finds out what is wrong and keeps it in rows, at most once in half a minute over all processes. What began
  or ended in one round carries the round's number.
- `telling` says what a channel has not been told: what began, and what ended, since the round up to which it was. So a
  channel that was down is told everything in one message once it is back, however long that took, and there is never more
  than this difference to be kept.
- `wording` makes a message of it, `channels` sends it.

The sweep's process does this in a thread of its own (`sweep.py`), so that no slow mail server holds the sweep up, nor a
sweep that hangs the alerts. A sweep that has ended is noticed by the workers, each time they look after their queues
(`look_after_sweep`); with all of them busy, once one is free. What nobody notices: that everything has stopped, that
neither sweep nor worker runs, or that the database is away. For these ask `/health/ready` from another machine.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.db import DatabaseError, close_old_connections, connections

from deliveries_app.monitoring.alerts import messages
from deliveries_app.monitoring.alerts.channels import configured
from deliveries_app.monitoring.alerts.detect import EVERY_SECONDS, look
from deliveries_app.monitoring.alerts.notify import tell, undelivered
from docora.redis import heartbeat, queues

__all__ = ["go_round", "going_round", "look_after_sweep", "send_test", "undelivered"]

logger = logging.getLogger(__name__)

JOB = "deliveries_app.jobs.go_round"
_LEAVE_SECONDS = 5.0  # to record what has just been sent


def go_round() -> None:
    """Look, and tell whoever is to be told; both only if nobody else is at it. Raises `DatabaseError`."""
    channels = configured()
    if channels:
        look()
        for channel in channels:
            tell(channel)


def look_after_sweep() -> None:
    """For workers: have one of them go round in the sweep's place if that is late. Asks Redis only, for a worker's
    connection to the database would be inherited by its work-horses."""
    if configured():
        signs = heartbeat.read()
        if signs and signs.sweep_is_late:
            queues.enqueue("high", JOB, "late", "alerts", owned=False)


@dataclass(frozen=True)
class Tested:
    """What came of a test by one channel: taken by `target`, or the `problem` in a sentence."""

    target: str
    problem: str


def send_test() -> list[Tested]:
    """Send a test by every channel; an empty list when alerts are off."""
    return [Tested(channel.target(), channel.send(messages.test())) for channel in configured()]


@contextmanager
def going_round() -> Iterator[None]:
    """Meanwhile a thread goes round, if alerts are on."""
    left = threading.Event()
    thread = threading.Thread(target=_go_round_until, args=(left,), name="alerts", daemon=True)
    if configured():
        thread.start()
    try:
        yield
    finally:
        left.set()
        if thread.is_alive():
            thread.join(_LEAVE_SECONDS)


def _go_round_until(left: threading.Event) -> None:
    try:
        while not left.is_set():
            close_old_connections()
            try:
                go_round()
            except DatabaseError as error:
                logger.warning("alerts_without_database", extra={"cause": str(error)})
            except Exception:
                logger.exception("alerts_failed_unexpectedly")
            left.wait(EVERY_SECONDS)
    finally:
        connections.close_all()
