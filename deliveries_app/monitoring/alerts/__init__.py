"""Alerts outside the admin, by e-mail or webhook: when a problem begins and when it is over.

Alerts are off, and nothing here queries the database, unless `ALERT_EMAILS` or `ALERT_WEBHOOK_URL` is set.

- `detect` finds what is wrong and stores it in rows, at most once every half minute across all processes. Whatever begins or
  ends in one round carries the round's number.
- `notify` sends each channel what began and ended since the last round it reported. A channel that was down gets everything in
  one message when it is back, and nothing has to be queued.
- `messages` writes the text, and `channels` sends it.

The sweep's process runs this in its own thread, so that a slow mail server does not delay the sweep, and a hanging sweep does
not delay alerts. If the sweep has stopped, a worker takes over (`look_after_sweep`), once one is free. If everything has
stopped, or the database is away, nothing here notices; poll `/health/ready` from another machine for that.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.db import DatabaseError, close_old_connections, connections

from deliveries_app.monitoring.alerts import messages
from deliveries_app.monitoring.alerts.channels import configured
from deliveries_app.monitoring.alerts.detect import EVERY_SECONDS, detect
from deliveries_app.monitoring.alerts.notify import notify, undelivered
from docora.redis import heartbeat, queues

__all__ = ["go_round", "going_round", "look_after_sweep", "send_test", "undelivered"]

logger = logging.getLogger(__name__)

JOB = "deliveries_app.jobs.go_round"
_LEAVE_SECONDS = 5.0  # time to record what was just sent


def go_round() -> None:
    """Detect and notify, unless another process does. Raises `DatabaseError`."""
    channels = configured()
    if channels:
        detect()
        for channel in channels:
            notify(channel)


def look_after_sweep() -> None:
    """Called by workers: if the sweep is late, enqueue a job that does its round of alerts.

    This reads only Redis, because work-horses would inherit a worker's database connection.
    """
    if configured():
        signs = heartbeat.read()
        if signs and signs.sweep_is_late:
            queues.enqueue("high", JOB, "late", "alerts", owned=False)


@dataclass(frozen=True)
class Tested:
    """Result of a test message: `problem` is empty if `target` accepted it."""

    target: str
    problem: str


def send_test() -> list[Tested]:
    """Send a test message through every channel. Return an empty list if alerts are off."""
    return [Tested(channel.target(), channel.send(messages.test())) for channel in configured()]


@contextmanager
def going_round() -> Iterator[None]:
    """Run the rounds of alerts in a thread, if alerts are on."""
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
