"""The template context of the pages under `/accounts/`: the admin site's frame, and the available ways to sign in."""

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.http import HttpRequest

from docora.sign_in import oidc
from docora.sign_in.adapters import passkeys_blocked_reason


def accounts_pages(request: HttpRequest) -> dict[str, Any]:
    """Return the context of a page under `/accounts/`, or an empty one for other pages."""
    if not request.path.startswith("/accounts/"):
        return {}
    return {
        **admin.site.each_context(request),
        "provider_name": settings.OIDC_NAME if settings.OIDC_ISSUER else "",
        "passkeys_blocked": passkeys_blocked_reason(request),
        "is_of_provider": lambda: settings.OIDC_ISSUER and oidc.is_account_of(request.user),
        "has_staff": get_user_model()._default_manager.filter(is_staff=True).exists,
    }
