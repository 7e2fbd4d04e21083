"""The sweep: every few seconds, read from the database what is due. Nothing depends on data in Redis."""

import logging
import time

from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections

from deliveries_app import scheduling
from deliveries_app.monitoring import alerts
from deliveries_app.progress import runs
from deliveries_app.services import drift, release
from deliveries_app.sweep import cleanup, head_checks, retention
from deliveries_app.sync import lease
from docora.http.client import HttpClient
from docora.redis import heartbeat
from docora.server.worker import stopping
from repositories_app.git import remote

logger = logging.getLogger(__name__)

_WAKE_SECONDS = 1.0  # how often due retries are enqueued between sweeps


def _enqueue_due() -> int:
    """End the leases of dead processes, look after checks, release watches of gradual operations, and enqueue what is due.

    Return the number of enqueued jobs.
    """
    lease.end_dead_leases()
    drift.look_after()
    release.release_due()
    return scheduling.enqueue_due()


class _EnqueueDue:
    """Call `_enqueue_due` at most once every `_WAKE_SECONDS`."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._next:
            _enqueue_due()
            heartbeat.beat(heartbeat.SWEEP)  # a sweep that waits for slow git hosts is still alive
            self._next = time.monotonic() + _WAKE_SECONDS


def sweep_once(client: HttpClient) -> int:
    """Check repositories, enqueue what is due, close finished operations and clean up. Return the number of enqueued jobs."""
    head_checks.check_due(client, _EnqueueDue())  # due syncs do not wait for slow git hosts
    runs.close_abandoned_operations()
    cleanup.enqueue_clean_up()
    retention.enqueue_prune()
    enqueued = _enqueue_due()
    heartbeat.beat(heartbeat.SWEEP)
    return enqueued


def sweep_forever() -> None:
    """Sweep until the process is asked to stop. Keep trying while the database is down, and send alerts in a thread."""
    next_sweep = 0.0
    with remote.new_client() as client, alerts.run_in_background():
        while not stopping():
            close_old_connections()
            try:
                if time.monotonic() >= next_sweep:
                    next_sweep = time.monotonic() + settings.SWEEP_INTERVAL_SECONDS
                    sweep_once(client)
                else:
                    _enqueue_due()
            except (DatabaseError, InterfaceError) as error:
                logger.warning("sweep_without_database", extra={"cause": str(error)})
            time.sleep(max(0.05, min(_WAKE_SECONDS, next_sweep - time.monotonic())))
