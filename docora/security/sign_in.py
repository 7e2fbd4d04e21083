"""Guessing passwords is slow: django-axes with Docora's limits.

Two limits, both over `AXES_COOLOFF_TIME` since the last failure: `AXES_FAILURE_LIMIT` failures of one name from one
address, and `ADDRESS_FACTOR` times as many from one address under any names, for an office behind one address has many
people. A success forgets the failures of that name from that address, and only these: whoever has an account of his own
could otherwise wipe out what he tried under other names.

An attempt is kept for 30 days as one row per name, address and browser with a counter. Nothing of what was posted is
kept but the name: axes itself would append every form to the row, without end.
"""

import logging
from datetime import datetime, timedelta
from typing import Any

from axes.handlers.database import AxesDatabaseHandler
from axes.helpers import get_client_username, get_failure_limit
from axes.models import AccessAttempt
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import User
from django.db.models import Case, F, QuerySet, Sum, When
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from docora.security.throttle import source_of

logger = logging.getLogger(__name__)

ADDRESS_FACTOR = 10
KEPT = timedelta(days=30)


def client_address(request: HttpRequest) -> str | None:
    """The source of `REMOTE_ADDR`, as `TrustedProxyMiddleware` left it."""
    return source_of(request.META.get("REMOTE_ADDR", ""))


def locked_out(request: HttpRequest, response: HttpResponse | None, credentials: dict[str, Any] | None) -> HttpResponse:
    """Instead of the login page, whatever the password was."""
    minutes = round(settings.AXES_COOLOFF_TIME.total_seconds() / 60)
    context = {**admin.site.each_context(request), "title": "Sign-in locked", "minutes": minutes}
    page = render(request, "admin/lockout.html", context, status=429)
    page["Retry-After"] = str(minutes * 60)
    page["Cache-Control"] = "no-store"
    return page


class SignInHandler(AxesDatabaseHandler):  # type: ignore[misc]  # axes has no types
    """Counts in the database, by the rules above."""

    def get_failures(self, request: HttpRequest, credentials: dict[str, Any] | None = None) -> int:
        """Failures as compared with `AXES_FAILURE_LIMIT`; those of the address weigh less."""
        since = request.axes_attempt_time - settings.AXES_COOLOFF_TIME  # type: ignore[attr-defined]
        recent = AccessAttempt.objects.filter(ip_address=_address(request), attempt_time__gte=since)
        by_name = _count(recent.filter(username=get_client_username(request, credentials)))
        return max(by_name, _count(recent) // ADDRESS_FACTOR)

    def user_login_failed(
        self, sender: Any, credentials: dict[str, Any], request: HttpRequest | None = None, **kwargs: Any
    ) -> None:
        """Count it, unless it was refused because of the lock: the lock ends although somebody goes on trying."""
        if request is None:
            return
        request.axes_credentials = credentials  # type: ignore[attr-defined]
        if request.axes_locked_out:  # type: ignore[attr-defined]
            return
        self._record(request, credentials)
        if self.get_failures(request, credentials) >= get_failure_limit(request, credentials):
            request.axes_locked_out = True  # type: ignore[attr-defined]
            logger.warning("sign_in_locked", extra={"address": _address(request)})
        else:
            logger.info("sign_in_failed", extra={"address": _address(request)})

    def _record(self, request: HttpRequest, credentials: dict[str, Any]) -> None:
        now = request.axes_attempt_time  # type: ignore[attr-defined]
        attempt, is_new = AccessAttempt.objects.get_or_create(
            username=get_client_username(request, credentials),
            ip_address=_address(request),
            user_agent=request.axes_user_agent,  # type: ignore[attr-defined]
            defaults={"path_info": request.axes_path_info, "failures_since_start": 0},  # type: ignore[attr-defined]
        )
        if is_new:
            old_attempts(now).delete()
        over = When(attempt_time__lt=now - settings.AXES_COOLOFF_TIME, then=1)
        AccessAttempt.objects.filter(pk=attempt.pk).update(
            failures_since_start=Case(over, default=F("failures_since_start") + 1), attempt_time=now
        )

    def user_logged_in(self, sender: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
        AccessAttempt.objects.filter(username=user.get_username(), ip_address=_address(request)).delete()

    def user_logged_out(self, sender: Any, request: HttpRequest, user: User | None, **kwargs: Any) -> None:
        """Nothing to count."""


def old_attempts(now: datetime) -> QuerySet[Any]:
    """What is kept no longer."""
    old: QuerySet[Any] = AccessAttempt.objects.filter(attempt_time__lt=now - KEPT)
    return old


def _address(request: HttpRequest) -> str | None:
    address: str | None = request.axes_ip_address  # type: ignore[attr-defined]
    return address


def _count(attempts: QuerySet[Any]) -> int:
    return attempts.aggregate(failures=Sum("failures_since_start"))["failures"] or 0
