"""Docora's rules for django-allauth: who may sign in, how guessing is limited, and where secrets are stored.

Wrong passwords are counted by name *and* address, so that strangers cannot lock anyone out: 5 failures for a name from
one address, and 50 from one address, within 15 minutes (`ACCOUNT_RATE_LIMITS`). Wrong codes are counted by user,
because only someone who knows the password can send them. Refused attempts do not count.
"""

import logging
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.internal.flows.login import record_authentication
from allauth.account.internal.flows.reauthentication import resume_request
from allauth.account.utils import user_username
from allauth.core import context
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.core.internal import ratelimit
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialLogin
from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.request import split_domain_port
from django.shortcuts import render, resolve_url
from django.urls import reverse

from docora.http.addresses import is_address
from docora.security.crypto import decrypt, encrypt
from docora.security.redaction import remove_secrets
from docora.security.throttle import source_of
from docora.sign_in import oidc, recency
from docora.sign_in.provider_http import provider_session
from docora.text import one_line
from docora.web.errors import forbidden
from docora.web.redirects import own_url

logger = logging.getLogger(__name__)

_WAYS_TO_CONFIRM = {
    "reauthenticate": "Use your password",
    "mfa_reauthenticate": "Use a code",
    "mfa_reauthenticate:webauthn": "Use a passkey or security key",
}
REAUTHENTICATION_BEGAN = "again"
"""Key in the state of a provider sign-in that only confirms who the user is. Its value is the Unix time when it began."""
CREDENTIALS_USED = "credentials_used"
"""Key in the session for a digest of the user's password when the sign-in began. The password may be changed before it ends."""
CLOCK_SECONDS = 60
"""How far the provider's clock may be behind Docora's."""


def client_address(request: HttpRequest) -> str:
    """Return the address that failures are counted under, for IPv6 its /64 network. `TrustedProxyMiddleware` has set it."""
    return source_of(request.META.get("REMOTE_ADDR", ""))


def passkeys_blocked_reason(request: HttpRequest) -> str:
    """Return why the browser would refuse passkeys for this address, or an empty string."""
    host = split_domain_port(request.get_host())[0].strip("[]")
    if not is_address(host):
        return ""
    return "Passkeys need a host name: they don't work if you open Docora by its IP address."


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]  # allauth has no types
    error_messages = DefaultAccountAdapter.error_messages | {
        "username_password_mismatch": "The username or password is wrong.",
        "incorrect_password": "The password is wrong.",
        "too_many_login_attempts": "Too many failed attempts. Try again in 15 minutes.",
        "rate_limited": "Too many attempts. Try again in a few minutes.",
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False  # also if someone adds allauth's page

    def is_safe_url(self, url: str | None) -> bool:
        """Return whether a page may redirect to this URL. allauth's rule allows every host of ALLOWED_HOSTS."""
        return bool(own_url(context.request, url or "", ""))

    def get_client_ip(self, request: HttpRequest) -> str:
        return client_address(request)

    def pre_authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        """Refuse passwords if `LOCAL_SIGN_IN` is off, and after too many failures."""
        if not settings.LOCAL_SIGN_IN:
            raise PermissionDenied("Sign-in with a password is turned off.")
        try:
            super().pre_authenticate(request, **credentials)
            self._count_for_address(request)
        except ValidationError:
            logger.warning("sign_in_locked", extra={"address": client_address(request)})
            raise

    def _count_for_address(self, request: HttpRequest) -> None:
        """Count the attempt for the address, too. If the password is right, allauth undoes both counts.

        This is a separate action because allauth clears the whole history of `login_failed` after a correct code.
        """
        usage = ratelimit.consume(request, app="allauth.account", action="address_failed")
        if usage is None:
            self._rollback_login_failed_rl_usage()
            raise self.validation_error("too_many_login_attempts")
        self._login_failed_rl_usage.usage += usage.usage

    def pre_login(self, request: HttpRequest, user: Any, **hook: Any) -> HttpResponse | None:
        """Refuse the password or passkey of a provider's user: only sign-in with the provider checks their roles again."""
        is_local = "sociallogin" not in (hook["signal_kwargs"] or {})
        if is_local and oidc.is_account_of(user):
            return refuse(request, "provider_only")
        request.session[CREDENTIALS_USED] = user.get_session_auth_hash()
        response: HttpResponse | None = super().pre_login(request, user, **hook)
        return response

    def _get_login_attempts_cache_key(self, request: HttpRequest, **credentials: Any) -> str:
        """Return the key under which failed passwords are counted. allauth's own key doesn't contain the address."""
        return f"{client_address(request)} {credentials.get('username', '').lower()}"

    def is_reauthentication_required(self, *, app: str, **kwargs: Any) -> bool:
        return not recency.is_recent(context.request)

    def get_reauthentication_methods(self, user: Any) -> list[dict[str, Any]]:
        """Return the pages where the user can authenticate again, the default first."""
        methods: list[dict[str, Any]] = [
            method | {"description": _WAYS_TO_CONFIRM[method["id"]]}
            for method in super().get_reauthentication_methods(user)
        ]
        is_of_provider = oidc.is_account_of(user)
        if not settings.LOCAL_SIGN_IN or is_of_provider:
            methods = [method for method in methods if method["id"] != "reauthenticate"]
        if passkeys_blocked_reason(context.request):
            methods = [method for method in methods if method["id"] != "mfa_reauthenticate:webauthn"]
        if is_of_provider:  # last, because it redirects without showing the other ways
            text = f"Sign in with {settings.OIDC_NAME}"
            methods.append({"id": "oidc", "description": text, "url": reverse("oidc_reauthenticate")})
        return methods


class MFAAdapter(DefaultMFAAdapter):  # type: ignore[misc]
    error_messages = DefaultMFAAdapter.error_messages | {"incorrect_code": "The code is wrong."}

    def encrypt(self, text: str) -> str:
        return encrypt(text)

    def decrypt(self, encrypted_text: str) -> str:
        return decrypt(encrypted_text)

    def generate_authenticator_name(self, user: Any, type: Any) -> str:
        number = user.authenticator_set.filter(type=type).count() + 1
        return f"Passkey {number}" if number > 1 else "Passkey"

    def get_public_key_credential_rp_entity(self) -> dict[str, str]:
        entity: dict[str, str] = super().get_public_key_credential_rp_entity()
        return entity | {"name": "Docora"}


class SocialAccountAdapter(DefaultSocialAccountAdapter):  # type: ignore[misc]
    def get_requests_session(self) -> Any:
        return provider_session()

    def is_open_for_signup(self, request: HttpRequest, sociallogin: SocialLogin) -> bool:
        return True  # `pre_social_login` has refused everyone without a role

    def pre_social_login(self, request: HttpRequest, sociallogin: SocialLogin) -> None:
        """Refuse users without a role, and set the roles of existing users, also of those who only confirm who they are."""
        sociallogin.token = None  # allauth would keep it in the session until the second factor
        roles = oidc.roles_of(sociallogin)
        if sociallogin.is_existing:
            oidc.apply_roles(sociallogin.user, roles)
        if not roles:
            raise ImmediateHttpResponse(refuse(request, "no_role"))
        if (began := (sociallogin.state.get("data") or {}).get(REAUTHENTICATION_BEGAN)) is not None:
            raise ImmediateHttpResponse(_finish_reauthentication(request, sociallogin, began))
        if not sociallogin.is_existing:
            name = oidc.username_of(sociallogin)
            if not name:
                raise ImmediateHttpResponse(refuse(request, "no_name"))
            if not oidc.is_valid_name(name):  # allauth would silently choose another name
                raise ImmediateHttpResponse(refuse(request, "invalid_name", name=name))
            if oidc.is_name_taken(name):
                sociallogin.lookup()  # the name may be that of this user, who has just signed in with another browser
                if not sociallogin.is_existing:
                    raise ImmediateHttpResponse(refuse(request, "name_taken", name=name))
            # Docora doesn't use email addresses here. If another user had the same one, allauth would show a sign-up form.
            sociallogin.email_addresses = []

    def populate_user(self, request: HttpRequest, sociallogin: SocialLogin, data: dict[str, Any]) -> Any:
        return super().populate_user(request, sociallogin, data | {"username": oidc.username_of(sociallogin)})

    def save_user(self, request: HttpRequest, sociallogin: SocialLogin, form: Any = None) -> Any:
        """Create a user with the name and the roles that `pre_social_login` has checked.

        If another request has meanwhile created the user, or one of this name, begin the sign-in again.
        """
        user = sociallogin.user
        user_username(user, oidc.username_of(sociallogin))  # allauth removes a name that has meanwhile been taken
        user.set_unusable_password()
        try:
            with transaction.atomic():
                sociallogin.save(request)
                oidc.apply_roles(user, oidc.roles_of(sociallogin))
        except IntegrityError as error:
            page = sociallogin.get_redirect_url(request) or resolve_url("admin:index")
            raise ImmediateHttpResponse(redirect_to_login(page, reverse("oidc_login"))) from error
        return user

    def on_authentication_error(
        self, request: HttpRequest, provider: Any, error: Any = None, exception: Any = None, extra_context: Any = None
    ) -> None:
        if exception:
            parts = [exception, exception.__cause__]
        elif "state_id" in (extra_context or {}):  # one that this session doesn't have
            parts = ["This browser has begun no such sign-in within 10 minutes."]
        else:
            parts = [one_line(request.GET.get(name, ""), 300) for name in ("error", "error_description")]
        text = ": ".join(filter(None, map(_described, parts)))
        # allauth repeats the provider's whole response, which may repeat the secret.
        cause = one_line(remove_secrets(text, settings.OIDC_CLIENT_SECRET), 1000) or error
        logger.warning("provider_sign_in_failed", extra={"address": client_address(request), "cause": cause})


def _described(error: Any) -> str:
    if isinstance(error, KeyError):
        return f"The provider's response lacks {error}."
    return str(error or "")


def refuse(request: HttpRequest, reason: str, **context: Any) -> HttpResponse:
    """Return the page of a refused sign-in, and log the reason, one of those in its template."""
    logger.warning("provider_sign_in_refused", extra={"address": client_address(request), "cause": reason})
    return render(request, "socialaccount/refused.html", {"reason": reason, **context}, status=403)


def _finish_reauthentication(request: HttpRequest, login: SocialLogin, began: float) -> HttpResponse:
    """Record that the user has signed in with the provider again, and resume the refused request.

    Refuse if a different user signed in, or if the provider did not ask for credentials.
    """
    if login.user != request.user:
        return refuse(request, "other_user")
    if oidc.authenticated_at(login) < began - CLOCK_SECONDS:
        return refuse(request, "not_fresh")
    request.user = login.user  # which has the roles that the provider has just given
    record_authentication(request, login.user, "socialaccount", reauthenticated=True)
    next_url = login.get_redirect_url(request)
    recency.forget_unless(request, next_url)
    response: HttpResponse | None
    try:
        response = resume_request(request)
    except PermissionDenied as error:  # allauth would take it for a failed sign-in
        response = forbidden(request, error)
    return response or HttpResponseRedirect(next_url or resolve_url("admin:index"))
