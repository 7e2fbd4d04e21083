"""End idle sessions, ask for a missing second factor, and ask for a recent sign-in if a view requires it."""

import math
import time
from collections.abc import Callable

from allauth.core.exceptions import ReauthenticationRequired
from django.conf import settings
from django.contrib.auth import SESSION_KEY, logout
from django.contrib.auth.views import redirect_to_login
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import reverse

from docora.sign_in import factors, recency
from docora.web.errors import json_error, wants_json

ACTIVE_AT = "active_at"
PREFIXES = ("/admin/", "/accounts/")
"""The pages that need a session."""
_WRITE_SECONDS = 60
"""How often the time of the last activity is written to the session, at most. More often if `SESSION_IDLE_SECONDS` is short."""


class SignInMiddleware:
    """Applies to pages that need a session. Polls by an open page do not count as activity."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path.startswith(PREFIXES) and SESSION_KEY in request.session:
            if request.user.is_authenticated:
                self._check_activity(request)
            else:
                request.session.flush()  # it would continue when a deactivated user is activated again
            if refusal := self._check_factor(request):
                return refusal
        return self.get_response(request)

    @staticmethod
    def _check_activity(request: HttpRequest) -> None:
        now = time.time()
        idle = abs(now - request.session.get(ACTIVE_AT, now))  # a time ahead was written while the clock was wrong
        limit = settings.SESSION_IDLE_SECONDS or math.inf
        if idle > limit:
            request.was_idle = True  # type: ignore[attr-defined]  # for the audit log
            logout(request)
        elif request.method == "GET" and request.htmx:  # type: ignore[attr-defined]  # a poll is not activity
            return
        elif idle > min(_WRITE_SECONDS, limit / 10) or ACTIVE_AT not in request.session:
            request.session[ACTIVE_AT] = now

    @staticmethod
    def _check_factor(request: HttpRequest) -> HttpResponse | None:
        """Ask for a second factor that was missing at sign-in, unless the user has set one up since."""
        if not request.path.startswith("/admin/") or not request.session.get(factors.MISSING):
            return None
        if request.path == reverse("admin:logout"):
            return None
        if not factors.is_missing(request, request.user):
            request.session[factors.MISSING] = False
            return None
        if wants_json(request):
            return json_error("Your role requires a second factor: set one up in the admin", 403)
        return HttpResponseRedirect(reverse("mfa_index"))

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Ask for a recent sign-in, or send a stranger to sign in.

        allauth itself would keep the refused form in the session, in plain text. Strangers could fill the database with forms.
        It also saves sessions within a request, where Django doesn't expect that the session has ended meanwhile.
        """
        if isinstance(exception, UpdateError):
            raise SessionInterrupted("The session ended during the request.")
        if not isinstance(exception, recency.SignInAgain | ReauthenticationRequired):
            return None
        return recency.ask(request) if request.user.is_authenticated else redirect_to_login(request.get_full_path())
