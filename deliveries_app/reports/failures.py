"""Failing watches, grouped by root cause."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Case, Count, Min, Value, When

from deliveries_app.models import AppRepository, AppRepositoryQuerySet
from deliveries_app.models.root_causes import RootCause, label_of

_PLACES = {cause.value: place for place, cause in enumerate(RootCause)}  # display order: endpoint, git, internal


def with_cause_order(watches: AppRepositoryQuerySet) -> AppRepositoryQuerySet:
    """Annotate `cause_order`, the place of the root cause in the order of display."""
    causes = [When(root_cause=cause, then=Value(place)) for cause, place in _PLACES.items()]
    return watches.annotate(cause_order=Case(*causes, default=Value(len(_PLACES))))


@dataclass(frozen=True)
class Group:
    """`count` failing watches of `apps` apps with one root cause. `since` is when the first of them started failing.

    A later version may have stored a `cause` that is not in `RootCause`.
    """

    cause: str
    count: int
    apps: int
    since: datetime

    @property
    def label(self) -> str:
        return label_of(self.cause)


def groups(apps: Collection[int] | None = None) -> list[Group]:
    """Return the groups of all apps, or of those with these primary keys, in display order. One query."""
    watches = AppRepository.objects.failing()
    if apps is not None:
        watches = watches.filter(app__in=apps)
    found = (
        watches.order_by()
        .values_list("root_cause")
        .annotate(count=Count("pk"), apps=Count("app", distinct=True), since=Min("failing_since"))
    )
    return sorted((Group(*each) for each in found), key=lambda group: _PLACES.get(group.cause, len(_PLACES)))
