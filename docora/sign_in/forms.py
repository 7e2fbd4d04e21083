"""allauth's forms for passkeys, with a message for passkeys that are not accepted.

The parsers behind these forms raise almost any error for a credential that no browser sends, and the response would be a
server error.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from allauth.mfa.webauthn import forms
from django.core.exceptions import ValidationError

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


class _CredentialMixin:
    def clean_credential(self) -> Any:
        with _refuse_malformed():
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
