"""The settings that a client app can change itself: paused, concurrent requests, `sync_completed` and `verify`."""

from collections.abc import Mapping

from django.core.exceptions import ValidationError
from django.db import transaction

from deliveries_app import audit, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import App, AuditAction
from deliveries_app.permissions import Permission
from deliveries_app.services.requests import NotFound

PAUSED_BY_APP = "Paused by the app."
_SETTINGS = ("paused", "max_in_flight", "send_sync_completed", "answers_verify")


class PausedByAdministrator(ValueError):
    """An app tried to resume although an administrator has paused it."""

    def __init__(self) -> None:
        super().__init__("An administrator has paused the app. Ask an administrator to resume it.")


def change_own_settings(
    actor: Actor,
    app: App,
    *,
    paused: bool | None = None,
    max_in_flight: int | None = None,
    send_sync_completed: bool | None = None,
    answers_verify: bool | None = None,
) -> App:
    """Change the settings that are not None, audit what changed, and return the app's row.

    An app can end its own pause and that of Docora after a 410. Raises `PausedByAdministrator` for an administrator's pause,
    `ValidationError` if `max_in_flight` is above the administrator's limit, and `NotFound` if the app is being removed.
    """
    actor.require(Permission.CHANGE_APPS)
    actor.require_app(app)
    with transaction.atomic():
        row = App.objects.select_for_update(no_key=True).filter(pk=app.pk, ended_at=None).first()
        if row is None:
            raise NotFound("App not found")
        changes: dict[str, object] = {}
        if paused is not None and paused != row.paused:
            if not paused and not row.paused_reason:
                raise PausedByAdministrator
            changes |= {"paused": paused, "paused_reason": PAUSED_BY_APP if paused else ""}
            if not paused:
                changes |= {"cooldown_until": None, "down_count": 0}
                transaction.on_commit(scheduling.enqueue_due, robust=True)
        if max_in_flight is not None and max_in_flight != row.max_in_flight:
            limit = row.max_in_flight_limit
            if not 1 <= max_in_flight <= limit:
                raise ValidationError(f"max_in_flight must be between 1 and {limit}, the administrator's limit.")
            changes |= {"max_in_flight": max_in_flight, "in_flight_limit": None if max_in_flight == limit else limit}
        if send_sync_completed is not None and send_sync_completed != row.send_sync_completed:
            changes["send_sync_completed"] = send_sync_completed
        if answers_verify is not None and answers_verify != row.answers_verify:
            changes["answers_verify"] = answers_verify
        if changes:
            record_settings(actor, row, {name: changes[name] for name in _SETTINGS if name in changes})
            for name, value in changes.items():
                setattr(row, name, value)
            row.save(update_fields=[*changes, "updated_at"])
    return row


def record_settings(actor: Actor, before: App, after: Mapping[str, object]) -> None:
    """Record the fields in `after` that differ from those of the row `before`. Pausing and resuming have their own entry."""
    given = dict(after)
    paused = given.pop("paused", before.paused)
    if paused != before.paused:
        action = AuditAction.APP_PAUSED if paused else AuditAction.APP_RESUMED
        audit.record(actor, action, [before], "Paused" if paused else "Resumed")
    changes = audit.Changes.of(App, {name: getattr(before, name) for name in given}, given)
    if changes:
        audit.record(actor, AuditAction.APP_CHANGED, [before], changes.summary, changes)
