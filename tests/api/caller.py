"""A client app that calls the API through Django's test client."""

import json
from typing import Any

from django.test import Client

from deliveries_app.models import App, AppToken
from docora.security.crypto import hash_token, new_token
from docora.web.error_codes import ErrorCode

BASE = "/api/repositories"


def token_of(app: App, **fields: Any) -> str:
    """Create another token for the app."""
    token = new_token()
    AppToken.objects.create(app=app, digest=hash_token(token), ending=token[-4:], **fields)
    return token


class Caller:
    """Calls the API with the app's token."""

    def __init__(self, app: App, token: str | None = None, address: str = "203.0.113.9") -> None:
        self.app = app
        self.client = Client(
            headers={"Authorization": f"Bearer {token or token_of(app)}"},
            REMOTE_ADDR=address,
            raise_request_exception=False,
        )

    def get(self, path: str = "", **query: Any):
        return self.client.get(BASE + path, query)

    def post(self, path: str = "", body: Any = None):
        return self.client.post(BASE + path, json.dumps({} if body is None else body), content_type="application/json")

    def put(self, body: Any, path: str = ""):
        return self.client.put(BASE + path, json.dumps(body), content_type="application/json")

    def patch(self, path: str, body: Any):
        return self.client.patch(BASE + path, json.dumps(body), content_type="application/json")

    def delete(self, path: str):
        return self.client.delete(BASE + path)


def error_of(answer, status: int) -> str:
    """Check the shape of an error response and return its message."""
    assert answer.status_code == status, answer.content
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert list(body) == ["error", "code", "retryable"]
    assert body["retryable"] == ErrorCode(body["code"]).retryable
    assert not body["error"].endswith(".")
    return body["error"]


def code_of(answer, status: int) -> str:
    """Check the shape of an error response and return its code."""
    error_of(answer, status)
    return answer.json()["code"]
