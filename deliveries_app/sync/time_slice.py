"""For how long a run sends before it makes way for another watch that waits for a worker or a slot (`engine.md` §6)."""

import time

from deliveries_app.models import AppRepository
from deliveries_app.models.watches import app_is_full
from deliveries_app.sync.lease import Lease
from docora.db.clock import from_now

SLICE_SECONDS = 4.0
SLICE_FACTOR = 10
LONGEST_SLICE_SECONDS = 30.0
"""A run sends for `SLICE_SECONDS` or `SLICE_FACTOR` times the time it took to prepare, whichever is longer, but at most for
`LONGEST_SLICE_SECONDS`. It has to prepare again later, which should cost little compared to sending.
"""
_WAITING_SECONDS = 1.0  # a watch that has been due for this long is waiting for a worker


class TimeSlice:
    """The time for which one attempt may send. It prepares from now until `start_sending`."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._began_at = time.monotonic()
        self._next_check = 0.0
        self.fetch_seconds = 0.0
        """How long the fetch took. It counts as no preparation, because it is not repeated."""

    def start_sending(self) -> None:
        self._next_check = time.monotonic() + self.seconds

    @property
    def seconds(self) -> float:
        """For how long this run may send before it makes way."""
        prepared_in = time.monotonic() - self._began_at - self.fetch_seconds
        return max(SLICE_SECONDS, min(SLICE_FACTOR * prepared_in, LONGEST_SLICE_SECONDS))

    def is_over(self) -> bool:
        """Return whether the slice is over and another watch waits for this run to end. Checks once a second.

        That is a watch of another app, or one of this app that gets no slot.
        """
        now = time.monotonic()
        if now < self._next_check:
            return False
        self._next_check = now + _WAITING_SECONDS
        due = AppRepository.objects.due().free().exclude(app_is_full()).exclude(app=self._lease.watch.app)
        is_waiting = due.filter(next_sync_at__lt=from_now(-_WAITING_SECONDS)).exists()
        return is_waiting or self._lease.slots.watches_without_slot().exists()
