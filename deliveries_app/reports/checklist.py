"""The first four steps with a new instance, shown on the overview until they are done or the instance is in use."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from django.contrib.auth.models import AnonymousUser, User
from django.utils import timezone

from deliveries_app.models import Reason, SyncRun
from deliveries_app.permissions import Permission

_IN_USE_WATCHES = 10
_IN_USE_AFTER = timedelta(days=7)


@dataclass(frozen=True)
class Apps:
    """Counts of apps. `pinged` have accepted a test ping.

    `first` is the primary key of the first app, and `registered_at` the time of its registration.
    """

    total: int
    paused: int
    pinged: int
    first: int | None
    registered_at: datetime | None


class Step(NamedTuple):
    """One step. The user has the permission for it if `can`, and the steps that it depends on are done if `possible`."""

    name: str
    done: bool
    can: bool
    possible: bool = True


class Checklist(NamedTuple):
    """The steps. `app` is the primary key of the app to do them with, if there is one."""

    register: Step
    watch: Step
    ping: Step
    resync: Step
    app: int | None

    @property
    def steps(self) -> tuple[Step, ...]:
        return self[:4]

    @property
    def done(self) -> int:
        return sum(step.done for step in self.steps)

    @property
    def next(self) -> Step | None:
        """The first open step that the user can do now."""
        return next((step for step in self.steps if step.can and step.possible and not step.done), None)


def of_user(user: User | AnonymousUser, apps: Apps, watches: int) -> Checklist | None:
    """Return the checklist, or None if the user can do none of the steps, all are done, or the instance is in use.

    An instance is in use once it has a second app or more than ten watched repositories, or a week after its first app
    was registered. The list is for people who are new to Docora: an imported app keeps its time of registration, so few
    imported instances show it. Deciding this needs no query; a shown list needs one.
    """
    if apps.total > 1 or watches > _IN_USE_WATCHES:
        return None
    if apps.registered_at and timezone.now() - apps.registered_at > _IN_USE_AFTER:
        return None
    can = user.has_perm
    has_resynced = watches > 0 and SyncRun.objects.filter(reason=Reason.RESYNC).exists()
    found = Checklist(
        register=Step("register", apps.total > 0, can(Permission.REGISTER_APPS)),
        watch=Step("watch", watches > 0, can(Permission.WATCH), apps.total > 0),
        ping=Step("ping", apps.pinged > 0, can(Permission.CHANGE_APPS), apps.total > 0),
        resync=Step("resync", has_resynced, can(Permission.RESYNC), watches > 0),
        app=apps.first,
    )
    is_shown = found.done < len(found.steps) and any(step.can for step in found.steps)
    return found if is_shown else None
