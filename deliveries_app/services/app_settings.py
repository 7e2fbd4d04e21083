"""Change a client app's settings. Administrators can change all of them.

An app can change some itself: paused, concurrent requests, `sync_completed` and `verify`.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, TypedDict, Unpack

from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models.functions import Now

from deliveries_app import audit, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, AuditAction
from deliveries_app.permissions import Permission
from deliveries_app.services.contact import notify_contact
from deliveries_app.services.github_apps import sync_refused
from deliveries_app.services.requests import lock_app
from deliveries_app.sync.outcomes import OTHERS_FIRST_SECONDS

PAUSED_BY_APP = "Paused by the app."


class OwnSettings(TypedDict, total=False):
    """The settings that an app can change itself. None keeps a setting."""

    paused: bool | None
    max_in_flight: int | None
    send_sync_completed: bool | None
    answers_verify: bool | None


class PausedByAdministrator(ValueError):
    """An app tried to resume although an administrator has paused it."""

    def __init__(self) -> None:
        super().__init__("An administrator has paused the app. Ask an administrator to resume it.")


def change_app(actor: Actor, app: App, changed: Iterable[str]) -> None:
    """Save the fields named in `changed`, and those that change with them.

    An app cannot do this with its own token, because a stolen token could then send the files elsewhere: see
    `change_own_settings`. The GitHub App decides what the client app can read, so assigning one also requires the permission
    to change GitHub Apps.

    A pause by the app itself or by Docora becomes the administrator's if `paused` is set. Resuming or changing the base URL
    ends the endpoint's cooldown. A new base URL also clears the old endpoint's pace and failed ping. After a change of the
    GitHub App, repositories that could not be read are synced. `max_in_flight` sets the administrator's limit: if the app has
    chosen fewer concurrent requests, its choice stays. Raises `NotFound` if the app is being removed.
    """
    actor.require(Permission.CHANGE_APPS)
    if actor.app is not None:
        raise PermissionDenied("An app's token can't change these settings.")
    given = {name: getattr(app, name) for name in sorted(set(changed))}
    if "github_app" in given:
        actor.require(Permission.CHANGE_GITHUB_APPS)
    also: dict[str, Any] = {}  # fields that change with the given ones
    if "paused" in given:
        also["paused_reason"] = ""  # an administrator's pause has none
    if "base_url" in given or given.get("paused") is False:
        also |= {"cooldown_until": None, "down_count": 0}
    if "base_url" in given:
        also |= {"ping_failed_at": None, "pace_slots": None, "pace_gap": 0.0}
    with transaction.atomic():
        before = lock_app(actor, app, Permission.CHANGE_APPS)
        if "max_in_flight" in given:
            limit = given["max_in_flight"]  # the administrator's; the app's own choice, if there is one, is in `before`
            chosen = limit if before.in_flight_limit is None else min(limit, before.max_in_flight)
            also |= {"max_in_flight": chosen, "in_flight_limit": limit if chosen < limit else None}
            before.max_in_flight = before.max_in_flight_limit  # what the form shows and sets
        _record_settings(actor, before, given)
        if before.paused and before.paused_reason and given.get("paused"):
            audit.record(actor, AuditAction.APP_PAUSED, [app], f"Paused. Until then: {before.paused_reason}")
        _notify_of_new_addresses(actor, before, given)
        _save(app, given | also)
        if "github_app" in given and given["github_app"] != before.github_app:
            sync_refused(AppRepository.objects.filter(app=app))
        if "cooldown_until" in also:
            continue_syncs(before)


def _save(app: App, fields: Mapping[str, object]) -> None:
    """Set and save only these fields, because workers update the others."""
    for name, value in fields.items():
        setattr(app, name, value)
    app.save(update_fields=[*fields, "updated_at"])


def continue_syncs(app: App) -> None:
    """Enqueue what waits for the end of a cooldown that is over now. `app` is the app before the change."""
    if app.cooldown_until is not None:
        # The attempts that began the cooldown are due at its end, or a little later so that others go first.
        end = app.cooldown_until + timedelta(seconds=2 * OTHERS_FIRST_SECONDS)
        scheduling.request_sync(AppRepository.objects.filter(app=app, next_sync_at__gt=Now(), next_sync_at__lte=end))
    transaction.on_commit(scheduling.enqueue_due, robust=True)


def change_own_settings(actor: Actor, app: App, **settings: Unpack[OwnSettings]) -> App:
    """Change these settings, audit what changed, and return the app's row.

    An app can end its own pause and that of Docora after a 410. Raises `PausedByAdministrator` for an administrator's pause,
    `ValidationError` if `max_in_flight` is above the administrator's limit, and `NotFound` if the app is being removed.
    """
    with transaction.atomic():
        row = lock_app(actor, app, Permission.CHANGE_APPS)
        given: dict[str, Any] = {
            name: value for name, value in settings.items() if value is not None and value != getattr(row, name)
        }
        changes = dict(given)
        if "paused" in given:
            if not given["paused"] and not row.paused_reason:
                raise PausedByAdministrator
            changes["paused_reason"] = PAUSED_BY_APP if given["paused"] else ""
            if not given["paused"]:
                continue_syncs(row)
                changes |= {"cooldown_until": None, "down_count": 0}
        if "max_in_flight" in given:
            limit = row.max_in_flight_limit
            if not 1 <= given["max_in_flight"] <= limit:
                raise ValidationError(f"max_in_flight must be between 1 and {limit}, the administrator's limit.")
            changes["in_flight_limit"] = None if given["max_in_flight"] == limit else limit
        if changes:
            _record_settings(actor, row, given)
            _save(row, changes)
    return row


def _record_settings(actor: Actor, before: App, after: Mapping[str, object]) -> None:
    """Record the fields in `after` that differ from those of the row `before`. Pausing and resuming have their own entry."""
    given = dict(after)
    paused = given.pop("paused", before.paused)
    if paused != before.paused:
        action = AuditAction.APP_PAUSED if paused else AuditAction.APP_RESUMED
        audit.record(actor, action, [before], "Paused" if paused else "Resumed")
    changes = audit.Changes.of(App, {name: getattr(before, name) for name in given}, given)
    if changes:
        audit.record(actor, AuditAction.APP_CHANGED, [before], changes.summary, changes)


def _notify_of_new_addresses(actor: Actor, before: App, given: Mapping[str, object]) -> None:
    """Notify the contact, at the address before the change, of a new base URL or email address."""
    if (url := given.get("base_url", before.base_url)) != before.base_url:
        notify_contact(actor, before, f"The base URL was changed from {before.base_url} to {url}.")
    if given.get("email", before.email) != before.email:
        notify_contact(actor, before, "The contact's email address was changed. Further messages go to the new one.")
