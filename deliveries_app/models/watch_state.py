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
    """A state, and for some states what the watch is waiting for: the value begins with the state, the label says what for."""

    UP_TO_DATE = "up_to_date", ""
    SYNCING = "syncing", ""
    WAITS_FOR_WORKER = "queued:worker", "waiting for a worker"
    WAITS_FOR_SLOT = "queued:slot", "waiting for a free slot in the app"
    SCHEDULED = "queued:scheduled", "next sync scheduled"
    WAITS_FOR_COMMIT = "queued:first_commit", "waiting for the first commit"
    IMPORTING = "queued:importing", "its records are being imported"
    RETRYING = "retrying", ""
    FAILED = "failed", ""
    ALL_PAUSED = "paused:all", "all syncing is paused"
    APP_PAUSED = "paused:app", "the app is paused"
    WATCH_PAUSED = "paused:watch", "the repository is paused"
    COOLDOWN = "on_hold:cooldown", "endpoint cooldown"
    CIRCUIT_OPEN = "on_hold:circuit", "open circuit"
    HOST_DOWN = "on_hold:host_down", "git host unreachable"

    @property
    def state(self) -> WatchState:
        return WatchState(self.value.partition(":")[0])

    @property
    def in_words(self) -> str:
        """The state and, if it is known, what the watch is waiting for: `On hold (open circuit)`."""
        return f"{self.state.label} ({self.label})" if self.label else str(self.state.label)

    @property
    def is_held_back(self) -> bool:
        """Whether a due watch has to wait for something other than a worker or a slot."""
        return self.state in {WatchState.PAUSED, WatchState.ON_HOLD} or self == StateDetail.IMPORTING


def details_of(state: str) -> list[StateDetail]:
    """Return the details that belong to a state; none if there is no such state."""
    return [detail for detail in StateDetail if detail.state == state]
