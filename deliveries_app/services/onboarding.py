"""Register client apps, and check their names and addresses."""

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.models import App, AuditAction
from deliveries_app.permissions import Permission
from deliveries_app.services.keys import validate_key
from deliveries_app.services.tokens import create_token
from docora.http.client import Request
from docora.http.messages import url_blocked_reason
from docora.security.crypto import new_webhook_key
from repositories_app.git import remote

_REACHABILITY_TIMEOUT = 5.0


@dataclass(frozen=True)
class Onboarded:
    """The new app with its two secrets, which cannot be shown again."""

    app: App
    token: str = field(repr=False)
    client_auth_key: str = field(repr=False)


def validate_base_url(url: str) -> str:
    """Return the URL. Raises `ValidationError` unless notifications can be posted to it."""
    schemes = {"https", "http"} if settings.ALLOW_HTTP else {"https"}
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValidationError("The base URL is malformed.", code="base_url") from None
    if len(url) > 2048 or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise ValidationError("The base URL must be at most 2048 printable ASCII characters.", code="base_url")
    if parts.scheme not in schemes or not host:
        hint = " or http://" if settings.ALLOW_HTTP else ". An administrator can allow http:// with ALLOW_HTTP"
        raise ValidationError(f"The base URL must start with https://{hint}.", code="base_url")
    if parts.username is not None or parts.password is not None or "?" in url or "#" in url:
        raise ValidationError("The base URL must not contain credentials, a query or a fragment.", code="base_url")
    if (reason := url_blocked_reason(url, settings.ALLOW_HTTP)) is not None:  # every call to such a URL would fail
        raise ValidationError(reason, code="base_url")
    return url


def validate_website(url: str) -> str:
    """Return the URL. Raises `ValidationError` unless it is empty or an http(s) URL that a browser can open."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if url and not (usable and len(url) <= 2048 and url.isprintable() and " " not in url):
        raise ValidationError(
            "The website must be a URL such as https://portal.example, with at most 2048 characters.", code="website"
        )
    return url


def validate_name(name: str) -> str:
    """Return the name without surrounding spaces. Raises `ValidationError` unless it has 3 to 100 printable characters."""
    name = name.strip()
    if not 3 <= len(name) <= 100 or not name.isprintable():
        raise ValidationError("The name must have 3 to 100 printable characters.", code="name")
    return name


def validate_max_in_flight(number: int) -> int:
    """Return the number. Raises `ValidationError` unless it is 1 to `MAX_IN_FLIGHT_LIMIT`."""
    limit = settings.MAX_IN_FLIGHT_LIMIT
    if not 1 <= number <= limit:
        raise ValidationError(f"Concurrent requests must be between 1 and {limit}.")
    return number


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
    """Register a client app and generate its token, and its signing key unless one is given.

    Raises `ValidationError` with a message for the user if a field is invalid.
    """
    actor.require(Permission.REGISTER_APPS)
    name = validate_name(name)
    validate_base_url(base_url)
    validate_website(website)
    try:
        validate_email(email)
    except ValidationError:
        raise ValidationError("The email address is malformed.", code="email") from None
    if len(email) > 255:
        raise ValidationError("The email address must have at most 255 characters.", code="email")
    key = validate_key(client_auth_key) if client_auth_key else new_webhook_key()
    if len(description) > 500:
        raise ValidationError("The description must have at most 500 characters.", code="description")
    with transaction.atomic():
        fields = {
            "name": name,
            "base_url": base_url,
            "email": email,
            "website": website,
            "description": description,
            "client_auth_key": key,
        }
        app = App.objects.create(**fields)
        token = create_token(app)
        audit.record(actor, AuditAction.APP_REGISTERED, [app], "Registered", audit.Changes.initial(App, fields))
    return Onboarded(app, token, key)


def taken_name_warning(app: App) -> str:
    """Return a warning if another app has the same name, or an empty string."""
    if App.objects.filter(name__iexact=app.name, ended_at=None).exclude(pk=app.pk).exists():
        return f"Another app is already named {app.name}. Rename one so you can tell them apart."
    return ""


def unreachable_reason(base_url: str) -> str:
    """Return one sentence that says why notifications cannot reach this URL now, or an empty string if anything answers.

    Sends one `HEAD` through the outbound client. Any response counts, because an endpoint need not support `HEAD`.
    """
    request = Request("HEAD", base_url, connect_timeout=_REACHABILITY_TIMEOUT, timeout=_REACHABILITY_TIMEOUT)
    with remote.new_client(max_connections=1) as client:
        outcome = client.request(request)
    return outcome.message if outcome.status is None else ""
