"""One-time links that sign a user in without password, second factor or provider (`manage.py sign_in_link`).

A link is a signed text with the user and the time of their last sign-in. It is not stored anywhere: a sign-in changes that
time, and with it every link of that user becomes invalid.
"""

from typing import Any

from django.contrib.auth import get_user_model
from django.core import signing
from django.dispatch import Signal
from django.utils import timezone

MAX_AGE_SECONDS = 600
_SALT = "docora.sign_in_link"

link_created = Signal()
"""Sent with the `user` before a link is handed out, so that it can be recorded."""


def make_token(user: Any) -> str:
    return signing.dumps([user.pk, _last_login(user)], salt=_SALT)


def user_of(token: str) -> Any:
    """Return the user of a valid token, or None."""
    try:
        pk, last_login = signing.loads(token, salt=_SALT, max_age=MAX_AGE_SECONDS)
    except signing.BadSignature:
        return None
    user = get_user_model()._default_manager.filter(pk=pk, is_active=True).first()
    return user if user is not None and _last_login(user) == last_login else None


def claim(user: Any) -> bool:
    """Make every link of the user invalid. Return False if another request has done so since `user` was read."""
    users = get_user_model()._default_manager
    return users.filter(pk=user.pk, last_login=user.last_login).update(last_login=timezone.now()) == 1


def _last_login(user: Any) -> str:
    return user.last_login.isoformat() if user.last_login else ""
