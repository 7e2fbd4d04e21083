"""Ask git hosts about repositories while a user or a client app waits for the response.

A host that doesn't respond occupies the request's thread for up to `GIT_CHECK_SECONDS`. `LIMIT` keeps client apps from
occupying all threads. Administrators and commands are not limited.
"""

import time
from contextlib import nullcontext, suppress

from deliveries_app.actors import Actor
from docora.web.concurrency import ConcurrencyLimit
from repositories_app import github
from repositories_app.git import remote
from repositories_app.git.exceptions import Cause, GitError, NoCommit, RefNotFound
from repositories_app.models import GitHubApp

GIT_CHECK_SECONDS = 12.0  # for all requests to the git host
LIMIT = ConcurrencyLimit("checks of repositories", per_caller=2, total=6)


def check_readable(
    actor: Actor,
    url: str,
    token: str,
    ref: str,
    github_app: GitHubApp | None,
    *,
    within: float = GIT_CHECK_SECONDS,
) -> bool:
    """Return whether the repository is private: readable with a token, but not without, for whatever reason.

    The token is `token`, or one from `github_app`. A repository without commits is readable, too.
    Raises `GitError` if the repository cannot be read, if it has commits but not this branch or tag, or if its host takes
    longer than `within` seconds. The message does not promise a retry, because nothing is stored yet. Raises `ApiError` if
    too many calls of apps are asking git hosts.
    """
    slot = LIMIT.slot(actor.app.pk) if actor.app else nullcontext()
    within = min(within, GIT_CHECK_SECONDS)
    deadline = time.monotonic() + within

    def check_deadline() -> None:
        if time.monotonic() > deadline:
            raise GitError(Cause.TIMEOUT, f"The git host didn't respond within {within:.0f} seconds. Try again later.")

    with slot, remote.new_client(max_connections=1) as client:

        def read(token: str) -> str:
            """Return the token if the repository can be read with it, also without commits."""
            with suppress(NoCommit):
                remote.ls_head(client, url, token, check_deadline, ref=ref)
            return token

        try:
            used = github.read(github_app, url, token, read, check_deadline)
        except RefNotFound as error:
            error.next_step = ""
            raise
        except GitError as error:
            error.promise_no_retry()
            raise
        try:
            if used:
                read("")
        except GitError:
            return True
    return False
