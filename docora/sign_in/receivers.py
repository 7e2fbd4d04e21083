"""Signal handlers that record sign-ins in the session and in the log. `DocoraConfig.ready` connects them."""

import logging
import time
from typing import Any

from allauth.account.signals import authentication_step_completed
from allauth.account.signals import user_logged_in as allauth_logged_in
from allauth.mfa.signals import authenticator_removed
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.dispatch import receiver
from django.http import HttpRequest

from docora.sign_in import factors, oidc
from docora.sign_in.adapters import client_address
from docora.sign_in.middleware import ACTIVE_AT
from docora.sign_in.recency import AUTHENTICATED_AT

logger = logging.getLogger(__name__)


@receiver(user_logged_in)
def on_sign_in(request: HttpRequest | None, user: Any, **kwargs: Any) -> None:
    if request is not None:
        request.session[AUTHENTICATED_AT] = request.session[ACTIVE_AT] = time.time()
        request.session[factors.MISSING] = factors.is_missing(request, user)


@receiver(allauth_logged_in)
def on_provider_sign_in(request: HttpRequest, sociallogin: Any = None, **kwargs: Any) -> None:
    """Use the provider's time of authentication: the user may not have entered credentials for this sign-in."""
    if sociallogin is not None:
        request.session[AUTHENTICATED_AT] = oidc.authenticated_at(sociallogin)


@receiver(authentication_step_completed)
def on_reauthentication(request: HttpRequest, reauthenticated: bool = False, **kwargs: Any) -> None:
    if reauthenticated:
        request.session[AUTHENTICATED_AT] = time.time()


@receiver(authenticator_removed)
def on_factor_removed(request: HttpRequest, user: Any, **kwargs: Any) -> None:
    request.session[factors.MISSING] = factors.is_missing(request, user)


@receiver(user_login_failed)
def on_failure(request: HttpRequest | None = None, **kwargs: Any) -> None:
    if request is not None:
        logger.info("sign_in_failed", extra={"address": client_address(request)})
