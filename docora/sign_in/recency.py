"""Ask users to authenticate again before a sensitive change, unless they have done so recently.

The session holds the time of the last authentication, at sign-in or since. Users who sign in with an OpenID Connect
provider authenticate again there. The time that the provider reports counts, because a sign-in there may take only a
click. Users whom a proxy has authenticated are never asked, because Docora cannot make the proxy ask.

The refused form is kept in the session, encrypted, and submitted once the user has authenticated.
"""

import time
from typing import Any
from urllib.parse import urlencode

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.reauthentication import STATE_SESSION_KEY
from allauth.account.utils import get_next_redirect_url
from allauth.core.internal.httpkit import deserialize_request, serialize_request
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import BACKEND_SESSION_KEY
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import resolve_url
from django.urls import resolve

from docora.security.crypto import decrypt, encrypt

AUTHENTICATED_AT = "authenticated_at"
PROXY_BACKEND = "docora.sign_in.proxy.ProxyUserBackend"
KEPT_SECONDS = 600
"""How long a refused form can still be submitted."""
NOT_SAVED = "Your earlier change was not saved."


class SignInAgain(Exception):
    """The user must authenticate again before this request is carried out."""


def is_proxy_session(request: HttpRequest) -> bool:
    return request.session.get(BACKEND_SESSION_KEY) == PROXY_BACKEND


def is_recent(request: HttpRequest) -> bool:
    """Return whether the user has authenticated within the last `REAUTHENTICATE_AFTER_SECONDS`.

    A time far ahead was written while the clock was wrong. One that is slightly ahead may come from another machine's clock.
    """
    at: float = request.session.get(AUTHENTICATED_AT, 0)
    return abs(time.time() - at) < settings.REAUTHENTICATE_AFTER_SECONDS or is_proxy_session(request)


def require_recent(request: HttpRequest) -> None:
    """Raise `SignInAgain` unless the user has authenticated recently.

    Validate the form first, so that users don't authenticate again for a change that is then rejected.
    """
    if not is_recent(request):
        raise SignInAgain


def ask(request: HttpRequest) -> HttpResponse:
    """Redirect to the page where the user authenticates again. Keep the refused request if it has a form."""
    methods = get_adapter().get_reauthentication_methods(request.user)
    if not methods:
        raise PermissionDenied("This change requires a recent sign-in. Sign out and sign in again.")
    path = request.get_full_path()
    if request.method == "POST":
        kept = {"path": path, "at": time.time(), "request": encrypt(serialize_request(request))}
        request.session[STATE_SESSION_KEY] = {"callback": f"{__name__}.resume", "state": kept}
    return HttpResponseRedirect(f"{methods[0]['url']}?{urlencode({'next': path})}")


def forget_unless(request: HttpRequest, path: str | None) -> None:
    """Drop the kept form unless it was submitted to `path`, the page that the user returns to."""
    state = request.session.get(STATE_SESSION_KEY)
    if state and state.get("state", {}).get("path") != path:
        del request.session[STATE_SESSION_KEY]
        messages.warning(request, NOT_SAVED)


def resume(request: HttpRequest, kept: dict[str, Any]) -> HttpResponse:
    """Submit the kept form. allauth calls this once the user has authenticated.

    If the user has meanwhile gone to another page, or the form is too old or has become invalid, say so and redirect.
    """
    path = get_next_redirect_url(request) or kept["path"]
    if path == kept["path"] and time.time() - kept["at"] <= KEPT_SECONDS:
        original = deserialize_request(decrypt(kept["request"]), request)
        match = original.resolver_match = resolve(original.path_info)
        response: HttpResponse = match.func(original, *match.args, **match.kwargs)
        is_popup_done = "popup_response_data" in (getattr(response, "context_data", None) or {})
        if response.status_code != 200 or is_popup_done:
            return response
        # The response is the form with its errors. Shown at the sign-in page's address, it would be sent there.
    messages.warning(request, NOT_SAVED)
    return HttpResponseRedirect(resolve_url(path))
