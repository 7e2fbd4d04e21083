"""allauth's forms for passkeys, with a message for passkeys that are not accepted, and the form to change one's password.

The parsers behind allauth's forms raise almost any error for a credential that no browser sends, and the response would be a
server error.
"""

import json
import logging
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from allauth.account.adapter import get_adapter
from allauth.core import context
from allauth.mfa.webauthn import forms
from django.contrib.admin.forms import AdminPasswordChangeForm
from django.core.exceptions import ValidationError
from django.http.request import split_domain_port

logger = logging.getLogger(__name__)

NOT_ACCEPTED = "This passkey wasn't accepted. It may have been removed from your account."


@contextmanager
def _refuse_malformed() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, ValidationError) and error.code != "incorrect_code":
            raise
        logger.warning("passkey_refused", extra={"cause": type(error).__name__})
        raise ValidationError(NOT_ACCEPTED) from error


def _check_origin(credential: Any) -> None:
    """Raise an error if a page of another host asked for the passkey. allauth accepts those of all subdomains."""
    client_data = json.loads(urlsafe_b64decode(credential["response"]["clientDataJSON"] + "=="))
    host = (urlsplit(client_data["origin"]).hostname or "").rstrip(".")
    if host != split_domain_port(context.request.get_host())[0]:
        raise ValueError(client_data["origin"])


class _CredentialMixin:
    cleaned_data: dict[str, Any]

    def clean_credential(self) -> Any:
        with _refuse_malformed():
            _check_origin(self.cleaned_data["credential"])
            return super().clean_credential()  # type: ignore[misc]


class LoginForm(_CredentialMixin, forms.LoginWebAuthnForm):  # type: ignore[misc]  # allauth has no types
    pass


class AuthenticateForm(_CredentialMixin, forms.AuthenticateWebAuthnForm):  # type: ignore[misc]
    pass


class ReauthenticateForm(_CredentialMixin, forms.ReauthenticateWebAuthnForm):  # type: ignore[misc]
    pass


class AddForm(forms.AddWebAuthnForm):  # type: ignore[misc]
    def clean(self) -> Any:
        with _refuse_malformed():
            return super().clean()


class SavePasswordOnly:
    """Save no other column of the user: while the password was hashed, an administrator may have deactivated the user."""

    def set_password_and_save(self, user: Any, *args: Any, commit: bool = True, **kwargs: Any) -> Any:
        user = super().set_password_and_save(user, *args, commit=False, **kwargs)  # type: ignore[misc]
        if commit:
            user.save(update_fields=["password"])
        return user


class PasswordChangeForm(SavePasswordOnly, AdminPasswordChangeForm):
    """Django's form, except that wrong passwords count as failed sign-ins: an open session must not help to guess it."""

    def clean_old_password(self) -> str:
        old_password: str = self.cleaned_data["old_password"]
        if not get_adapter().reauthenticate(self.user, old_password):
            raise ValidationError(self.error_messages["password_incorrect"], code="password_incorrect")
        return old_password
