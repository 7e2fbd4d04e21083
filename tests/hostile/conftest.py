import json
from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client

from deliveries_app.models import App, AppToken
from docora.security.crypto import hash_token, new_token
from tests.deliveries.conftest import watches, world
from tests.support.staff import make_app

__all__ = ["watches", "world"]

Api = Callable[..., HttpResponse]


def visitor(name: str, *codenames: str, superuser: bool = False, checks_csrf: bool = False) -> Client:
    """Sign in a staff user. The client returns 500 responses instead of raising the exception."""
    user = User(username=name, is_staff=True, is_superuser=superuser)
    user.set_unusable_password()  # hashing a password would take longer than the test
    user.save()
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client(raise_request_exception=False, enforce_csrf_checks=checks_csrf)
    client.force_login(user, backend="docora.security.permissions.OneQueryBackend")
    return client


@pytest.fixture
def root(db) -> Client:
    """A superuser, so that only the input can be rejected."""
    return visitor("root", superuser=True)


@pytest.fixture
def app(db) -> App:
    return make_app("Portal")


def token_of(app: App) -> str:
    token = new_token()
    AppToken.objects.create(app=app, digest=hash_token(token), ending=token[-4:])
    return token


@pytest.fixture
def api(app: App) -> Api:
    """Call the REST API as `app`. A `body` that is not bytes is sent as JSON."""
    client, authorization = Client(raise_request_exception=False), f"Bearer {token_of(app)}"

    def call(method: str, path: str, body: object = b"", content_type: str = "application/json") -> HttpResponse:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return client.generic(method, f"/api/{path}", data, content_type, headers={"authorization": authorization})

    return call
