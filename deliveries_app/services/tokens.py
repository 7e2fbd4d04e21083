"""Bearer tokens of apps: authenticate by digest, and rotate with an overlap during which both tokens are accepted."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Coalesce, Least, Now
from django.utils import timezone

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.models import App, AppToken, AuditAction
from deliveries_app.permissions import Permission
from deliveries_app.services.contact import notify_contact
from deliveries_app.services.requests import lock_app
from docora.db.clock import from_now
from docora.db.compiled import compiled_and_prepared
from docora.security.crypto import hash_token, new_token

OVERLAP = timedelta(hours=24)
MAX_OVERLAP = timedelta(days=30)
_LAST_USED_PRECISION = timedelta(minutes=1)
_TOKEN_CHANGED = audit.Changes(new={"token": "changed"})


class NewerToken(ValueError):
    """A newer token was made since. The message says so."""


@dataclass(frozen=True)
class NewToken:
    """A new token, which cannot be shown again. `old_accepted_until` is None if no older token is still accepted."""

    token: str = field(repr=False)
    old_accepted_until: datetime | None


def not_expired() -> Q:
    """Match the tokens that are accepted now."""
    return Q(expires_at=None) | Q(expires_at__gt=Now())


def live_tokens(app: App) -> QuerySet[AppToken]:
    """Return the app's tokens that are accepted now, newest first."""
    return app.tokens.filter(not_expired())


def newest_id(app: App) -> str:
    """Return the id of the app's newest token; empty if there is none."""
    return str(app.tokens.filter(expires_at=None).values_list("pk", flat=True).first() or "")


def is_newest(app: App, token: str) -> bool:
    """Return whether this is the app's token without an expiry."""
    return app.tokens.filter(digest=hash_token(token), expires_at=None).exists()


def authenticate(token: str) -> App | None:
    """Return the app that this token belongs to, or None if the token is unknown or expired or the app has ended.

    The lookup finds the digest in a unique index. Its timing could only reveal parts of digests, and no attacker can
    choose the prefix of a digest.
    """
    found = next(iter(_accepted(hash_token(token))), None)
    if found is None:
        return None
    used, now = found.last_used_at, timezone.now()  # the database's clock may differ: each call would be recorded
    if used is None or abs(now - used) > _LAST_USED_PRECISION:
        AppToken.objects.filter(pk=found.pk).update(last_used_at=now)
    return found.app


@compiled_and_prepared
def _accepted(digest: str) -> QuerySet[AppToken]:
    """Return the token with this digest if it is accepted now. Every call of the API needs it."""
    return AppToken.objects.filter(not_expired(), digest=digest, app__ended_at=None).select_related("app")


def create_token(app: App) -> str:
    """Add a token to the app, and return it. It cannot be shown again, because only its digest is stored."""
    token = new_token()
    AppToken.objects.create(app=app, digest=hash_token(token), ending=token[-4:])
    return token


def rotate_app_token(actor: Actor, app: App, *, overlap: timedelta = OVERLAP) -> NewToken:
    """Create a new token. Older tokens stay valid for `overlap`, but never longer than before.

    An overlap of zero revokes them now. Use it after a leak. Raises `ValidationError` for more than 30 days, and `NotFound`
    if the app is being removed.
    """
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        raise ValidationError("The old token can stay valid for 0 to 30 days.")
    with transaction.atomic():
        row = lock_app(actor, app, Permission.REPLACE_SECRETS)
        until = from_now(overlap.total_seconds())
        app.tokens.update(expires_at=Least(Coalesce(F("expires_at"), until), until))
        # Zero overlap deletes without comparing times: SQLite compares them as text, which fails within a millisecond.
        (app.tokens.filter(expires_at__lte=Now()) if overlap else app.tokens.all()).delete()
        token = create_token(app)
        expiries = app.tokens.filter(expires_at__isnull=False).order_by("-expires_at")
        accepted_until = expiries.values_list("expires_at", flat=True).first()
        revoked = "" if overlap else " and revoked the old one"
        audit.record(actor, AuditAction.TOKEN_ROTATED, [row], f"Rotated the token{revoked}", _TOKEN_CHANGED)
        text = "The API token was rotated."
        if not overlap:
            text += " The old one was revoked."
        elif accepted_until:
            text += f" Older ones are accepted until {accepted_until.astimezone(UTC):%Y-%m-%d %H:%M} UTC."
        notify_contact(actor, row, text)
    return NewToken(token, accepted_until)


def retire_old_tokens(actor: Actor, app: App, newest: str = "") -> int:
    """Revoke all tokens but the newest. Return how many were still accepted.

    Raises `NewerToken` if `newest` is not its `newest_id`.
    """
    with transaction.atomic():
        row = lock_app(actor, app, Permission.REPLACE_SECRETS)
        if newest and newest != newest_id(row):
            raise NewerToken("The token was rotated again since. Nothing was changed.")
        accepted = app.tokens.filter(expires_at__gt=Now()).count()
        app.tokens.filter(expires_at__isnull=False).delete()
        if accepted:
            audit.record(actor, AuditAction.TOKENS_RETIRED, [row], "Retired old tokens", _TOKEN_CHANGED)
            notify_contact(actor, row, "The old API tokens were revoked. Only the newest one is accepted.")
    return accepted
