"""Record in the audit log who signs in and out, failed sign-ins, new accounts and changed passwords.

Django's signals say so, whichever page, command or identity provider is behind it.
"""

import os
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.db.models.signals import post_save
from django.http import HttpRequest

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.models import ActorKind, AuditAction, AuditEntry
from docora.db.clock import from_now

FAILURES_PER_ADDRESS, FAILURES_IN_ALL = 20, 500
"""Failed sign-ins that are recorded within an hour. Strangers cause them, and must not be able to fill the database."""
_HOUR = 3600.0
UNKNOWN = "unknown user"


def connect() -> None:
    """Connect the receivers. Called once, when Django has loaded its models."""
    user_logged_in.connect(_signed_in, dispatch_uid="audit")
    user_logged_out.connect(_signed_out, dispatch_uid="audit")
    user_login_failed.connect(_failed, dispatch_uid="audit")
    post_save.connect(_saved, sender=get_user_model(), dispatch_uid="audit")


def _signed_in(sender: Any, request: HttpRequest | None, user: Any, **_: Any) -> None:
    actor = Actor(user.get_username(), user=user, address=_address(request))
    audit.record(actor, AuditAction.SIGN_IN, [user], "Signed in")


def _signed_out(sender: Any, request: HttpRequest | None, user: Any, **_: Any) -> None:
    if user is not None:  # the session may have ended before
        actor = Actor(user.get_username(), user=user, address=_address(request))
        audit.record(actor, AuditAction.SIGN_OUT, [user], "Signed out")


def _failed(sender: Any, credentials: dict[str, Any], request: HttpRequest | None = None, **_: Any) -> None:
    """Record the name only if an account has it: people also type their password there."""
    address = _address(request)
    recent = AuditEntry.objects.filter(action=AuditAction.SIGN_IN_FAILED, created_at__gt=from_now(-_HOUR)).order_by()
    if (
        recent.filter(address=address)[:FAILURES_PER_ADDRESS].count() == FAILURES_PER_ADDRESS
        or recent[:FAILURES_IN_ALL].count() == FAILURES_IN_ALL
    ):
        return
    user = _user_named(credentials)
    entry = audit.entry(Actor(UNKNOWN, address=address), AuditAction.SIGN_IN_FAILED, user, "Sign-in failed")
    entry.actor_kind = ActorKind.STRANGER
    entry.actor = user.get_username() if user else UNKNOWN
    entry.save(force_insert=True)


def _user_named(credentials: dict[str, Any]) -> Any:
    model = get_user_model()
    given = [credentials.get(name) for name in (model.USERNAME_FIELD, "username", "login")]
    name = next((name for name in given if isinstance(name, str) and name and "\0" not in name), "")
    return model._default_manager.filter(**{model.USERNAME_FIELD: name[:151]}).first() if name else None


def _saved(sender: Any, instance: Any, created: bool, raw: bool, **_: Any) -> None:
    """Record accounts and passwords that no page of the admin records: those of commands, and users' own changes.

    `_password` is set from `set_password` until just after the row is saved.
    """
    if raw or getattr(instance, "recorded_by_admin", False):
        return
    in_web = os.environ.get("DOCORA_PROCESS") == "web"
    if created:
        actor = Actor.system() if in_web else Actor.command()
        audit.record(actor, AuditAction.USER_ADDED, [instance], "Added the user")
    elif getattr(instance, "_password", None) is not None:
        actor = Actor(instance.get_username(), user=instance) if in_web else Actor.command()
        audit.record(actor, AuditAction.PASSWORD, [instance], "Changed the password")


def _address(request: HttpRequest | None) -> str:
    return str(request.META.get("REMOTE_ADDR", "")) if request is not None else ""
