"""The template context of the pages under `/accounts/`: the admin site's frame, and the available ways to sign in."""

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.http import HttpRequest

from docora.sign_in import oidc
from docora.sign_in.adapters import passkeys_blocked_reason

_TITLES = {
    "mfa_index": "Account security",
    "mfa_activate_totp": "Set up an authenticator app",
    "mfa_deactivate_totp": "Remove the authenticator app",
    "mfa_view_recovery_codes": "Recovery codes",
    "mfa_generate_recovery_codes": "Create new recovery codes",
    "mfa_add_webauthn": "Add a passkey",
}
"""URL name of a page about the user's own account → its title."""


def accounts_pages(request: HttpRequest) -> dict[str, Any]:
    """Return the context of a page under `/accounts/`, or an empty one for other pages."""
    if not request.path.startswith("/accounts/"):
        return {}
    return {
        **admin.site.each_context(request),
        "title": _TITLES.get(getattr(request.resolver_match, "url_name", "")),
        "provider_name": settings.OIDC_NAME if settings.OIDC_ISSUER else "",
        "passkeys_blocked": passkeys_blocked_reason(request),
        "is_of_provider": lambda: oidc.is_account_of(request.user),
        "has_staff": get_user_model()._default_manager.filter(is_staff=True).exists,
    }
