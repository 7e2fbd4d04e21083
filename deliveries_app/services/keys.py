"""Rotate an app's signing key without interrupting deliveries (wire contract §1). `keyring` decides which key signs."""

import base64
from datetime import datetime

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.models import App, AuditAction
from deliveries_app.permissions import Permission
from deliveries_app.services.contact import notify_contact
from deliveries_app.services.requests import lock_app
from deliveries_app.webhooks.signing import STANDARD_PREFIX
from docora.security.crypto import new_webhook_key

ALREADY_ROTATING = "A key rotation is already in progress. Retire the old key or discard the new one first."
NOT_ROTATING = "No key rotation is in progress."


class KeyRotationError(ValueError):
    """The state of the rotation does not allow this step. The message says what to do."""


def validate_key(key: str) -> str:
    """Return the key. Raises `ValidationError` unless it has 16 to 500 printable characters.

    Standard Webhooks libraries decode what follows `whsec_`, so it must be base64, of at least 16 bytes.
    """
    if not 16 <= len(key) <= 500 or not key.isprintable():
        raise ValidationError("The signing key must have 16 to 500 printable characters.", code="client_auth_key")
    if key.startswith(STANDARD_PREFIX) and not _is_standard(key.removeprefix(STANDARD_PREFIX)):
        raise ValidationError(
            "A signing key that starts with whsec_ must continue with at least 16 bytes as base64.",
            code="client_auth_key",
        )
    return key


def _is_standard(encoded: str) -> bool:
    try:
        return len(base64.b64decode(encoded, validate=True)) >= 16
    except ValueError:
        return False


def start_key_rotation(actor: Actor, app: App, key: str = "") -> str:
    """Start signing notifications with both keys, and return the new one, which is generated unless `key` is given.

    Raises `KeyRotationError` if a rotation is already running, and `NotFound` if the app is being removed. The two
    functions that end a rotation raise the same errors.
    """
    new_key = validate_key(key) if key else new_webhook_key()
    with transaction.atomic():
        row = lock_app(actor, app, Permission.REPLACE_SECRETS)
        if row.is_rotating_key:
            raise KeyRotationError(ALREADY_ROTATING)
        if new_key == row.client_auth_key:
            raise ValidationError("This key is already in use. Enter a different one.", code="client_auth_key")
        _save(row, new_key, timezone.now())
        changes = audit.Changes(new={"new signing key": "added"})
        audit.record(actor, AuditAction.KEY_STARTED, [row], "Started rotating the signing key", changes)
        notify_contact(
            actor, row, "A rotation of the signing key was started. Notifications are signed with both keys."
        )
    return new_key


def rotation_id(app: App) -> str:
    """Return an id for the app's current key rotation, or an empty string if there is none."""
    return app.key_rotation_started_at.isoformat() if app.key_rotation_started_at else ""


def retire_old_key(actor: Actor, app: App, rotation: str = "") -> None:
    """End the rotation, or only the one with this `rotation_id`, and keep the new key.

    The app must have accepted a notification signed with it.
    """
    with transaction.atomic():
        row = _lock_rotating(actor, app, rotation)
        if row.new_key_accepted_at is None:
            raise KeyRotationError(
                "The app hasn't accepted the new key yet. Give it the key, then send a ping signed with it."
            )
        row.client_auth_key = row.new_auth_key
        _save(row, "", None)
        changes = audit.Changes(new={"signing key": "changed"})
        audit.record(actor, AuditAction.KEY_RETIRED, [row], "Retired the old signing key", changes)
        notify_contact(actor, row, "The old signing key was retired. Notifications are signed with the new key only.")


def cancel_key_rotation(actor: Actor, app: App, rotation: str = "") -> None:
    """End the rotation, or only the one with this `rotation_id`. Keep the old key and discard the new one."""
    with transaction.atomic():
        row = _lock_rotating(actor, app, rotation)
        _save(row, "", None)
        changes = audit.Changes(new={"new signing key": "removed"})
        audit.record(actor, AuditAction.KEY_DISCARDED, [row], "Discarded the new signing key", changes)
        notify_contact(actor, row, "The new signing key was discarded. Notifications are signed with the old key only.")


def _lock_rotating(actor: Actor, app: App, rotation: str) -> App:
    row = lock_app(actor, app, Permission.REPLACE_SECRETS)
    if not row.is_rotating_key:
        raise KeyRotationError(NOT_ROTATING)
    if rotation and rotation != rotation_id(row):
        raise KeyRotationError("That key rotation has ended, and another one has started since. Nothing was changed.")
    return row


def _save(row: App, new_key: str, started_at: datetime | None) -> None:
    row.new_auth_key, row.key_rotation_started_at = new_key, started_at
    row.new_key_signs, row.new_key_accepted_at = False, None
    row.save(
        update_fields=[
            "client_auth_key", "new_auth_key", "key_rotation_started_at", "new_key_signs", "new_key_accepted_at",
            "updated_at",
        ]
    )  # fmt: skip
