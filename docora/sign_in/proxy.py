"""Users whom a reverse proxy has authenticated (`REMOTE_USER_HEADER`).

`TrustedProxyMiddleware` sets `REMOTE_USER` from the proxy's header, and only for `TRUSTED_PROXIES`. The users must exist in
Docora: the proxy says who they are, not what they may do.
"""

from django.contrib.auth.backends import RemoteUserBackend
from django.contrib.auth.middleware import RemoteUserMiddleware
from django.http import HttpRequest

from docora.sign_in.middleware import PREFIXES


class ProxyUserBackend(RemoteUserBackend):
    """Authenticates existing users only. For their permissions, Django uses what `OneQueryBackend` has read."""

    create_unknown_user = False


class ProxyUserMiddleware(RemoteUserMiddleware):
    """Signs in the user that the proxy names. Ends a session that it began if the proxy names no user, or a different one.

    A session that began with a password lasts until the proxy names another user of Docora. Applies to pages that need a
    session.
    """

    def process_request(self, request: HttpRequest) -> None:
        if request.path.startswith(PREFIXES):
            super().process_request(request)

    def get_username(self, request: HttpRequest) -> str:
        """Return the name, which proxies send in UTF-8. Raises KeyError if the proxy sent none."""
        name: str = request.META["REMOTE_USER"]
        return name.encode("latin-1").decode(errors="replace")  # WSGI decodes headers as Latin-1
