"""Root causes of failed syncs. Pages group failures by them and say what to do (`reports/help_texts.py`).

They are finer than the reasons on the wire, which do not cover the app's own endpoint, and coarser than messages: two
failures have the same root cause if the same action fixes both.
"""

import errno
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from django.db.models import F, TextChoices
from django.db.models.functions import Coalesce, Now

from docora.http.client import Cause as HttpCause
from repositories_app.git.exceptions import Cause as GitCause


class RootCause(TextChoices):
    DNS = "dns", "Endpoint: DNS lookup failed"
    TLS = "tls", "Endpoint: TLS error"
    CONNECTION = "connection", "Endpoint: connection failed"
    TIMEOUT = "timeout", "Endpoint: timeout"
    REFUSED = "refused", "Endpoint: 401 or 403"
    CLIENT_ERROR = "http_4xx", "Endpoint: other 4xx"
    SERVER_ERROR = "http_5xx", "Endpoint: 5xx"
    UNEXPECTED = "http_other", "Endpoint: unexpected response"
    ADDRESS = "address", "Endpoint: address not allowed"
    GIT_AUTH = "git_auth", "Git: token rejected"
    GIT_NOT_FOUND = "git_not_found", "Git: repository not found"
    GIT_HOST = "git_host", "Git: host unavailable"
    GIT_CONTENT = "git_content", "Git: repository unreadable"
    RULES = "rules", "Ignore rules and transforms"
    QUOTA = "quota", "Quota exceeded"
    INTERNAL = "internal", "Docora: internal error"


class ErrorCause(StrEnum):
    """Values of `AppRepository.last_error_cause`, for programs: git's causes, the HTTP client's, and Docora's own."""

    AUTH = "auth"
    NOT_FOUND = "not_found"
    TIMEOUT = "timeout"
    NETWORK = "network"
    TOO_LARGE = "too_large"
    CORRUPT = "corrupt"
    DNS = "dns"
    REFUSED_ADDRESS = "refused_address"
    CONNECT = "connect"
    TLS = "tls"
    HTTP = "http"
    BLOCKED = "blocked"
    RULES = "rules"
    TRANSFORM = "transform"
    QUOTA = "quota"
    INTERNAL = "internal"
    OTHER = "other"

    @classmethod
    def of(cls, value: str) -> "ErrorCause | None":
        """Return the stored cause, `OTHER` if this version doesn't know it, or None if it is empty."""
        return (cls(value) if value in cls else cls.OTHER) if value else None


def label_of(cause: str) -> str:
    """Return the label of a stored root cause, or the value itself if this version doesn't know it."""
    return str(RootCause(cause).label) if cause in RootCause.values else cause


_OF_GIT: dict[str, RootCause] = {
    GitCause.AUTH: RootCause.GIT_AUTH,
    GitCause.NOT_FOUND: RootCause.GIT_NOT_FOUND,
    GitCause.TIMEOUT: RootCause.GIT_HOST,
    GitCause.NETWORK: RootCause.GIT_HOST,
}
GIT_CAUSES = {*_OF_GIT.values(), RootCause.GIT_CONTENT}
_OF_HTTP: dict[str, RootCause] = {
    HttpCause.DNS: RootCause.DNS,
    HttpCause.TLS: RootCause.TLS,
    HttpCause.TIMEOUT: RootCause.TIMEOUT,
    HttpCause.CONNECT: RootCause.CONNECTION,
    HttpCause.NETWORK: RootCause.CONNECTION,
    HttpCause.REFUSED_ADDRESS: RootCause.ADDRESS,
}


def of_git(cause: str) -> RootCause:
    """Return the root cause for a repository that could not be read."""
    return _OF_GIT.get(cause, RootCause.GIT_CONTENT)


def of_delivery(cause: str, status: int | None) -> RootCause:
    """Return the root cause for an undelivered notification, from the HTTP status or, without a response, the client's cause."""
    if status is None:
        return _OF_HTTP.get(cause, RootCause.RULES)
    if status in {401, 403}:
        return RootCause.REFUSED
    if 400 <= status < 500:
        return RootCause.CLIENT_ERROR
    return RootCause.SERVER_ERROR if 500 <= status < 600 else RootCause.UNEXPECTED


@dataclass(frozen=True)
class SyncFailure:
    """Why an attempt failed.

    `cause` is for the watch's `last_error_cause`. `response` is the beginning of the app's response.
    """

    message: str
    cause: str
    root: RootCause
    status: int | None = None
    response: str = ""

    def columns(self) -> dict[str, Any]:
        """Return the watch's columns for this failure. An earlier `failing_since` is kept."""
        return {
            "last_error": self.message,
            "last_error_cause": self.cause,
            "root_cause": self.root,
            "last_status_code": self.status,
            "last_response": self.response,
            "failing_since": Coalesce(F("failing_since"), Now()),
        }


def internal(message: str) -> SyncFailure:
    """Return a failure of Docora itself or of this machine."""
    return SyncFailure(message, "internal", RootCause.INTERNAL)


def of_os_error(error: OSError) -> SyncFailure:
    """Return the failure for a file that could not be created, read or written.

    The message does not name the file, because clients may see it.
    """
    reason = error.strerror or type(error).__name__
    is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    action = "Free up space in" if is_full else "Check the permissions and disks of"
    places = "REPOS_DIR and the temporary directory (TMPDIR)"
    return internal(f"Docora couldn't access its files: {reason}. {action} {places}. Docora retries automatically.")


CLEARED_FAILURE: dict[str, Any] = {
    "last_error": "",
    "last_error_cause": "",
    "root_cause": "",
    "last_status_code": None,
    "last_response": "",
    "failing_since": None,
}
"""The columns of `SyncFailure.columns` without a failure: after a success, a new token or another branch."""
