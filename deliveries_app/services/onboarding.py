"""Client apps: registering one."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppToken
from docora.crypto import hash_token, new_token, new_webhook_key


@dataclass(frozen=True)
class Onboarded:
    """The new app with its two secrets, which cannot be shown again."""

    app: App
    token: str
    client_auth_key: str


def validate_base_url(url: str) -> str:
    """An address that notifications can be posted to; `ValidationError` in words."""
    schemes = ("https", "http") if settings.ALLOW_HTTP else ("https",)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValidationError("The base URL is malformed.", code="base_url") from None
    if len(url) > 2048 or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise ValidationError("The base URL must be at most 2048 printable ASCII characters.", code="base_url")
    if parts.scheme not in schemes or not host:
        raise ValidationError(
            f"The base URL must start with {' or '.join(f'{s}://' for s in schemes)}.", code="base_url"
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValidationError("The base URL must not contain credentials, a query or a fragment.", code="base_url")
    return url


def validate_name(name: str) -> str:
    """The name without the spaces around it; `ValidationError` in words."""
    name = name.strip()
    if not 3 <= len(name) <= 100:
        raise ValidationError("The name must have 3 to 100 characters.", code="name")
    return name


def onboard_app(
    actor: Actor,
    *,
    name: str,
    base_url: str,
    email: str,
    client_auth_key: str = "",
    website: str = "",
    description: str = "",
) -> Onboarded:
    """Register a client app; generates its token, and its signing key unless one is given.

    Raises `ValidationError` in words: name of 3–100 characters, base URL, e-mail, key of 16–500 characters.
    """
    actor.require("deliveries_app.onboard_app")
    name = validate_name(name)
    validate_base_url(base_url)
    try:
        validate_email(email)
    except ValidationError:
        raise ValidationError("The e-mail address is malformed.", code="email") from None
    key = client_auth_key or new_webhook_key()
    if not 16 <= len(key) <= 500:
        raise ValidationError("The signing key must have 16 to 500 characters.", code="client_auth_key")
    if len(description) > 500:
        raise ValidationError("The description must have at most 500 characters.", code="description")
    token = new_token()
    with transaction.atomic():
        app = App.objects.create(
            name=name,
            base_url=base_url,
            email=email,
            website=website,
            description=description,
            client_auth_key=key,
        )
        AppToken.objects.create(app=app, digest=hash_token(token), ending=token[-4:])
    return Onboarded(app, token, key)
