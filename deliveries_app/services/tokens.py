"""Bearer tokens of apps: recognised by their digest, replaced with an overlap in which both are accepted."""

import hmac
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Coalesce, Least, Now
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppToken
from deliveries_app.services import audit
from deliveries_app.services.requests import NotFound
from docora.db.clock import from_now
from docora.security.crypto import hash_token, new_token

PERMISSION = "deliveries_app.rotate_secret_app"
OVERLAP = timedelta(hours=24)
LONGEST_OVERLAP = timedelta(days=30)
_LAST_USED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class NewToken:
    """A token that cannot be shown again. `old_accepted_until` is None when no older one is accepted any more."""

    app: App
    token: str = field(repr=False)
    old_accepted_until: datetime | None


def live_tokens(app: App) -> QuerySet[AppToken]:
    """The tokens that are accepted now, the newest first."""
    return app.tokens.filter(Q(expires_at=None) | Q(expires_at__gt=Now()))


def authenticate(token: str) -> App | None:
    """The app that this token belongs to; None for a token that is unknown or expired, or whose app has ended.

    Only the digest is looked up, in a unique index. How long that takes can tell about digests alone, of which nobody
    can choose the beginning; the comparison of the whole is made in constant time all the same.
    """
    digest = hash_token(token)
    live = AppToken.objects.filter(Q(expires_at=None) | Q(expires_at__gt=Now()), app__ended_at=None)
    found = live.filter(digest=digest).select_related("app").first()
    if found is None or not hmac.compare_digest(found.digest, digest):
        return None
    used = found.last_used_at
    if used is None or abs(timezone.now() - used) > _LAST_USED_EVERY:
        AppToken.objects.filter(pk=found.pk).update(last_used_at=Now())
    return found.app


def rotate_app_token(actor: Actor, app: App, *, overlap: timedelta = OVERLAP) -> NewToken:
    """A new token for the app; older ones are accepted for `overlap` more, and no longer than they were before.

    An overlap of zero ends them at once, as after a leak. Raises `ValidationError` for more than 30 days, and
    `NotFound` for an app that is being removed.
    """
    actor.require(PERMISSION)
    actor.require_app(app)
    if not timedelta(0) <= overlap <= LONGEST_OVERLAP:
        raise ValidationError("The old token may be accepted for 0 to 30 days more.", code="overlap")
    token = new_token()
    with transaction.atomic():
        lock_app(app)
        until = from_now(overlap.total_seconds())
        app.tokens.update(expires_at=Least(Coalesce(F("expires_at"), until), until))
        # Not left to the comparison: within one millisecond SQLite's texts of the two times differ in their length.
        (app.tokens.filter(expires_at__lte=Now()) if overlap else app.tokens.all()).delete()
        AppToken.objects.create(app=app, digest=hash_token(token), ending=token[-4:])
        old = app.tokens.filter(expires_at__isnull=False).order_by("-expires_at").first()
        audit.record(actor, [app], "Replaced the token")
    return NewToken(app, token, old.expires_at if old else None)


def retire_old_tokens(actor: Actor, app: App) -> int:
    """Accept only the newest token from now on. How many others were accepted until now."""
    actor.require(PERMISSION)
    actor.require_app(app)
    with transaction.atomic():
        lock_app(app)
        accepted = app.tokens.filter(expires_at__gt=Now()).count()
        app.tokens.filter(expires_at__isnull=False).delete()
        if accepted:
            audit.record(actor, [app], "Retired the old token")
    return accepted


def lock_app(app: App) -> App:
    """The row as it is now, for one change of its secrets at a time: two rotations at once would leave two tokens
    without an end. `NotFound` for an app that is being removed. Without its key: see `lease`."""
    row = App.objects.select_for_update(no_key=True).filter(pk=app.pk, ended_at=None).first()
    if row is None:
        raise NotFound("App not found")
    return row
