"""Watch many repositories of one app at once, each with its own result."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from django.core.exceptions import ValidationError

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository
from deliveries_app.permissions import Permission
from deliveries_app.services.host_checks import check_readable
from deliveries_app.services.watching import AlreadyWatched, WatchOptions, store_watch
from repositories_app.git.exceptions import GitError, InvalidUrl
from repositories_app.git.url import RepositoryUrl, as_https, host_of, parse_url
from repositories_app.models import GitHubApp

MAX_LINES = 200
CONCURRENT_CHECKS = 16
TOTAL_SECONDS = 15.0  # for all git hosts, while the user waits for the page
LEAST_SECONDS = 3.0  # with less time left, no check is started


class LineStatus(StrEnum):
    WATCHED = "watched"
    ALREADY_WATCHED = "already_watched"
    REPEATED = "repeated"
    FAILED = "failed"
    UNCHECKED = "unchecked"


@dataclass(frozen=True)
class LineResult:
    """The result of one line. `watch` is set if the app watches the repository now. `message` is the error or a remark."""

    line: str
    status: LineStatus
    message: str = ""
    watch: AppRepository | None = None

    @property
    def is_open(self) -> bool:
        """Whether the line has to be submitted again, as it is or corrected."""
        return self.status in {LineStatus.FAILED, LineStatus.UNCHECKED}


@dataclass(frozen=True)
class _Candidate:
    """A repository that the app does not watch yet. `github_app` reads it, unless there is a token."""

    line: str
    url: RepositoryUrl
    github_app: GitHubApp | None


def watch_many(actor: Actor, app: App, lines: Iterable[str], options: WatchOptions) -> list[LineResult]:
    """Watch the repository of each line with the same options, and return the results in the order of the lines.

    Empty lines, and those that equal an earlier one, are left out. Several repositories are checked at once; those that
    cannot be checked within `TOTAL_SECONDS`, because others took too long, are returned as unchecked. A repository that the
    app already watches is not changed. Raises `ValidationError` if the token would be sent to several hosts, and `NotFound` if
    the app is being removed.
    """
    actor.require_app(app, Permission.WATCH)
    results: dict[str, LineResult] = {}  # by line: a dictionary keeps the order
    candidates: dict[str, _Candidate] = {}  # by canonical URL
    for line in filter(None, map(str.strip, lines)):
        if line in results:
            continue
        results[line] = LineResult(line, LineStatus.UNCHECKED)
        try:
            url = parse_url(as_https(line))
        except InvalidUrl as error:
            results[line] = LineResult(line, LineStatus.FAILED, str(error))
            continue
        if url.canonical in candidates:
            results[line] = LineResult(line, LineStatus.REPEATED)
            continue
        github_app = app.github_app_for(url.canonical, options.github_token)
        candidates[url.canonical] = _Candidate(line, url, github_app)
    if options.github_token and len(set(map(host_of, candidates))) > 1:
        message = "The token would be sent to several hosts. Watch the repositories of each host separately."
        raise ValidationError(message, code="github_token")
    watches = AppRepository.objects.alive().filter(app=app, repository__canonical_url__in=list(candidates))
    watched = {watch.repository.canonical_url: watch for watch in watches.for_list().order_by("-pk")}
    for canonical, watch in watched.items():
        line = candidates.pop(canonical).line
        results[line] = _already(line, watch)
    deadline = time.monotonic() + TOTAL_SECONDS
    with ThreadPoolExecutor(CONCURRENT_CHECKS) as pool:  # the threads use no database
        answers = pool.map(lambda candidate: _check(actor, candidate, options, deadline), candidates.values())
    for candidate, answer in zip(candidates.values(), answers, strict=True):
        if isinstance(answer, GitError):
            results[candidate.line] = LineResult(candidate.line, LineStatus.FAILED, str(answer))
        elif answer is not None:
            results[candidate.line] = _store(actor, app, candidate, options, is_private=answer)
    return list(results.values())


def _already(line: str, watch: AppRepository) -> LineResult:
    return LineResult(line, LineStatus.ALREADY_WATCHED, "Nothing was changed.", watch)


def _check(actor: Actor, candidate: _Candidate, options: WatchOptions, deadline: float) -> bool | GitError | None:
    """Return whether the repository is private, why it cannot be read, or None if there is no time left to ask."""
    left = deadline - time.monotonic()
    if left < LEAST_SECONDS:
        return None
    try:
        url, token = candidate.url.spelled, options.github_token
        return check_readable(actor, url, token, options.ref, candidate.github_app, within=left)
    except GitError as error:
        return error


def _store(actor: Actor, app: App, candidate: _Candidate, options: WatchOptions, *, is_private: bool) -> LineResult:
    try:
        watched = store_watch(actor, app, candidate.url, options, is_private=is_private, must_be_new=True)
    except AlreadyWatched as error:  # meanwhile
        return _already(candidate.line, error.watch)
    return LineResult(candidate.line, LineStatus.WATCHED, watch=watched.watch)
