"""Authenticate client apps by bearer token, and throttle failed attempts."""

import logging

from django.http import HttpRequest
from ninja.security import HttpBearer

from deliveries_app.models import App
from deliveries_app.services import imported_tokens, tokens
from docora.web.api import authentication_error, read_body
from docora.web.errors import INTERNAL, ApiError

logger = logging.getLogger(__name__)

KIND = "api"  # failed attempts are counted per kind
_HINT = "Send the app's token: Authorization: Bearer docora_<64 hex digits>"


class AppToken(HttpBearer):
    """Set `request.auth` to the `App`. The class name is the name of the security scheme in the OpenAPI document."""

    openapi_description = (
        "The client app's token: `docora_` followed by 64 hex digits. It is shown once, when the app is registered. An "
        "administrator can replace it; the old token stays valid for a while."
    )

    def __init__(self, *, max_body: int = 0) -> None:
        """`max_body` limits the size of the body, in bytes.

        The body is read only after authentication, so that strangers cannot block a thread by sending it slowly.
        """
        super().__init__()
        self._max_body = max_body

    def __call__(self, request: HttpRequest) -> App:
        app = super().__call__(request)
        if app is None:
            given = "Authorization" in request.headers
            raise authentication_error(request, KIND, f"The token is unknown or expired. {_HINT}" if given else _HINT)
        assert isinstance(app, App)
        if self._max_body:
            read_body(request, self._max_body)
        return app

    def authenticate(self, request: HttpRequest, token: str) -> App | None:
        token = token.strip()
        try:
            return tokens.authenticate(token) or imported_tokens.recognise(token, request.META.get("REMOTE_ADDR", ""))
        except imported_tokens.BcryptMissing as error:
            logger.error("bcrypt_missing", extra={"cause": str(error)})
            raise ApiError(INTERNAL, 500) from None
