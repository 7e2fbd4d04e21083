"""Doors for RQ: a primary key in, one call."""

from deliveries_app import alerts
from deliveries_app.services import housekeeping, pruning, waking
from deliveries_app.sync import sync
from docora.worker import stopping

_ROUNDS = 20


def sync_pair(pair_pk: int) -> None:
    """Sync the pair, and again as long as it is due again at once: a re-sync that superseded this very job, or a push
    that came during it, starts now and not with the next sweep."""
    for _ in range(_ROUNDS):
        if stopping() or not sync(pair_pk):
            break
    waking.enqueue_due()


def clean_up(what: str) -> None:
    """Remove what has ended."""
    housekeeping.remove_ended()


def go_round(what: str) -> None:
    """See to alerts in the place of a sweep that is late."""
    alerts.go_round()


def prune(what: str) -> None:
    """Remove what is old; the next hour goes on where a worker had to stop."""
    pruning.prune(stop=stopping)
