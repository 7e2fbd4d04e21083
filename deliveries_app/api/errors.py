"""Turn the errors of services into responses, each with its code."""

from django.core.exceptions import ValidationError

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


def of_git(error: GitError, status: int) -> ApiError:
    """Return the error for a repository that cannot be read."""
    code = _OF_CLASS.get(type(error)) or _OF_CAUSE.get(error.cause, ErrorCode.REPOSITORY_UNREADABLE)
    return ApiError(str(error), status, code=code)


def of_url(error: InvalidUrl) -> ApiError:
    code = ErrorCode.HOST_NOT_ALLOWED if isinstance(error, HostNotAllowed) else ErrorCode.INVALID_URL
    return ApiError(str(error), 422, code=code)


def of_validation(error: ValidationError) -> ApiError:
    is_token = getattr(error, "code", "") == "token"
    return ApiError(" ".join(error.messages), 422, code=ErrorCode.INVALID_TOKEN if is_token else None)
