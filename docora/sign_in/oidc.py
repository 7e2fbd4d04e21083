"""Map the groups of an OpenID Connect user to roles, and read the other claims of a sign-in.

A role is the name of a Django group, or `superuser`. The provider decides: at each sign-in, the roles replace those that the
user had.
"""

import logging
from typing import Any

from allauth.socialaccount.models import SocialAccount, SocialLogin
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.db import transaction
from django.dispatch import Signal

logger = logging.getLogger(__name__)

PROVIDER_ID = "oidc"
SUPERUSER = "superuser"
_MAX_TIME = 1e12
"""Unix times are smaller. Much larger integers could not be compared with the clock."""

roles_applied = Signal()
"""Sent in the transaction in which a sign-in sets the roles of a `user`, with the values `before` and `after` it."""


def roles_of(login: SocialLogin) -> set[str]:
    """Return the roles that `OIDC_ROLES` gives the user's groups. Empty: the user may not sign in."""
    groups = _claim(login, settings.OIDC_GROUPS_CLAIM)
    named = groups if isinstance(groups, list | dict) else [groups]
    return {role for group, role in settings.OIDC_ROLES if group in named}


def authenticated_at(login: SocialLogin) -> float:
    """Return when the user last entered credentials at the provider (Unix time), or 0 if the provider does not say."""
    at = _id_token(login).get("auth_time")
    return at if isinstance(at, int | float) and abs(at) < _MAX_TIME else 0.0


def username_of(login: SocialLogin) -> str:
    """Return the username that the provider has sent, or an empty string."""
    name = _claim(login, settings.OIDC_USERNAME_CLAIM)
    return name if isinstance(name, str) else ""


def apply_roles(user: Any, roles: set[str]) -> None:
    """Save the user with exactly these roles. Any role makes the user staff."""
    names = roles - {SUPERUSER}
    groups = Group.objects.filter(name__in=names)
    if missing := names - {group.name for group in groups}:
        logger.warning("oidc_group_missing", extra={"groups": sorted(missing)})
    with transaction.atomic():
        before = _stored_roles(user)
        user.is_staff, user.is_superuser = bool(roles), SUPERUSER in roles
        user.save(update_fields=["is_staff", "is_superuser"])
        user.groups.set(groups)
        roles_applied.send(sender=type(user), user=user, before=before, after=_stored_roles(user))


def _stored_roles(user: Any) -> dict[str, Any]:
    """Return the user's flags and the names of the groups, by the names of the fields."""
    users = type(user)._default_manager.filter(pk=user.pk)
    groups = Group.objects.filter(user=user).order_by("name").values_list("name", flat=True)
    return {**users.values("is_staff", "is_superuser").get(), "groups": ", ".join(groups)}


def is_account_of(user: Any) -> bool:
    """Return whether the user has signed in with the current provider, which therefore decides about the user's roles."""
    return bool(settings.OIDC_ISSUER) and SocialAccount.objects.filter(user=user).exists()


def has_other_issuer(login: SocialLogin) -> bool:
    """Return whether the account with this ID belongs to another provider, so that the ID may be that of another person.

    The account has the ID token of its last sign-in. Call this before allauth looks the account up, which replaces the token.
    """
    ids = {"provider": login.account.provider, "uid": login.account.uid}
    stored = SocialAccount.objects.filter(**ids).first()
    known = _issuer_of(stored) if stored else ""
    accepted = {_issuer_of(login.account) or settings.OIDC_ISSUER, *settings.OIDC_FORMER_ISSUERS}
    return bool(known) and known not in {issuer.rstrip("/") for issuer in accepted}


def _issuer_of(account: SocialAccount) -> str:
    """Return the issuer of an account's ID token, or an empty string if there was no ID token."""
    token = account.extra_data.get("id_token")
    return str(token.get("iss") or "").rstrip("/") if isinstance(token, dict) else ""


def is_valid_name(name: str) -> bool:
    """Return whether a user of Docora can have this name."""
    users = get_user_model()
    field: Any = users._meta.get_field(users.USERNAME_FIELD)
    try:
        field.run_validators(name)
    except ValidationError:
        return False
    return True


def is_name_taken(name: str) -> bool:
    """Return whether a user with this name exists. At the first sign-in with a provider's ID, that is another person."""
    users = get_user_model()
    return users._default_manager.filter(**{f"{users.USERNAME_FIELD}__iexact": name}).exists()


def _claim(login: SocialLogin, name: str) -> Any:
    """Return a claim from the user information, or else from the ID token."""
    data = login.account.extra_data
    for source in (data.get("userinfo"), _id_token(login)):
        if isinstance(source, dict) and source.get(name):
            return source[name]
    return None


def _id_token(login: SocialLogin) -> dict[str, Any]:
    token = login.account.extra_data.get("id_token")
    return token if isinstance(token, dict) else {}
