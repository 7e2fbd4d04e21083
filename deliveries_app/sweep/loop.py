"""The sweep: every few seconds, read from the database what is due. Nothing depends on data in Redis."""

import logging
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import ProgrammingError, close_old_connections

from deliveries_app import scheduling
from deliveries_app.monitoring import alerts
from deliveries_app.progress import runs
from deliveries_app.services import drift, rollout
from deliveries_app.sweep import cleanup, head_checks, retention
from deliveries_app.sweep.wrong_times import correct_wrong_times
from deliveries_app.sync.dead_processes import end_dead_leases
from docora.db.connection import CONNECTION_ERRORS
from docora.http.client import HttpClient
from docora.process import stopping
from docora.redis import heartbeat
from repositories_app.git import remote
from repositories_app.git.exceptions import Interrupted

logger = logging.getLogger(__name__)

_WAKE_SECONDS = 1.0  # how often due retries are enqueued between sweeps
_LOG_INTERVAL_SECONDS = 60.0  # how often an outage of the database is logged
# Errors while the database is down, read-only during a failover, or without tables.
_WITHOUT_DATABASE = (*CONNECTION_ERRORS, ProgrammingError)


class SweepFailed(Exception):
    """Some parts of the sweep failed unexpectedly. Their errors were logged, and all other parts ran."""


def _run(*parts: Callable[[], Any]) -> Any:
    """Call all parts, even if one of them fails, and return the result of the last one.

    Raises `SweepFailed` after the last part, but `Interrupted` and errors in `_WITHOUT_DATABASE` at once.
    """
    failed, result = False, None
    for part in parts:
        try:
            result = part()
        except (*_WITHOUT_DATABASE, Interrupted):
            raise
        except SweepFailed:
            failed = True
        except Exception:
            logger.exception("sweep_failed_unexpectedly")
            failed = True
    if failed:
        raise SweepFailed
    return result


def _enqueue_due() -> int:
    """End the leases of dead processes, maintain checks, release watches of gradual operations, and enqueue what is due.

    Return the number of enqueued jobs.
    """
    return int(_run(end_dead_leases, drift.maintain_checks, rollout.release_due, scheduling.enqueue_due))


class _EnqueueDue:
    """Call `_enqueue_due` at most once every `_WAKE_SECONDS`. With `beats`, record a heartbeat after each call, until one fails.

    Raises `Interrupted` once the process was asked to stop, so that a git host that hangs does not delay its end.
    """

    def __init__(self, *, beats: bool) -> None:
        self._beats = beats
        self._next = 0.0

    def __call__(self) -> None:
        if stopping():
            raise Interrupted
        if time.monotonic() >= self._next:
            try:
                _enqueue_due()
            except SweepFailed:
                self._beats = False
            if self._beats:
                heartbeat.beat()  # a sweep that waits for slow git hosts is still alive
            self._next = time.monotonic() + _WAKE_SECONDS


def sweep_once(client: HttpClient, *, last_failed: bool = False) -> int:
    """Check repositories, enqueue what is due, close finished operations and clean up. Return the number of enqueued jobs.

    Raises `SweepFailed`. Record a heartbeat after a complete round and, unless the previous round failed (`last_failed`),
    also while waiting for slow git hosts.
    """
    enqueue_due = _EnqueueDue(beats=not last_failed)
    enqueued = _run(
        correct_wrong_times,
        lambda: head_checks.check_due(client, enqueue_due),  # due syncs do not wait for slow git hosts
        runs.close_abandoned_operations,
        cleanup.enqueue_clean_up,
        retention.enqueue_prune,
        _enqueue_due,
    )
    heartbeat.beat()
    return int(enqueued)


def sweep_forever() -> None:
    """Sweep until the process is asked to stop, and send alerts in a thread.

    Keep trying while the database is down or a part fails. Record heartbeats between two rounds, unless the last one failed.
    """
    next_sweep = next_log = 0.0
    last_failed = False
    with remote.new_client() as client, alerts.run_in_background():
        while not stopping():
            close_old_connections()
            try:
                if time.monotonic() >= next_sweep:
                    next_sweep = time.monotonic() + settings.SWEEP_INTERVAL_SECONDS
                    failed_before, last_failed = last_failed, True  # until this round has succeeded
                    sweep_once(client, last_failed=failed_before)
                    last_failed = False
                else:
                    _enqueue_due()
                    if not last_failed:
                        heartbeat.beat()
            except Interrupted:
                break
            except SweepFailed:  # no heartbeat, so health checks and alerts report it
                pass
            except _WITHOUT_DATABASE as error:
                if time.monotonic() >= next_log:
                    next_log = time.monotonic() + _LOG_INTERVAL_SECONDS
                    logger.warning("sweep_without_database", extra={"cause": str(error).strip()})
            time.sleep(max(0.05, min(_WAKE_SECONDS, next_sweep - time.monotonic())))
