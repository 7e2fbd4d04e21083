"""The state of a watch, in the words that every page, command and export uses.

`AppRepositoryQuerySet.with_state` decides which one applies, by the database's clock.
"""

from django.db import models


class WatchState(models.TextChoices):
    UP_TO_DATE = "up_to_date", "Up to date"
    SYNCING = "syncing", "Syncing"
    QUEUED = "queued", "Queued"
    RETRYING = "retrying", "Retrying"
    FAILED = "failed", "Failed"
    PAUSED = "paused", "Paused"
    ON_HOLD = "on_hold", "On hold"


class StateDetail(models.TextChoices):
    """A state, and for some states what the watch is waiting for. The label says which."""

    UP_TO_DATE = "up_to_date", ""
    SYNCING = "syncing", ""
    WAITS_FOR_WORKER = "worker", "waiting for a worker"
    WAITS_FOR_SLOT = "slot", "waiting for a free slot in the app"
    SCHEDULED = "scheduled", "next sync scheduled"
    WAITS_FOR_COMMIT = "first_commit", "waiting for the first commit"
    IMPORTING = "importing", "its records are being imported"
    RETRYING = "retrying", ""
    FAILED = "failed", ""
    ALL_PAUSED = "all_paused", "all syncing is paused"
    APP_PAUSED = "app_paused", "the app is paused"
    WATCH_PAUSED = "watch_paused", "the repository is paused"
    COOLDOWN = "cooldown", "endpoint cooldown"
    CIRCUIT_OPEN = "circuit", "open circuit"
    HOST_DOWN = "host_down", "git host unreachable"

    @property
    def state(self) -> WatchState:
        return _STATES.get(self) or WatchState(self.value)


_STATES = {  # of the details that do not have the value of their state
    StateDetail.WAITS_FOR_WORKER: WatchState.QUEUED,
    StateDetail.WAITS_FOR_SLOT: WatchState.QUEUED,
    StateDetail.SCHEDULED: WatchState.QUEUED,
    StateDetail.WAITS_FOR_COMMIT: WatchState.QUEUED,
    StateDetail.IMPORTING: WatchState.QUEUED,
    StateDetail.ALL_PAUSED: WatchState.PAUSED,
    StateDetail.APP_PAUSED: WatchState.PAUSED,
    StateDetail.WATCH_PAUSED: WatchState.PAUSED,
    StateDetail.COOLDOWN: WatchState.ON_HOLD,
    StateDetail.CIRCUIT_OPEN: WatchState.ON_HOLD,
    StateDetail.HOST_DOWN: WatchState.ON_HOLD,
}


def details_of(state: str) -> list[StateDetail]:
    """Return the details that belong to a state; none if there is no such state."""
    return [detail for detail in StateDetail if detail.state == state]
