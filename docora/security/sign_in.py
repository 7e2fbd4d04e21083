"""Throttle password guessing: django-axes with Docora's limits.

There are two limits, both over `AXES_COOLOFF_TIME` since the last failure: `AXES_FAILURE_LIMIT` failures of one user
name from one address, and `ADDRESS_FACTOR` times as many from one address under any names, because many people may
share an office's address. A successful sign-in clears the failures of that name from that address only; otherwise an
attacker with an account could clear the failures of other names.

Attempts are kept for 30 days, in one row with a counter for each name, address and browser. Of the posted form, only the
name is stored. axes would append every form to the row, without a limit.
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

from docora.security.permissions import MAX_USERNAME
from docora.security.throttle import source_of

logger = logging.getLogger(__name__)

ADDRESS_FACTOR = 10
RETENTION = timedelta(days=30)
TOO_LONG = "(a name that is too long)"


def client_address(request: HttpRequest) -> str | None:
    """Return the client's address from `REMOTE_ADDR`, which `TrustedProxyMiddleware` has set."""
    return source_of(request.META.get("REMOTE_ADDR", ""))


def locked_out(request: HttpRequest, response: HttpResponse | None, credentials: dict[str, Any] | None) -> HttpResponse:
    """Render the page that replaces the login page, even if the password was correct."""
    minutes = round(settings.AXES_COOLOFF_TIME.total_seconds() / 60)
    context = {**admin.site.each_context(request), "title": "Sign-in locked", "minutes": minutes}
    page = render(request, "admin/lockout.html", context, status=429)
    page["Retry-After"] = str(minutes * 60)
    page["Cache-Control"] = "no-store"
    return page


class SignInHandler(AxesDatabaseHandler):  # type: ignore[misc]  # axes has no types
    """Count failures in the database by the rules above."""

    def get_failures(self, request: HttpRequest, credentials: dict[str, Any] | None = None) -> int:
        """Return the number of failures to compare with `AXES_FAILURE_LIMIT`."""
        since = request.axes_attempt_time - settings.AXES_COOLOFF_TIME  # type: ignore[attr-defined]
        recent = AccessAttempt.objects.filter(ip_address=_address(request), attempt_time__gte=since)
        by_name = _total_failures(recent.filter(username=_username(request, credentials)))
        return max(by_name, _total_failures(recent) // ADDRESS_FACTOR)

    def user_login_failed(
        self, sender: Any, credentials: dict[str, Any], request: HttpRequest | None = None, **kwargs: Any
    ) -> None:
        """Count the failure, except while locked: further attempts must not extend the lock."""
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
            username=_username(request, credentials),
            ip_address=_address(request),
            user_agent=request.axes_user_agent,  # type: ignore[attr-defined]
            defaults={"path_info": request.axes_path_info, "failures_since_start": 0},  # type: ignore[attr-defined]
        )
        if is_new:
            old_attempts(now).delete()
        cooled_off = When(attempt_time__lt=now - settings.AXES_COOLOFF_TIME, then=1)
        AccessAttempt.objects.filter(pk=attempt.pk).update(
            failures_since_start=Case(cooled_off, default=F("failures_since_start") + 1), attempt_time=now
        )

    def user_logged_in(self, sender: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
        AccessAttempt.objects.filter(username=user.get_username(), ip_address=_address(request)).delete()

    def user_logged_out(self, sender: Any, request: HttpRequest, user: User | None, **kwargs: Any) -> None:
        """Do nothing: axes would log it."""


def old_attempts(now: datetime) -> QuerySet[Any]:
    """Return the attempts that are due for deletion."""
    old: QuerySet[Any] = AccessAttempt.objects.filter(attempt_time__lt=now - RETENTION)
    return old


def _address(request: HttpRequest) -> str | None:
    address: str | None = request.axes_ip_address  # type: ignore[attr-defined]
    return address


def _username(request: HttpRequest, credentials: dict[str, Any] | None) -> str:
    """Return the name that failures are counted under. Names that are too long for any user count as one."""
    name = get_client_username(request, credentials) or ""
    return name if len(name) <= MAX_USERNAME else TOO_LONG


def _total_failures(attempts: QuerySet[Any]) -> int:
    return attempts.aggregate(failures=Sum("failures_since_start"))["failures"] or 0
