"""The HTTP statuses and error codes for the exceptions of services. `openapi.py` turns them into responses."""

from deliveries_app.services import NotFound
from deliveries_app.services.app_settings import PausedByAdministrator
from deliveries_app.services.imported_tokens import Busy
from deliveries_app.services.keys import KeyRotationError
from deliveries_app.services.quotas import TooManyResyncs, TooManyWatches
from docora.web.error_codes import ErrorCode
from docora.web.errors import ApiError
from repositories_app.git.exceptions import (
    AddressNotAllowed,
    Cause,
    GitError,
    HostNotAllowed,
    InvalidUrl,
    RateLimited,
    RefNotFound,
    RepositoryMoved,
    TokenRequired,
)

STATUSES: dict[type[Exception], tuple[int, ErrorCode | None]] = {
    NotFound: (404, ErrorCode.NOT_WATCHED),
    KeyRotationError: (409, ErrorCode.KEY_ROTATION),
    PausedByAdministrator: (409, ErrorCode.PAUSED_BY_ADMINISTRATOR),
    TooManyWatches: (409, ErrorCode.QUOTA_EXCEEDED),
    InvalidUrl: (422, ErrorCode.INVALID_URL),
    HostNotAllowed: (422, ErrorCode.HOST_NOT_ALLOWED),
    Busy: (429, None),
    TooManyResyncs: (429, None),
}
"""Error → status and code of its response. Those with the status 429 say after how many `seconds` to try again."""
_OF_CLASS = {
    TokenRequired: ErrorCode.TOKEN_REQUIRED,
    RepositoryMoved: ErrorCode.REPOSITORY_MOVED,
    RefNotFound: ErrorCode.REF_NOT_FOUND,
    RateLimited: ErrorCode.HOST_RATE_LIMITED,
    AddressNotAllowed: ErrorCode.ADDRESS_NOT_ALLOWED,
}
_OF_CAUSE = {
    Cause.AUTH: ErrorCode.TOKEN_REJECTED,
    Cause.NOT_FOUND: ErrorCode.REPOSITORY_NOT_FOUND,
    Cause.TIMEOUT: ErrorCode.HOST_UNREACHABLE,
    Cause.NETWORK: ErrorCode.HOST_UNREACHABLE,
}


def unreadable(error: GitError, status: int = 404) -> ApiError:
    """Return the `ApiError` for a repository that cannot be read."""
    code = _OF_CLASS.get(type(error)) or _OF_CAUSE.get(error.cause, ErrorCode.REPOSITORY_UNREADABLE)
    return ApiError(str(error), status, code=code)
