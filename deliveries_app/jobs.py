"""Doors for RQ: a primary key in, one call.

A database that is gone ends a job in words. What was to be done stands in the rows, and the sweep finds it again.
"""

import contextlib
import logging
from collections.abc import Iterator

from deliveries_app import scheduling
from deliveries_app.monitoring import alerts
from deliveries_app.sweep import cleanup, retention
from deliveries_app.sync.attempt import sync
from docora.db.connection import LOST
from docora.server.worker import stopping
from repositories_app.mirror import cache

logger = logging.getLogger(__name__)

_ROUNDS = 20


@contextlib.contextmanager
def _until_the_database_is_lost() -> Iterator[None]:
    try:
        yield
    except LOST as error:
        logger.warning("job_without_database", extra={"cause": str(error).strip()})


@_until_the_database_is_lost()
def sync_watch(watch_pk: int) -> None:
    """Sync the watch, and again as long as it is due again at once: a re-sync that superseded this very job, or a push
    that came during it, starts now and not with the next sweep. What was fetched may be too much for this machine."""
    for _ in range(_ROUNDS):
        if stopping() or not sync(watch_pk):
            break
    scheduling.enqueue_due()
    cache.look_after()


@_until_the_database_is_lost()
def clean_up(what: str) -> None:
    """Remove what has ended."""
    cleanup.remove_ended()


@_until_the_database_is_lost()
def go_round(what: str) -> None:
    """See to alerts in the place of a sweep that is late."""
    alerts.go_round()


@_until_the_database_is_lost()
def prune(what: str) -> None:
    """Remove what is old; the next hour goes on where a worker had to stop."""
    retention.prune(stop=stopping)
