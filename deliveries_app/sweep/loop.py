"""The sweep: every few seconds it finds from the database what is due, so that nothing depends on Redis' memory."""

import logging
import time

from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections

from deliveries_app import scheduling
from deliveries_app.monitoring import alerts
from deliveries_app.progress import runs
from deliveries_app.sweep import cleanup, head_checks, retention
from docora.http.client import HttpClient
from docora.redis import heartbeat
from docora.server.worker import stopping
from repositories_app.git import remote

logger = logging.getLogger(__name__)

_WAKE_SECONDS = 1.0  # how often due retries are enqueued in between


class _Wakes:
    """Enqueues what is due, at most once in `_WAKE_SECONDS` however often it is called."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._next:
            scheduling.enqueue_due()
            heartbeat.beat(heartbeat.SWEEP)  # hosts may be slow; a sweep that waits for them is alive
            self._next = time.monotonic() + _WAKE_SECONDS


def sweep_once(client: HttpClient) -> int:
    """Check what has to be checked, enqueue what is due, close and clean up what has ended. How many were enqueued."""
    head_checks.check_due(client, _Wakes())  # hosts may be slow; nothing that is due waits for them
    runs.close_abandoned_operations()
    cleanup.enqueue_clean_up()
    retention.enqueue_prune()
    enqueued = scheduling.enqueue_due()
    heartbeat.beat(heartbeat.SWEEP)
    return enqueued


def sweep_forever() -> None:
    """Until the process is told to stop. A database that is away is waited for. Alerts are seen to beside it."""
    next_sweep = 0.0
    with remote.new_client() as client, alerts.going_round():
        while not stopping():
            close_old_connections()
            try:
                if time.monotonic() >= next_sweep:
                    next_sweep = time.monotonic() + settings.SWEEP_INTERVAL_SECONDS
                    sweep_once(client)
                else:
                    scheduling.enqueue_due()
            except (DatabaseError, InterfaceError) as error:
                logger.warning("sweep_without_database", extra={"cause": str(error)})
            time.sleep(max(0.05, min(_WAKE_SECONDS, next_sweep - time.monotonic())))
