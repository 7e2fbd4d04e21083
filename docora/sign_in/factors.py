"""Which users must have a second factor."""

from typing import Any

from allauth.account.internal.flows.login import get_authentication_records
from allauth.mfa.models import Authenticator
from allauth.mfa.utils import is_mfa_enabled
from django.conf import settings
from django.http import HttpRequest

from docora.sign_in.oidc import SUPERUSER
from docora.sign_in.recency import is_proxy_session

MISSING = "second_factor_missing"
FACTORS = [Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN]


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
    return is_required and not is_mfa_enabled(user, FACTORS)
