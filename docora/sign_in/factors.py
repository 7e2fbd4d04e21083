"""Second factors: which users must have one, and their encrypted secrets."""

from collections.abc import Iterator
from typing import Any

from allauth.account.internal.flows.login import get_authentication_records
from allauth.mfa.models import Authenticator
from allauth.mfa.utils import is_mfa_enabled
from django.conf import settings
from django.db import transaction
from django.http import HttpRequest

from docora.sign_in.oidc import SUPERUSER
from docora.sign_in.recency import is_proxy_session

MISSING = "second_factor_missing"
_FACTORS = [Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN]
COLUMN = "mfa.Authenticator.data"
_SECRETS = ("secret", "seed")  # of an authenticator app, and of recovery codes


def is_missing(request: HttpRequest, user: Any) -> bool:
    """Return whether the user's role requires a second factor that the user has not set up.

    Users who signed in with the identity provider or through a proxy are exempt: that system can ask for one.
    """
    roles = set(settings.SECOND_FACTOR_ROLES)
    if not roles or is_proxy_session(request):
        return False
    records = get_authentication_records(request, user)
    if any(record["method"] == "socialaccount" for record in records):
        return False
    is_required = (user.is_superuser and SUPERUSER in roles) or user.groups.filter(name__in=roles).exists()
    return is_required and not is_mfa_enabled(user, _FACTORS)


def stored_secrets() -> Iterator[tuple[int, str, str]]:
    """Yield (primary key, name, ciphertext) of every secret of a second factor."""
    for pk, data in Authenticator.objects.order_by("pk").values_list("pk", "data"):
        for name in _SECRETS:
            if data.get(name):
                yield pk, name, data[name]


def replace_secret(pk: int, name: str, stored: str, renewed: str) -> None:
    """Replace the ciphertext `stored` with `renewed`. Do nothing if the secret has been changed or deleted since."""
    with transaction.atomic():
        row = Authenticator.objects.select_for_update().filter(pk=pk).first()
        if row is not None and row.data.get(name) == stored:
            row.data[name] = renewed
            row.save(update_fields=["data"])
