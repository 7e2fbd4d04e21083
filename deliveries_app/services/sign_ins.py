"""Record in the audit log who signs in and out, failed sign-ins, new accounts, and changed passwords, second factors and roles.

Signals of Django, allauth and `docora.sign_in` report them for every page, command and identity provider. Importing this module
connects the receivers (`DeliveriesConfig.ready`).
"""

from dataclasses import replace
from typing import Any

from allauth.core import context
from allauth.mfa import signals as second_factors
from allauth.mfa.models import Authenticator
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.db import transaction
from django.db.models import QuerySet
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.http import HttpRequest

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.models import ActorKind, AuditAction, AuditEntry
from docora.db.clock import from_now
from docora.sign_in import links, oidc
from docora.text import clean_text

FAILURES_PER_ADDRESS, FAILURES_IN_ALL = 20, 500
"""Failed sign-ins recorded per hour. Anyone can cause them, so without limits they could fill the database."""
_HOUR = 3600.0
PROXY_CREDENTIAL = "remote_user"
"""The credential in which Django's backend for proxy users passes the name."""
UNKNOWN = "unknown user"


@receiver(user_logged_in)
def _signed_in(sender: Any, request: HttpRequest | None, user: Any, **_: Any) -> None:
    audit.record(_user(user, request), AuditAction.SIGN_IN, [user], "Signed in")


@receiver(user_logged_out)
def _signed_out(sender: Any, request: Any, user: Any, **_: Any) -> None:
    if user is None:  # the session may have ended before
        return
    with transaction.atomic():
        if not request.session.end():  # recorded by another request
            return
        if getattr(request, "was_idle", False):
            audit.record(_docora(request), AuditAction.SIGN_OUT, [user], "Session ended after inactivity")
        else:
            audit.record(_user(user, request), AuditAction.SIGN_OUT, [user], "Signed out")


@receiver(user_login_failed)
def _failed(sender: Any, credentials: dict[str, Any], request: HttpRequest | None = None, **_: Any) -> None:
    """Record the name only if an account has it: people sometimes type their password into this field.

    A name that a proxy sends is not a password, so it is recorded, but only once per hour: it comes with every request.
    """
    if not isinstance(name := credentials.get(PROXY_CREDENTIAL), str):
        _record_failure(_user_named(credentials), request, "Sign-in failed")
        return
    message = f"Sign-in failed: the proxy's user {clean_text(name, 150)} has no active account"
    if not _recent_failures().filter(message=message).exists():
        _record_failure(_user_named(credentials), request, message)


@receiver(second_factors.authentication_failed)
def _code_refused(sender: Any, request: HttpRequest, user: Any, **_: Any) -> None:
    """Record a wrong code, including the user, because the password was right."""
    _record_failure(user, request, "Sign-in failed: wrong second-factor code")


def _record_failure(user: Any, request: HttpRequest | None, message: str) -> None:
    address = _address(request)
    recent = _recent_failures()
    if (
        recent.filter(address=address)[:FAILURES_PER_ADDRESS].count() == FAILURES_PER_ADDRESS
        or recent[:FAILURES_IN_ALL].count() == FAILURES_IN_ALL
    ):
        return
    person = getattr(request, "user", None)
    if person is not None and person.is_authenticated:  # when asked to confirm, or on the page to change the password
        audit.record(_user(person, request), AuditAction.SIGN_IN_FAILED, [user or person], message)
        return
    entry = audit.entry(Actor(UNKNOWN, address=address), AuditAction.SIGN_IN_FAILED, user, message)
    entry.actor_kind = ActorKind.STRANGER
    entry.actor = user.get_username() if user else UNKNOWN
    entry.save(force_insert=True)


def _recent_failures() -> QuerySet[AuditEntry]:
    """Return the failures within the last hour, without those that were recorded while a clock was far ahead."""
    last_hour = (from_now(-_HOUR), from_now(_HOUR))
    return AuditEntry.objects.filter(action=AuditAction.SIGN_IN_FAILED, created_at__range=last_hour).order_by()


def _user_named(credentials: dict[str, Any]) -> Any:
    model = get_user_model()
    given = [credentials.get(name) for name in (model.USERNAME_FIELD, "username", "login", PROXY_CREDENTIAL)]
    name = next((name for name in given if isinstance(name, str) and name and "\0" not in name), "")
    return model._default_manager.filter(**{model.USERNAME_FIELD: name}).first() if name else None


@receiver(post_save, sender=get_user_model())
def _saved(sender: Any, instance: Any, created: bool, raw: bool, **_: Any) -> None:
    """Record new accounts and changed passwords that the admin does not: by commands, and by users themselves.

    `_password` is set from `set_password` until just after the row is saved.
    """
    if raw or getattr(instance, "recorded_by_admin", False):
        return
    request = context.request
    if created:
        actor = _docora(request) if request else Actor.command()
        rights = {name: True for name in ("is_staff", "is_superuser") if getattr(instance, name)}
        changes = audit.Changes.initial(type(instance), rights)
        audit.record(actor, AuditAction.USER_ADDED, [instance], "Added the user", changes)
    elif getattr(instance, "_password", None) is not None:
        actor = _user(instance, request) if request else Actor.command()
        audit.record(actor, AuditAction.PASSWORD, [instance], "Changed the password")


@receiver(oidc.roles_applied)
def _roles_applied(sender: Any, user: Any, before: dict[str, Any], after: dict[str, Any], **_: Any) -> None:
    changes = audit.Changes.of(type(user), before, after)
    if changes:
        message = f"From the identity provider: {changes.summary}"
        audit.record(_docora(context.request), AuditAction.USER_CHANGED, [user], message, changes)


@receiver(links.link_created)
def _link_created(sender: Any, user: Any, **_: Any) -> None:
    audit.record(Actor.command(), AuditAction.SIGN_IN_LINK, [user], "Created a link that signs in as this user")


@receiver([second_factors.authenticator_added, second_factors.authenticator_reset])
def _factor_added(sender: Any, request: HttpRequest, user: Any, authenticator: Authenticator, **_: Any) -> None:
    audit.record(_user(user, request), AuditAction.SECOND_FACTOR, [user], f"Added {_name_of(authenticator)}")


@receiver(second_factors.authenticator_removed)
def _factor_removed(sender: Any, request: HttpRequest, user: Any, authenticator: Authenticator, **_: Any) -> None:
    audit.record(_user(user, request), AuditAction.SECOND_FACTOR, [user], f"Removed {_name_of(authenticator)}")


def _name_of(authenticator: Authenticator) -> str:
    if authenticator.type == Authenticator.Type.TOTP:
        return "an authenticator app"
    if authenticator.type == Authenticator.Type.RECOVERY_CODES:
        return "recovery codes"
    factor = authenticator.wrap()
    return f"the {'passkey' if factor.is_passwordless else 'security key'} {factor.name}"


def _docora(request: HttpRequest | None) -> Actor:
    return replace(Actor.system(), address=_address(request))


def _user(user: Any, request: HttpRequest | None) -> Actor:
    return Actor(user.get_username(), user=user, address=_address(request))


def _address(request: HttpRequest | None) -> str:
    return str(request.META.get("REMOTE_ADDR", "")) if request is not None else ""
