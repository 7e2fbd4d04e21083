"""allauth's forms for passkeys, which refuse credentials that are not what a browser sends.

The parsers behind these forms raise almost any error for such a credential, and the response would be a server error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from allauth.mfa.adapter import get_adapter
from allauth.mfa.webauthn import forms
from django.core.exceptions import ValidationError


@contextmanager
def _refuse_malformed() -> Iterator[None]:
    try:
        yield
    except ValidationError:
        raise
    except Exception as error:
        raise get_adapter().validation_error("incorrect_code") from error


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
