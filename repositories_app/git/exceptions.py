"""Errors about repositories. Their messages are for users."""

from enum import StrEnum

from repositories_app.git.refs import describe, short_name


class Cause(StrEnum):
    """Values of `error.reason` in `sync_failed`."""

    AUTH = "auth"
    NOT_FOUND = "not_found"
    TIMEOUT = "timeout"
    NETWORK = "network"
    TOO_LARGE = "too_large"
    CORRUPT = "corrupt"
    OTHER = "other"


class GitError(Exception):
    """Reading a repository failed.

    - `permanent`: a retry will not help until a person changes something.
    - `for_every_watcher`: it concerns the repository or its host, not one app's token, so it counts for the circuit breaker.
    - `cooldown`: seconds that the host asked to wait, or 0.
    - `no_connection`: no connection to the host could be made, so its other repositories cannot be read either.
    - `no_answer`: the host did not answer, or only a proxy in front of it did (502 to 504).
    - `is_local`: this machine's disk is full, so the repository and its host are not to blame.
    - `next_step`: the last sentence of the message, which depends on the purpose of the read.
    """

    no_connection = False
    no_answer = False
    is_local = False

    def __init__(
        self,
        cause: Cause,
        message: str,
        *,
        permanent: bool = False,
        for_every_watcher: bool = False,
        cooldown: float = 0.0,
        next_step: str = "",
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.permanent = permanent
        self.for_every_watcher = for_every_watcher
        self.cooldown = cooldown
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{super().__str__()} {self.next_step}".rstrip()

    def promise_no_retry(self) -> None:
        """Advise to try again later, because Docora does not repeat this read."""
        if self.next_step:
            self.next_step = "Try again later."


class RepositoryMoved(GitError):
    """The host redirects. The message names the new address if it is known and may be watched."""

    def __init__(self, message: str) -> None:
        super().__init__(Cause.NOT_FOUND, message, permanent=True, for_every_watcher=True)


class TokenRequired(GitError):
    """The host asks for a token, and none was given. It doesn't tell a private repository from a missing one."""


class RateLimited(GitError):
    """The host limits the rate of requests."""


class AddressNotAllowed(GitError):
    """The host's address is in a network that Docora may not connect to."""


class NoCommit(GitError):
    """The repository can be read, but HEAD names no commit: it is empty, has only tags, or lost its default branch.

    With a branch or tag `ref`, the repository has no refs at all.
    """

    def __init__(self, ref: str = "") -> None:
        if ref:
            state = f"The repository has no commits. It syncs after the next push to {short_name(ref)}."
        else:
            state = (
                "The repository has no commits on its default branch. It syncs once that branch has a commit, or once another one is "
                "the default branch."
            )
        super().__init__(Cause.NOT_FOUND, f"{state} Until then, the app keeps the files it has.", permanent=True)


class RefNotFound(GitError):
    """The repository has commits, but no such branch or tag."""

    def __init__(self, ref: str) -> None:
        message = f"The repository has no {describe(ref)}. Push it, or choose another branch or tag."
        kept = "Until then, the app keeps the files it has."
        super().__init__(Cause.NOT_FOUND, message, permanent=True, next_step=kept)


class InvalidUrl(ValueError):
    """A repository URL that cannot be watched. The message says why, and what is accepted."""


class HostNotAllowed(InvalidUrl):
    """The URL is well-formed, but its host is not allowed."""


class MirrorBusy(Exception):
    """Another process has held the mirror's lock for longer than this one waits: for about `held_for` seconds."""

    def __init__(self, held_for: float) -> None:
        super().__init__()
        self.held_for = held_for


class Interrupted(Exception):
    """The work has to stop, because the process is shutting down or another one has taken over."""
