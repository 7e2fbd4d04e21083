"""The views that allauth lacks: redirects to the provider, and sign-in with a one-time link."""

import time

from allauth.account.internal.flows.login import record_authentication
from allauth.account.utils import get_next_redirect_url
from allauth.mfa.webauthn.views import login_webauthn
from allauth.socialaccount.adapter import get_adapter
from allauth.socialaccount.helpers import render_authentication_error
from allauth.socialaccount.providers.base import AuthProcess
from django.conf import settings
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render, resolve_url
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods

from docora.sign_in import links, oidc
from docora.sign_in.adapters import REAUTHENTICATION_BEGAN
from docora.sign_in.provider_http import RequestException


def passkey_login(request: HttpRequest) -> HttpResponse:
    """Sign in with a passkey alone. Refuse if local sign-in is off, because a passkey is local, too."""
    if not settings.LOCAL_SIGN_IN:
        raise PermissionDenied("Sign-in with a passkey is turned off.")
    response: HttpResponse = login_webauthn(request)
    return response


@never_cache
@require_GET
def oidc_login(request: HttpRequest) -> HttpResponse:
    """Redirect to the provider. Pages link here, because the content security policy doesn't let a form leave Docora."""
    return _to_provider(request, AuthProcess.LOGIN)


@never_cache
@login_required
@require_GET
def oidc_reauthenticate(request: HttpRequest) -> HttpResponse:
    """Redirect to the provider and have it ask for credentials, even if the user is signed in there.

    `max_age` makes the provider say when the user entered them.
    """
    fresh = {"prompt": "login", "max_age": str(int(settings.REAUTHENTICATE_AFTER_SECONDS))}
    began = {REAUTHENTICATION_BEGAN: time.time()}
    return _to_provider(request, AuthProcess.REDIRECT, data=began, auth_params=fresh)


def _to_provider(request: HttpRequest, process: str, **more: object) -> HttpResponse:
    if not settings.OIDC_ISSUER:
        raise Http404
    provider = get_adapter(request).get_provider(request, oidc.PROVIDER_ID)
    try:
        response: HttpResponse = provider.redirect(request, process, get_next_redirect_url(request), **more)
    except (RequestException, KeyError, ValueError) as error:  # no response, or not from an OpenID provider
        response = render_authentication_error(request, provider, exception=error)
    return response


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def link(request: HttpRequest, token: str) -> HttpResponse:
    """Show a page with a button that signs the user in. GET must not: mail scanners and link previews open links, too."""
    user = links.user_of(token)
    if user is None:
        return render(request, "account/link_invalid.html", status=410)
    if request.method != "POST":
        return render(request, "account/link.html", {"named": user})
    if not links.claim(user):
        return render(request, "account/link_invalid.html", status=410)
    login(request, user, backend=settings.AUTHENTICATION_BACKENDS[0])
    record_authentication(request, user, "sign_in_link")
    return HttpResponseRedirect(resolve_url("mfa_index"))
