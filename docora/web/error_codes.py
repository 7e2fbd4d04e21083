"""The `code` of every error response of the API: a closed list, documented at `/docs/api/`."""

from enum import StrEnum
from typing import Self


class ErrorCode(StrEnum):
    """What went wrong, for programs. `retryable`: the same request may succeed later. `meaning` is for the documentation."""

    retryable: bool
    meaning: str

    def __new__(cls, value: str, retryable: bool, meaning: str) -> Self:
        code = str.__new__(cls, value)
        code._value_ = value
        code.retryable = retryable
        code.meaning = meaning
        return code

    def body(self, message: str) -> dict[str, object]:
        """Return the body of an error response."""
        return {"error": message, "code": self, "retryable": self.retryable}

    INVALID_REQUEST = "invalid_request", False, "The body, a parameter or a header is malformed. The message names it."
    UNAUTHORIZED = "unauthorized", False, "The token or the signature is missing, wrong or expired."
    FORBIDDEN = "forbidden", False, "The caller isn't allowed to do this."
    NOT_FOUND = "not_found", False, "There is nothing at this URL."
    METHOD_NOT_ALLOWED = (
        "method_not_allowed", False, "The URL doesn't support this method. `Allow` lists those that it does."
    )  # fmt: skip
    BODY_TOO_LARGE = "body_too_large", False, "The body is too large. The message names the limit, or where to find it."
    TOO_MANY_REQUESTS = "too_many_requests", True, "Wait for the number of seconds in `Retry-After`."
    INTERNAL_ERROR = "internal_error", True, "Something went wrong in Docora. Its log has the details."
    UNAVAILABLE = "unavailable", True, "Docora can't answer at the moment."

    NOT_WATCHED = "not_watched", False, "The app doesn't watch a repository with this id."
    RUN_NOT_FOUND = "run_not_found", False, "The repository has no run with this id. Old runs are removed."
    INVALID_URL = "invalid_url", False, "The repository's URL is malformed."
    HOST_NOT_ALLOWED = "host_not_allowed", False, "The administrator hasn't allowed repositories on this host."
    REPOSITORY_NOT_FOUND = (
        "repository_not_found", False, "The git host doesn't know the repository, or hides it from this token."
    )  # fmt: skip
    TOKEN_REQUIRED = (
        "token_required", False, "The git host requires a token: the repository is private or doesn't exist."
    )  # fmt: skip
    TOKEN_REJECTED = (
        "token_rejected", False, "The git host rejected the token, or the token can't read this repository."
    )  # fmt: skip
    REF_NOT_FOUND = "ref_not_found", False, "The repository has no such branch or tag."
    REPOSITORY_MOVED = (
        "repository_moved", False, "The repository has moved to another URL. The message names that URL if it is known."
    )  # fmt: skip
    HOST_UNREACHABLE = "host_unreachable", True, "The git host can't be reached, is too slow or has failed."
    HOST_RATE_LIMITED = "host_rate_limited", True, "The git host limits the rate of requests."
    ADDRESS_NOT_ALLOWED = "address_not_allowed", False, "The git host is in a network that Docora may not connect to."
    REPOSITORY_UNREADABLE = "repository_unreadable", True, "The git host responded, but the repository can't be read."
    PAUSED_BY_ADMINISTRATOR = (
        "paused_by_administrator", False, "An administrator has paused the app. Only an administrator can resume it."
    )  # fmt: skip
    KEY_ROTATION = "key_rotation", False, "The state of the key rotation doesn't allow this step. The message says why."
    QUOTA_EXCEEDED = (
        "quota_exceeded", False, "The app has used up a quota that the administrator set. The message says which."
    )  # fmt: skip
    CONFLICT = "conflict", False, "The current state doesn't allow this. The message says why."


BY_STATUS = {
    400: ErrorCode.INVALID_REQUEST,
    401: ErrorCode.UNAUTHORIZED,
    403: ErrorCode.FORBIDDEN,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    409: ErrorCode.CONFLICT,
    413: ErrorCode.BODY_TOO_LARGE,
    422: ErrorCode.INVALID_REQUEST,
    429: ErrorCode.TOO_MANY_REQUESTS,
    500: ErrorCode.INTERNAL_ERROR,
    503: ErrorCode.UNAVAILABLE,
}
"""The code of an error that has no more specific one."""
