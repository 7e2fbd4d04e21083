"""What is failing: grouped by root cause, and what each watched repository of it waits for."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Case, Count, Min, Q, TextChoices, Value, When
from django.db.models.functions import Now

from deliveries_app.models import AppRepository, AppRepositoryQuerySet, Status
from deliveries_app.models.root_causes import RootCause


class State(TextChoices):
    """What becomes of a failing one next; the first that is true of it, in the order of `_STATES`."""

    FAILED = "failed", "failed"
    RETRYING = "retrying", "retrying"
    SYNCING = "syncing", "syncing"
    RESTS = "rests", "endpoint rests"
    PAUSED = "paused", "app paused"
    CIRCUIT = "circuit", "circuit open"


_STATES = [
    (Q(status=Status.SCANNING), State.SYNCING),
    (Q(app__paused=True), State.PAUSED),
    # What a person asked for goes out as the probe; all others wait for it.
    (Q(repository__circuit_open_until__gt=Now(), retry_count__gt=0), State.CIRCUIT),
    (Q(app__cooldown_until__gt=Now()), State.RESTS),
    (Q(status=Status.FAILED), State.FAILED),
]


_CAUSES = list(RootCause)  # in the order in which they are told: the endpoint's, git's, ours


def with_state(watches: AppRepositoryQuerySet) -> AppRepositoryQuerySet:
    """With the `state` of each, as the list shows and filters it, and its place in the `cause_order`."""
    states = [When(condition, then=Value(state)) for condition, state in _STATES]
    causes = [When(root_cause=cause, then=Value(place)) for place, cause in enumerate(_CAUSES)]
    return watches.annotate(
        state=Case(*states, default=Value(State.RETRYING)), cause_order=Case(*causes, default=Value(len(_CAUSES)))
    )


def next_attempt(watch: AppRepository) -> datetime | None:
    """When it is tried again by itself. None while it is being tried, and as long as its app is paused."""
    if watch.status == Status.SCANNING or watch.app.paused or watch.next_sync_at is None:
        return None
    asked = watch.retry_count == 0
    waits = [watch.next_sync_at, watch.app.cooldown_until, None if asked else watch.repository.circuit_open_until]
    return max(moment for moment in waits if moment is not None)


@dataclass(frozen=True)
class Group:
    """So many failing repositories, of `apps` apps, with one root cause; the longest has been failing since `since`."""

    cause: RootCause
    count: int
    apps: int
    since: datetime


def groups(app_pk: int | None = None) -> list[Group]:
    """Of all apps, or of one, in the order of the list. One query."""
    watches = AppRepository.objects.failing()
    if app_pk is not None:
        watches = watches.filter(app_id=app_pk)
    found = (
        watches.order_by()
        .values_list("root_cause")
        .annotate(count=Count("pk"), apps=Count("app", distinct=True), since=Min("failing_since"))
    )
    made = [Group(RootCause(cause), count, apps, since) for cause, count, apps, since in found]
    return sorted(made, key=lambda group: _CAUSES.index(group.cause))
