"""Send alerts by email or webhook when a problem begins and when it ends.

Alerts are off unless `ALERT_EMAILS` or `ALERT_WEBHOOK_URL` is set. Without those and without a mail server, nothing here
queries the database.

- `detect` finds problems and stores them in rows, at most once every 20 seconds across all processes. Each beginning and
  each end is stored with the number of the round that found it.
- `notify` sends each channel what began and ended since the last round it reported. A channel that was down gets everything in
  one message when it recovers, and nothing has to be queued.
- `messages` writes the text, and `channels` sends it.
- `contacts` emails the contacts of apps about changed settings. These are not alerts, but the same thread sends them.

The sweep's process runs this in its own thread, so that a slow mail server does not delay the sweep, and a hanging sweep does
not delay alerts. If the sweep has stopped, the next free worker takes over (`enqueue_if_sweep_is_late`). If all workers have
stopped or Redis is down, too, or if the database is down, no alert is sent; poll `/health/ready` from another machine to notice
that.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DatabaseError, close_old_connections, connections

from deliveries_app.monitoring.alerts import contacts
from deliveries_app.monitoring.alerts.channels import configured
from deliveries_app.monitoring.alerts.detect import EVERY_SECONDS, detect
from deliveries_app.monitoring.alerts.notify import notify, undelivered
from deliveries_app.services.contact import is_on as mail_is_on
from docora.redis import heartbeat, queues

logger = logging.getLogger(__name__)

JOB = "deliveries_app.jobs.send_alerts"
_STOP_SECONDS = 5.0  # enough to record what was just sent


def run_round() -> None:
    """Detect problems, notify the channels, and mail the contacts of apps. Skip what another process is doing.

    Raises `DatabaseError`.
    """
    channels = configured()
    if channels:
        detect()
        for channel in channels:
            notify(channel)
    contacts.send_due()


def enqueue_if_sweep_is_late() -> None:
    """If the sweep is late, enqueue a job that runs a round of alerts in its place. Workers call this.

    It reads only Redis, because work-horses would inherit a worker's database connection.
    """
    if configured() or mail_is_on():
        signs = heartbeat.read()
        if signs and signs.sweep_is_late:
            queues.enqueue("high", JOB, "late", "alerts", owned=False, leased=False)


@contextmanager
def run_in_background() -> Iterator[None]:
    """Run rounds of alerts in a thread, if alerts are on or there is a mail server."""
    stopped = threading.Event()
    thread = threading.Thread(target=_run_until, args=(stopped,), name="alerts", daemon=True)
    if configured() or mail_is_on():
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        if thread.is_alive():
            thread.join(_STOP_SECONDS)


def _run_until(stopped: threading.Event) -> None:
    try:
        while not stopped.is_set():
            close_old_connections()
            try:
                run_round()
            except DatabaseError as error:
                logger.warning("alerts_without_database", extra={"cause": str(error)})
            except Exception:
                logger.exception("alerts_failed_unexpectedly")
            stopped.wait(EVERY_SECONDS)
    finally:
        connections.close_all()
