"""The views that allauth lacks, and those of its own that need limits or better errors: provider, passkeys, one-time links."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from allauth.account.internal.flows.login import record_authentication
from allauth.account.internal.stagekit import clear_login, unstash_login
from allauth.account.utils import get_next_redirect_url
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.core.internal import ratelimit
from allauth.mfa.base.views import authenticate as mfa_authenticate
from allauth.mfa.utils import is_mfa_enabled
from allauth.mfa.webauthn.views import ReauthenticateWebAuthnView, login_webauthn
from allauth.socialaccount.adapter import get_adapter
from allauth.socialaccount.helpers import render_authentication_error
from allauth.socialaccount.providers.base import AuthProcess, ProviderException
from allauth.socialaccount.providers.oauth2.views import OAuth2CallbackView
from allauth.socialaccount.providers.openid_connect.views import OpenIDConnectOAuth2Adapter
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import get_user_model, login
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render, resolve_url
from django.utils.crypto import constant_time_compare
from django.views.decorators.http import require_http_methods

from docora.db.locks import lock_rows
from docora.sign_in import factors, links, oidc
from docora.sign_in.adapters import CREDENTIALS_USED, REAUTHENTICATION_BEGAN, refuse
from docora.sign_in.provider_http import RequestException

_NOT_OPENID = (KeyError, ValueError, TypeError, AttributeError, ImproperlyConfigured)
"""What allauth raises for a response that is not one of an OpenID provider, or whose user ID is too long."""
_View = Callable[[HttpRequest], HttpResponse]
# Each request stores a session, and some call the provider. allauth itself counts POST only.
_limited: Callable[[_View], _View] = ratelimit.decorator(app="allauth.account", action="login", limit_get=True)


@_limited
def passkey_login(request: HttpRequest) -> HttpResponse:
    """Sign in with a passkey alone. Refuse if local sign-in is off, because a passkey is local, too."""
    if not settings.LOCAL_SIGN_IN:
        raise PermissionDenied("Sign-in with a passkey is turned off.")
    response: HttpResponse = login_webauthn(request)
    return response


def authenticate(request: HttpRequest) -> HttpResponse:
    """Ask for the second factor. End a sign-in whose user has meanwhile changed, so that it can't be completed.

    If the user has been deleted or deactivated, or has no factor left, allauth would redirect from this page to the sign-in
    page and back, without end. With a changed password, it would accept a sign-in that began with the old one.
    """
    pending = unstash_login(request, peek=True)
    if pending and not _can_be_completed(request, pending.user):
        clear_login(request)
    response: HttpResponse = mfa_authenticate(request)
    return response


def _can_be_completed(request: HttpRequest, user: Any) -> bool:
    if not (user and user.is_active and is_mfa_enabled(user, factors.FACTORS)):
        return False
    return constant_time_compare(request.session.get(CREDENTIALS_USED, ""), user.get_session_auth_hash())


class ReauthenticateWithPasskeyView(ReauthenticateWebAuthnView):  # type: ignore[misc]  # allauth has no types
    """allauth's view, except that after a refused passkey the user can try again. allauth redirects to the overview."""

    def form_invalid(self, form: Any) -> HttpResponse:
        for message in form.errors.get("credential", []):
            messages.error(self.request, message)
        return HttpResponseRedirect(self.passthrough_next_url(self.request.path))


def own_factors(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Wrap a view of allauth that removes or shows the user's second factors, so that such requests run one after another.

    Otherwise, a form sent twice would remove a factor twice. If the factor is gone, redirect to the list of factors.
    """

    @login_required
    def one_at_a_time(request: HttpRequest, **arguments: Any) -> HttpResponse:
        with transaction.atomic():
            if not lock_rows(get_user_model()._default_manager.filter(pk__in=[request.user.pk])):
                raise PermissionDenied("Your account was deleted.")
            try:
                return view(request, **arguments)
            except Http404:
                return HttpResponseRedirect(resolve_url("mfa_index"))

    return one_at_a_time


@_limited
def oidc_login(request: HttpRequest) -> HttpResponse:
    """Redirect to the provider. Pages link here, because the content security policy doesn't let a form leave Docora."""
    return _to_provider(request, AuthProcess.LOGIN)


@login_required
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
    except (RequestException, *_NOT_OPENID) as error:
        response = render_authentication_error(request, provider, exception=error)
    return response


@contextmanager
def _malformed_response_fails() -> Iterator[None]:
    """Raise `ProviderException`, for which allauth shows the page of a failed sign-in, if a response is malformed."""
    try:
        yield
    except _NOT_OPENID as error:
        raise ProviderException from error


class _ProviderAdapter(OpenIDConnectOAuth2Adapter):  # type: ignore[misc]
    """allauth's adapter, except that the sign-in fails if the discovery document can't be read or a response is malformed.

    With allauth's, the response would be a server error. The sign-in also fails if the ID token and the user information are
    not about the same user, or if the account with the user's ID belongs to another provider.
    """

    def get_client(self, request: HttpRequest, app: Any) -> Any:
        try:
            return super().get_client(request, app)
        except (RequestException, *_NOT_OPENID) as error:
            raise ImmediateHttpResponse(
                render_authentication_error(request, self.get_provider(), exception=error)
            ) from error

    def get_access_token_data(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the two tokens. How long they are valid doesn't matter: they are used once."""
        with _malformed_response_fails():
            data = super().get_access_token_data(*args, **kwargs)
            return {name: data.get(name) for name in ("access_token", "id_token")}

    def complete_login(self, *args: Any, **kwargs: Any) -> Any:
        with _malformed_response_fails():
            login = super().complete_login(*args, **kwargs)
            claims = login.account.extra_data
            subjects = [source.get("sub") for source in claims.values() if source]
            # Databases can store neither NUL characters, nor NaN and infinity, which `dumps` refuses, nor lone surrogates, which
            # `encode` refuses.
            if rb"\u0000" in json.dumps(claims, ensure_ascii=False, allow_nan=False).encode():
                raise ProviderException("A claim of the user has a NUL character.")
        if not all(subjects) or len({str(subject) for subject in subjects}) != 1:
            raise ProviderException("The ID token and the user information don't name the same user.")
        if oidc.has_other_issuer(login):
            raise ImmediateHttpResponse(refuse(self.request, "other_issuer"))
        return login


def oidc_callback(request: HttpRequest, provider_id: str) -> HttpResponse:
    """Finish the sign-in that `_to_provider` has started."""
    if not settings.OIDC_ISSUER or provider_id != oidc.PROVIDER_ID:
        raise Http404
    response: HttpResponse = OAuth2CallbackView.adapter_view(_ProviderAdapter(request, provider_id))(request)
    return response


@require_http_methods(["GET", "HEAD", "POST"])
def link(request: HttpRequest, token: str) -> HttpResponse:
    """Show a page with a button that signs the user in. GET must not: mail scanners and link previews open links, too."""
    user = links.user_of(token)
    if user is not None and request.method != "POST":
        return render(request, "account/link.html", {"named": user})
    if user is None or not links.claim(user):
        return render(request, "account/link_invalid.html", status=410)
    login(request, user, backend=settings.AUTHENTICATION_BACKENDS[0])
    record_authentication(request, user, "sign_in_link")
    return HttpResponseRedirect(resolve_url("mfa_index"))
