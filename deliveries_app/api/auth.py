"""Who calls: a client app with its bearer token, or somebody who is slowed down."""

import logging

from django.http import HttpRequest
from ninja.security import HttpBearer

from deliveries_app.models import App
from deliveries_app.services import imported_tokens, tokens
from docora.web.api import read_body, refusal
from docora.web.errors import INTERNAL, ApiError

logger = logging.getLogger(__name__)

KIND = "api"  # of the failures that are counted
_HOW = "Send the app's token: Authorization: Bearer docora_<64 hex digits>"


class AppToken(HttpBearer):
    """`request.auth` becomes the `App`; its name is the name of the security scheme in the OpenAPI document."""

    openapi_description = (
        "The token of the client app, `docora_` and 64 hex digits. It is shown once when the app is registered, and an "
        "administrator can replace it; the old one is accepted for a while after that."
    )

    def __init__(self, *, max_body: int = 0) -> None:
        """`max_body`: the call has a body of at most so many bytes. It is read once the caller is known, so that nobody
        else keeps a thread waiting for the rest of one."""
        super().__init__()
        self._max_body = max_body

    def __call__(self, request: HttpRequest) -> App:
        app = super().__call__(request)
        if app is None:
            given = "Authorization" in request.headers
            raise refusal(request, KIND, f"The token is unknown or expired. {_HOW}" if given else _HOW)
        assert isinstance(app, App)
        if self._max_body:
            read_body(request, self._max_body)
        return app

    def authenticate(self, request: HttpRequest, token: str) -> App | None:
        token = token.strip()
        try:
            return tokens.authenticate(token) or imported_tokens.recognise(token, request.META.get("REMOTE_ADDR", ""))
        except imported_tokens.Busy as error:
            raise ApiError(str(error), 429, {"Retry-After": str(error.seconds)}) from None
        except imported_tokens.BcryptMissing as error:
            logger.error("bcrypt_missing", extra={"cause": str(error)})
            raise ApiError(INTERNAL, 500) from None


def caller(request: HttpRequest) -> App:
    """The app that `AppToken` found."""
    app = request.auth  # type: ignore[attr-defined]
    assert isinstance(app, App)
    return app
