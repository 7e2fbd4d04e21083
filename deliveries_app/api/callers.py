"""Authenticate the client app that sent a request, and find its watches.

Every query starts from here, so a repository that the app doesn't watch gives a 404.
"""

import logging
from typing import Annotated

from django.db.models import QuerySet
from django.http import HttpRequest
from ninja import Path
from ninja.security import HttpBearer

from deliveries_app import services
from deliveries_app.actors import Actor
from deliveries_app.api import schemas
from deliveries_app.models import App, AppRepository, AppRepositoryQuerySet
from deliveries_app.services import imported_tokens, tokens
from docora.db.compiled import compiled_and_prepared
from docora.text import can_be_id
from docora.web.api import THROTTLED, UNAUTHORIZED, authentication_error, read_body
from docora.web.errors import INTERNAL, ApiError

logger = logging.getLogger(__name__)

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
            raise authentication_error(request, "api", f"The token is unknown or expired. {_HINT}" if given else _HINT)
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


MAX_BODY = 65536  # bytes of a JSON body
WITH_BODY = AppToken(max_body=MAX_BODY)

# Documented error responses.
REFUSED = {401: UNAUTHORIZED, 429: THROTTLED}
_HOST_BUSY = "while two other calls of the app, or six calls in total, are waiting for a git host"
_RESYNCS_USED = "once the app has used up its quota of re-syncs"
ASKS_HOST = {429: f"{THROTTLED} Also returned {_HOST_BUSY}."}
ONE_PING = {429: f"{THROTTLED} Also returned while another ping of the app, or two pings in total, are under way."}
TWO_MANIFESTS = {
    429: f"{THROTTLED} Also returned, without a `limit`, while two other manifests of the app, or four in total, are prepared."
}
RESYNCS = {429: f"{THROTTLED} Also returned {_RESYNCS_USED}."}
WATCHES = REFUSED | {429: f"{THROTTLED} Also returned {_HOST_BUSY}, and {_RESYNCS_USED}."}
NOT_WATCHED = REFUSED | {404: "The app does not watch this repository."}
QUERY = REFUSED | {422: "A query parameter is malformed or out of range."}
BODY = {413: f"The body is larger than {MAX_BODY:,} bytes.", 422: "The body is malformed."}

RepositoryId = Annotated[
    str, Path(description="As returned by `PUT /api/repositories`.", example=schemas.REPOSITORY_ID)
]


def caller(request: HttpRequest) -> App:
    """Return the app that `AppToken` has authenticated."""
    app = request.auth  # type: ignore[attr-defined]
    assert isinstance(app, App)
    return app


def actor(request: HttpRequest) -> Actor:
    return Actor.of_app(caller(request), address=request.META.get("REMOTE_ADDR", ""))


def own_watches(request: HttpRequest) -> AppRepositoryQuerySet:
    return _watches_of(caller(request).pk)


def own_watch(request: HttpRequest, repository_id: str) -> AppRepository:
    """Return the caller's watch of this repository. Raises `NotFound` for any other id."""
    watches = _watch_of(caller(request).pk, repository_id) if can_be_id(repository_id) else []
    if not watches:
        raise services.NotFound("Repository not found: GET /api/repositories lists what this app watches")
    return watches[0]


@compiled_and_prepared
def _watch_of(app_pk: int, repository_id: str) -> QuerySet[AppRepository]:
    return _watches_of(app_pk).filter(repository__repository_id=repository_id).with_state()


def _watches_of(app_pk: int) -> AppRepositoryQuerySet:
    return AppRepository.objects.alive().filter(app=app_pk).select_related("app", "repository")
