"""Turn the errors of services into responses, each with its code."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.exceptions import ValidationError

from deliveries_app.services.app_settings import PausedByAdministrator
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


@contextmanager
def as_responses(*, unreadable: int = 404) -> Iterator[None]:
    """Convert errors of services to `ApiError`. `unreadable` is the status if a repository cannot be read."""
    try:
        yield
    except GitError as error:
        code = _OF_CLASS.get(type(error)) or _OF_CAUSE.get(error.cause, ErrorCode.REPOSITORY_UNREADABLE)
        raise ApiError(str(error), unreadable, code=code) from None
    except InvalidUrl as error:
        code = ErrorCode.HOST_NOT_ALLOWED if isinstance(error, HostNotAllowed) else ErrorCode.INVALID_URL
        raise ApiError(str(error), 422, code=code) from None
    except ValidationError as error:
        is_token = getattr(error, "code", "") == "github_token"
        raise ApiError(" ".join(error.messages), 422, code=ErrorCode.INVALID_TOKEN if is_token else None) from None
    except KeyRotationError as error:
        raise ApiError(str(error), 409, code=ErrorCode.KEY_ROTATION) from None
    except TooManyWatches as error:
        raise ApiError(str(error), 409, code=ErrorCode.QUOTA_EXCEEDED) from None
    except TooManyResyncs as error:
        raise ApiError(str(error), 429, {"Retry-After": str(error.seconds)}) from None
    except PausedByAdministrator as error:
        raise ApiError(str(error), 409, code=ErrorCode.PAUSED_BY_ADMINISTRATOR) from None
