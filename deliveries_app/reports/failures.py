"""Failing watches, with the state of each, and grouped by root cause."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Case, Count, Min, Q, TextChoices, Value, When
from django.db.models.functions import Now

from deliveries_app.models import AppRepository, AppRepositoryQuerySet, Status
from deliveries_app.models.root_causes import RootCause


class State(TextChoices):
    """State of a failing watch: the first matching condition in `_STATES`."""

    FAILED = "failed", "failed"
    RETRYING = "retrying", "retrying"
    SYNCING = "syncing", "syncing"
    COOLDOWN = "cooldown", "endpoint cooling down"
    PAUSED = "paused", "app paused"
    CIRCUIT = "circuit", "circuit open"


_STATES = [
    (Q(status=Status.SCANNING), State.SYNCING),
    (Q(app__paused=True), State.PAUSED),
    # A requested sync is the circuit's probe; all others wait for it.
    (Q(repository__circuit_open_until__gt=Now(), retry_count__gt=0), State.CIRCUIT),
    (Q(app__cooldown_until__gt=Now()), State.COOLDOWN),
    (Q(status=Status.FAILED), State.FAILED),
]


_CAUSES = list(RootCause)  # display order: endpoint, git, internal


def with_state(watches: AppRepositoryQuerySet) -> AppRepositoryQuerySet:
    """Annotate `state` and `cause_order`, which the list shows, filters and sorts by."""
    states = [When(condition, then=Value(state)) for condition, state in _STATES]
    causes = [When(root_cause=cause, then=Value(place)) for place, cause in enumerate(_CAUSES)]
    return watches.annotate(
        state=Case(*states, default=Value(State.RETRYING)), cause_order=Case(*causes, default=Value(len(_CAUSES)))
    )


@dataclass(frozen=True)
class Group:
    """`count` failing watches of `apps` apps with one root cause. `since` is when the first of them started failing."""

    cause: RootCause
    count: int
    apps: int
    since: datetime


def groups(app_pk: int | None = None) -> list[Group]:
    """Return the groups of all apps or one, in display order. One query."""
    watches = AppRepository.objects.failing()
    if app_pk is not None:
        watches = watches.filter(app_id=app_pk)
    found = (
        watches.order_by()
        .values_list("root_cause")
        .annotate(count=Count("pk"), apps=Count("app", distinct=True), since=Min("failing_since"))
    )
    result = [Group(RootCause(cause), count, apps, since) for cause, count, apps, since in found]
    return sorted(result, key=lambda group: _CAUSES.index(group.cause))
