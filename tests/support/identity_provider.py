"""A real OpenID Connect provider (canaille) in its own process, and a person who signs in there without a browser.

canaille and its dependencies are imported by that process only.
"""

import http.cookiejar
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from email.message import Message
from functools import partial
from html import unescape
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode, urljoin

CLIENT_ID, CLIENT_SECRET = "docora", "secret-of-the-client"
PASSWORD = "correct horse battery"
USERS = {"olga": ["docora-admins", "staff"], "rita": ["docora-readers"], "norbert": ["staff"]}
"""Maps users to their groups."""
PROJECT = Path(__file__).resolve().parents[2]


class IdentityProvider:
    """The provider at `issuer`. Its users have the password `PASSWORD`."""

    def __init__(self, redirect_uris: Sequence[str], log: Path) -> None:
        from docora.process import die_with_parent
        from tests.support.instance import free_port

        port = free_port()
        self.issuer = f"http://localhost:{port}"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.identity_provider", str(port), *redirect_uris],
                cwd=PROJECT,
                stdout=output,
                stderr=output,
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.issuer}/.well-known/openid-configuration", timeout=10).close()
        except OSError:
            return False
        return True

    def settings(self) -> dict[str, Any]:
        """Return the environment of a Docora that uses this provider."""
        return {
            "OIDC_ISSUER": self.issuer,
            "OIDC_CLIENT_ID": CLIENT_ID,
            "OIDC_CLIENT_SECRET": CLIENT_SECRET,
            "OIDC_NAME": "Canaille",
            "OIDC_SCOPES": "openid,profile,email,groups",
            "OIDC_USERNAME_CLAIM": "sub",
            "OIDC_ROLES": "docora-admins=superuser,docora-readers=Viewers",
            "OIDC_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
        }

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(15)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


class Person:
    """A browser without JavaScript, with its own cookies at the provider."""

    def __init__(self, name: str) -> None:
        self.name = name
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self._opener = urllib.request.build_opener(cookies, _NoRedirect)
        self.passwords_entered = 0

    def authorize(self, url: str) -> str:
        """Follow the provider's redirects and fill in its forms. Return the URL at Docora that it finally redirects to."""
        provider, data = url.partition("/oauth")[0], None
        for _ in range(15):
            try:
                answer = self._opener.open(urllib.request.Request(url, data), timeout=20)
            except urllib.error.HTTPError as error:
                if not 300 <= error.code < 400:
                    raise AssertionError(f"{url}: {error.code} {error.read()[:2000]!r}") from error
                url, data = urljoin(url, error.headers["Location"]), None
                if not url.startswith(provider):
                    return url
                continue
            data = self._fill(answer.read().decode())
        raise AssertionError(f"The provider never redirected back, and ended at {url}.")

    def _fill(self, page: str) -> bytes:
        fields = {
            unescape(name[1]): unescape(value[1]) if value else ""
            for tag in re.findall(r"<(?:input|button)[^>]*>", page)
            if (name := re.search(r'name="([^"]*)"', tag))
            for value in [re.search(r'value="([^"]*)"', tag)]
        }
        assert fields, page
        if "login" in fields:
            fields["login"] = self.name
        if "password" in fields:
            fields["password"] = PASSWORD
            self.passwords_entered += 1
        return urlencode(fields).encode()


def serve(port: int, redirect_uris: Sequence[str]) -> None:
    import datetime
    import wsgiref.simple_server

    from canaille import create_app
    from canaille.app import models
    from canaille.backends import Backend
    from joserfc.jwk import JWKRegistry

    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"
    key = JWKRegistry.generate_key("RSA", 2048)
    key.ensure_kid()
    app = create_app(
        config={
            "SECRET_KEY": "only-for-tests-only-for-tests",
            "WTF_CSRF_ENABLED": False,
            "PREFERRED_URL_SCHEME": "http",
            "SERVER_NAME": f"localhost:{port}",
            "CANAILLE": {
                "DATABASE": "memory",
                "JAVASCRIPT": False,
                "ACL": {"DEFAULT": {"PERMISSIONS": ["use_oidc"]}},
            },
            "CANAILLE_OIDC": {"ACTIVE_JWKS": [key.as_dict(private=True)], "REQUIRE_NONCE": False},
        }
    )
    with app.app_context():
        backend = Backend.instance
        users = {
            name: models.User(
                user_name=name,
                formatted_name=f"{name.title()} Example",
                given_name=name.title(),
                family_name="Example",
                emails=[f"{name}@example.org"],
                password=PASSWORD,
            )
            for name in USERS
        }
        for user in users.values():
            backend.save(user)
        for group in sorted({group for groups in USERS.values() for group in groups}):
            members = [users[name] for name, groups in USERS.items() if group in groups]
            backend.save(models.Group(display_name=group, members=members))
        client = models.Client(
            client_id=CLIENT_ID,
            client_secret=CLIENT_SECRET,
            client_name="Docora",
            client_uri="http://127.0.0.1",
            client_id_issued_at=datetime.datetime.now(datetime.UTC),
            redirect_uris=list(redirect_uris),
            grant_types=["authorization_code"],
            response_types=["code"],
            scope=["openid", "profile", "email", "groups"],
            token_endpoint_auth_method="client_secret_basic",
        )
        backend.save(client)
        client.audience = [client]
        backend.save(client)
    with wsgiref.simple_server.make_server("localhost", port, app) as server:
        server.serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2:])
