"""RQ entry points. Each takes one string or primary key and, except for syncs, calls one function.

A job that loses its database connection logs a warning and ends. All work is recorded in rows, so the sweep enqueues it
again.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

from django.conf import settings

from deliveries_app import scheduling
from deliveries_app.monitoring import alerts
from deliveries_app.sweep import cleanup, retention
from deliveries_app.sync.attempt import sync
from docora.db.connection import CONNECTION_ERRORS
from docora.http.client import HttpClient
from docora.process import stopping
from repositories_app.git import remote
from repositories_app.mirror import cache

logger = logging.getLogger(__name__)

_MAX_SYNCS = 20
_local = threading.local()


@contextlib.contextmanager
def _log_lost_database() -> Iterator[None]:
    try:
        yield
    except CONNECTION_ERRORS as error:
        logger.warning("job_without_database", extra={"cause": str(error).strip()})


@_log_lost_database()
def sync_watch(watch_pk: int, *, alone: bool = False) -> None:
    """Sync the watch, and repeat while it is due again immediately.

    That happens when a re-sync supersedes this job or a push arrives during it; waiting for the next sweep would delay
    both. Afterwards, fill the queue and trim the mirror cache, which the fetch may have grown past its limit.
    """
    for _ in range(_MAX_SYNCS):
        if stopping() or not sync(watch_pk, _client(), alone=alone):
            break
    scheduling.enqueue_due(after_job_of=watch_pk)
    cache.maintain()


def sync_watch_alone(watch_pk: int) -> None:
    """Sync the watch in a separate process, because its earlier syncs may have killed workers that others were using."""
    sync_watch(watch_pk, alone=True)


def _client() -> HttpClient:
    """Return this thread's client, so that consecutive syncs reuse its connections. A forked process needs its own."""
    if getattr(_local, "pid", None) != os.getpid():
        _local.pid, _local.client = os.getpid(), remote.new_client(max_connections=settings.MAX_IN_FLIGHT_LIMIT)
    return _local.client  # type: ignore[no-any-return]


@_log_lost_database()
def clean_up(_argument: str) -> None:
    """Remove ended watches, deleted apps, and repositories that no app watches.

    If the worker has to stop, the next job continues.
    """
    cleanup.remove_ended(stop=stopping)


@_log_lost_database()
def send_alerts(_argument: str) -> None:
    """Detect and send alerts when the sweep, which normally does this, is late."""
    alerts.run_round()


@_log_lost_database()
def prune(_argument: str) -> None:
    """Remove history past its retention. If the worker has to stop, the next hourly run continues."""
    retention.prune(stop=stopping)
