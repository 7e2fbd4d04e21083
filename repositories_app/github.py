"""GitHub Apps: read private repositories without a personal token.

An organisation installs a GitHub App on its repositories. With the app's private key, Docora asks GitHub which installation
has a repository, then for a token that reads only this repository and expires after an hour. Tokens are kept in Redis,
encrypted, so that all processes share them; without Redis, each read asks for another one.

`deliveries_app` decides which client app may read through which GitHub App. A token must never be used for another client
app.
"""

import hashlib
import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any
from urllib.parse import quote, urlsplit

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from docora.backoff import MAX_WAIT_SECONDS
from docora.http.client import Cause as HttpCause
from docora.http.client import HttpClient, Outcome, Request
from docora.redis.connection import RedisError, connection, logging_outage
from docora.security.crypto import DecryptionError, decrypt, encrypt
from docora.text import format_seconds
from repositories_app.git import errors as git_errors
from repositories_app.git import process as git
from repositories_app.git import remote
from repositories_app.git.exceptions import (
    Cause,
    GitError,
    NoCommit,
    RateLimited,
    RefNotFound,
    RepositoryMoved,
    TokenRequired,
)
from repositories_app.git.url import owner_and_name
from repositories_app.models import GitHubApp

logger = logging.getLogger(__name__)

CONCURRENCY = 20  # GitHub refuses more than 100 requests of one app at a time
MAX_KEY = 16_384  # characters
MIN_KEY_BITS = 2048
_CLOCK_SKEW_SECONDS = 60  # GitHub refuses a JWT from the future
_JWT_SECONDS = 540  # GitHub accepts at most ten minutes
_RENEW_SECONDS = 300.0  # a token is replaced this long before it expires, so that it lasts for a fetch
_CACHE_SECONDS = 86_400  # how long the number of an installation is cached
_ABSENT_SECONDS = 300  # how long the absence of an installation is cached
_TIMEOUT_SECONDS = 20.0
_MAX_ANSWER = 1 << 20  # bytes
_LIMITED = "docora:github_limit:"
_TOKEN = re.compile("[!-9;-~]{1,4096}")  # a colon would end a user name
_PERMISSIONS = {"contents": "read"}
_REFUSALS = {Cause.AUTH, Cause.NOT_FOUND}
_MALFORMED = (ValueError, TypeError, KeyError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Access:
    """The token that reads a repository.

    Without a token, the repository is read as a public one. If that fails, `problem` says why there is no token.
    `is_cached`: this is from the cache, so a new request may have another result.
    """

    token: str = field(default="", repr=False)
    problem: GitError | None = None
    is_cached: bool = False


def read[T](
    github_app: GitHubApp | None,
    url: str,
    token: str,
    call: Callable[[str], T],
    tick: git.Tick,
    *,
    fresh: bool = False,
) -> T:
    """Return `call(token)` or, with a GitHub App, `call` with the app's token for the repository at `url`.

    If the git host refuses a cached token, because it has expired or the app's permissions have changed, request a new one,
    once. With `fresh`, use no cached token. Raises `GitError`.
    """
    if github_app is None:
        return call(token)
    access = access_to([(github_app, url)], tick, fresh=fresh)[github_app.pk, url]
    try:
        return call(access.token)
    except (NoCommit, RefNotFound, RepositoryMoved):
        raise
    except GitError as error:
        if error.cause not in _REFUSALS:
            raise
        if not access.is_cached:
            raise access.problem or error from None
    return read(github_app, url, token, call, tick, fresh=True)


def access_to(
    wanted: Iterable[tuple[GitHubApp, str]], tick: git.Tick, *, fresh: bool = False, timeout: float | None = None
) -> dict[tuple[int, str], Access]:
    """Return how to read each repository: primary key of the GitHub App and URL, as an app spelled it → access.

    Ask GitHub for those that are not cached, several at a time, with `timeout` seconds for each request. Call `tick` about
    every second meanwhile.
    """
    pairs = {(github_app.pk, url): (github_app, url) for github_app, url in wanted}
    found: dict[tuple[int, str], Access] = {}
    waiting: deque[_Conversation] = deque()
    limited_for, signed = cache(_limited_for), cache(json_web_token)  # once for each GitHub App
    for (key, (github_app, url)), entry in zip(pairs.items(), _read_cache(pairs.values()), strict=True):
        access = None if fresh else _access_from(entry, github_app, url)
        if access is not None:
            found[key] = access
        elif seconds := limited_for(github_app):
            found[key] = Access(problem=_rate_limited(github_app, seconds))
        else:
            installation = 0 if fresh else int(entry.get("installation", 0))
            waiting.append(_Conversation(github_app, url, signed(github_app), installation, timeout))
    if waiting:
        # A client of its own, because the caller's may have requests in flight.
        with remote.new_client(CONCURRENCY) as client:
            found |= _ask(client, waiting, tick)
    return found


def _ask(client: HttpClient, waiting: "deque[_Conversation]", tick: git.Tick) -> dict[tuple[int, str], Access]:
    found: dict[tuple[int, str], Access] = {}
    # By primary key of the GitHub App. GitHub bans apps that keep asking, and an API that hangs would delay the caller again.
    given_up: dict[int, Access] = {}
    while waiting or client.in_flight:
        while waiting and client.in_flight < CONCURRENCY:
            next_one = waiting.popleft()
            if next_one.github_app.pk in given_up:
                found[next_one.github_app.pk, next_one.url] = given_up[next_one.github_app.pk]
            else:
                client.submit(next_one.request())
        tick()
        for request, outcome in client.poll(1.0):
            conversation: _Conversation = request.context  # type: ignore[assignment]
            access = conversation.take(outcome)
            if access is None:
                client.submit(conversation.request())
            else:
                found[conversation.github_app.pk, conversation.url] = access
                if remote.is_rate_limit(outcome) or outcome.cause is HttpCause.TIMEOUT:
                    given_up[conversation.github_app.pk] = access
    return found


def installations(github_app: GitHubApp) -> list[str]:
    """Return the accounts on which the GitHub App is installed, at most 100. Raises `GitError`."""
    api = api_url(github_app.host)
    with remote.new_client(max_connections=1) as client:
        outcome = client.request(_request("GET", f"{api}/app/installations?per_page=100", json_web_token(github_app)))
    if not outcome.ok:
        raise _problem_of(github_app, outcome)
    try:
        return sorted(str(installation["account"]["login"]) for installation in json.loads(outcome.body))
    except _MALFORMED:
        raise _malformed(github_app) from None


def api_url(host: str) -> str:
    """Return the base URL of the API of `https://github.com`, `https://…ghe.com` or a GitHub Enterprise Server."""
    scheme, name = urlsplit(host).scheme, urlsplit(host).netloc
    is_cloud = name == "github.com" or name.endswith(".ghe.com")
    return f"{scheme}://api.{name}" if is_cloud else f"{host}/api/v3"


# --- The key ------------------------------------------------------------------------------------------------------------


def load_key(pem: str) -> RSAPrivateKey:
    """Return the private key. Raises `ValueError` with a message for the user if GitHub would not accept it."""
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except TypeError:
        raise ValueError("The private key must not have a passphrase.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            "This is not a private key in PEM format. Paste the whole .pem file that GitHub generated for the app."
        ) from None
    if not isinstance(key, RSAPrivateKey) or key.key_size < MIN_KEY_BITS:
        raise ValueError(
            f"The private key must be an RSA key of at least {MIN_KEY_BITS:,} bits, as GitHub generates it."
        )
    return key


def json_web_token(github_app: GitHubApp) -> str:
    """Return a JSON Web Token (RFC 7519, RS256) that authenticates the GitHub App for `_JWT_SECONDS`.

    Raises `DecryptionError` if the key cannot be decrypted.
    """
    now = int(time.time())
    claims = {"iat": now - _CLOCK_SKEW_SECONDS, "exp": now + _JWT_SECONDS, "iss": github_app.app_id}
    return jwt.encode(claims, load_key(github_app.private_key), algorithm="RS256")


# --- Requests and answers -----------------------------------------------------------------------------------------------


def _request(
    method: str, url: str, jwt: str, body: bytes = b"", context: object = None, timeout: float | None = None
) -> Request:
    headers = (
        f"Authorization: Bearer {jwt}",
        "Accept: application/vnd.github+json",
        "X-GitHub-Api-Version: 2022-11-28",
        *(["Content-Type: application/json"] if body else []),
    )
    seconds = timeout or _TIMEOUT_SECONDS
    return Request(method, url, headers, body, timeout=seconds, max_body=_MAX_ANSWER, repeatable=True, context=context)


class _Conversation:
    """Two requests for one repository: which installation has it, and then a token of that installation."""

    def __init__(self, github_app: GitHubApp, url: str, jwt: str, installation: int, timeout: float | None) -> None:
        """`installation` is the cached number, or 0."""
        self.github_app, self.url = github_app, url
        self._owner, self._name = owner_and_name(url)
        self._jwt, self._api, self._timeout = jwt, api_url(github_app.host), timeout
        self._installation, self._is_cached = installation, bool(installation)

    def request(self) -> Request:
        """Return the next request."""
        if not self._installation:
            path = f"/repos/{quote(self._owner, safe='')}/{quote(self._name, safe='')}/installation"
            return _request("GET", self._api + path, self._jwt, context=self, timeout=self._timeout)
        body = json.dumps({"repositories": [self._name], "permissions": _PERMISSIONS}).encode()
        path = f"/app/installations/{self._installation}/access_tokens"
        return _request("POST", self._api + path, self._jwt, body, self, self._timeout)

    def take(self, outcome: Outcome) -> Access | None:
        """Return the result, or None if there is another request to send."""
        if outcome.ok:
            try:
                return self._take(json.loads(outcome.body))
            except _MALFORMED:
                return Access(problem=_malformed(self.github_app))
        if outcome.status in {404, 422} and self._is_cached:  # the app was installed again, or the repository was moved
            self._installation, self._is_cached = 0, False
            return None
        if outcome.status == 404:
            _write_cache(self.github_app, self.url, {"absent": True}, _ABSENT_SECONDS)
            return _absent(self.github_app, self.url)
        if outcome.status == 422:
            return Access(problem=_no_permission(self.github_app, self.url))
        if not self._installation and outcome.status and 300 <= outcome.status < 400:
            return Access(problem=git_errors.moved(""))
        return Access(problem=_problem_of(self.github_app, outcome))

    def _take(self, answer: Any) -> Access | None:
        if not self._installation:
            self._installation = int(answer["id"])
            if self._installation < 1:
                raise ValueError
            return None
        token, expires = str(answer["token"]), datetime.fromisoformat(answer["expires_at"]).timestamp()
        if not _TOKEN.fullmatch(token):
            raise ValueError
        entry = {"installation": self._installation, "token": token, "expires": expires}
        _write_cache(self.github_app, self.url, entry, _CACHE_SECONDS)
        logger.info("github_token_minted", extra={"github_app": self.github_app.pk, "repository": self.url})
        return Access(token)


def _absent(github_app: GitHubApp, url: str, *, is_cached: bool = False) -> Access:
    owner, name = owner_and_name(url)
    message = (
        f"The GitHub App {github_app} can't read {owner}/{name}: it isn't installed there, or the repository doesn't exist. "
        "Install it for this repository, or add a token."
    )
    return Access(problem=TokenRequired(Cause.NOT_FOUND, message, permanent=True), is_cached=is_cached)


def _no_permission(github_app: GitHubApp, url: str) -> GitError:
    owner, name = owner_and_name(url)
    message = (
        f"The GitHub App {github_app} isn't allowed to read {owner}/{name}. In its installation, grant it the repository and "
        "the permission to read contents."
    )
    return GitError(Cause.AUTH, message, permanent=True)


def _malformed(github_app: GitHubApp) -> GitError:
    return _no_token(Cause.OTHER, github_app, "GitHub's answer is malformed")


def _problem_of(github_app: GitHubApp, outcome: Outcome) -> GitError:
    """Return the error for a refusal or no response. It concerns only the GitHub App's watches."""
    if outcome.cause is not None:
        # `reached`, because the API's host has failed, which proves nothing about the git host.
        error = git_errors.unreachable(outcome.cause, outcome.message, reached=True)
        error.for_every_watcher = False
        return error
    status = outcome.status or 0
    if remote.is_rate_limit(outcome):
        seconds = _seconds_to_wait(outcome)
        _hold(github_app, seconds)
        return _rate_limited(github_app, seconds)
    if status == 401:
        message = (
            f"GitHub refused the key of the GitHub App {github_app}. An administrator should check its app ID, its private "
            "key and this server's clock."
        )
        return GitError(Cause.AUTH, message, permanent=True)
    if status == 403:
        message = f"GitHub refused access to the GitHub App {github_app}. Its installation may be suspended."
        return GitError(Cause.AUTH, message, permanent=True)
    error = _no_token(Cause.NETWORK, github_app, f"GitHub returned HTTP {status}")
    error.cooldown = min(outcome.retry_after(time.time()) or 0.0, MAX_WAIT_SECONDS)
    return error


def _no_token(cause: Cause, github_app: GitHubApp, reason: str) -> GitError:
    message = f"Couldn't get a token for the GitHub App {github_app}: {reason}."
    return git_errors.temporary(cause, message, for_every_watcher=False)


def _seconds_to_wait(outcome: Outcome) -> float:
    seconds = outcome.retry_after(time.time())
    if seconds is None:
        is_primary = outcome.headers.get("x-ratelimit-remaining") == "0"  # secondary rate limits end at another time
        reset = outcome.headers.get("x-ratelimit-reset", "") if is_primary else ""
        seconds = float(reset) - time.time() if reset.isdecimal() else git_errors.DEFAULT_COOLDOWN
    return min(max(seconds, 1.0), MAX_WAIT_SECONDS)


def _rate_limited(github_app: GitHubApp, seconds: float) -> GitError:
    message = (
        f"GitHub's rate limit for the GitHub App {github_app} is exceeded. GitHub asks for a pause of "
        f"{format_seconds(seconds)}."
    )
    return RateLimited(Cause.NETWORK, message, cooldown=seconds)


# --- The cache in Redis -------------------------------------------------------------------------------------------------


def _redis_key(github_app: GitHubApp, url: str) -> str:
    """Return the Redis key of the entry. It changes if anything changes that the token was requested with."""
    text = f"{github_app.pk}|{github_app.host}|{github_app.app_id}|{github_app.private_key}|{url}"
    return f"docora:github_token:{hashlib.sha256(text.encode()).hexdigest()}"


def _read_cache(wanted: Iterable[tuple[GitHubApp, str]]) -> Sequence[dict[str, Any]]:
    """Return the cache entry of each repository: an empty dictionary if there is none, or if Redis is down."""
    keys = [_redis_key(github_app, url) for github_app, url in wanted]
    if not keys:
        return []
    try:
        values: list[Any] = connection().mget(keys)
    except RedisError:
        return [{}] * len(keys)
    return [_decoded(value) for value in values]


def _decoded(value: bytes | None) -> dict[str, Any]:
    try:
        return dict(json.loads(decrypt(value.decode("ascii")))) if value else {}
    except (DecryptionError, ValueError):
        return {}


def _access_from(entry: dict[str, Any], github_app: GitHubApp, url: str) -> Access | None:
    if entry.get("absent"):
        return _absent(github_app, url, is_cached=True)
    if entry.get("token") and float(entry["expires"]) > time.time() + _RENEW_SECONDS:
        return Access(str(entry["token"]), is_cached=True)
    return None


def _hold(github_app: GitHubApp, seconds: float) -> None:
    """Keep every process from sending requests for this app, whose rate limit is exceeded, for `seconds`."""
    with logging_outage("github_limit_not_kept"):
        connection().set(f"{_LIMITED}{github_app.pk}", 1, px=int(seconds * 1000))


def _limited_for(github_app: GitHubApp) -> float:
    """Return for how many more seconds no request may be sent for this app."""
    try:
        milliseconds: Any = connection().pttl(f"{_LIMITED}{github_app.pk}")
    except RedisError:
        return 0.0
    seconds = max(0, int(milliseconds)) / 1000
    return seconds if seconds <= MAX_WAIT_SECONDS else 0.0  # longer: set while the clock of Redis was ahead


def _write_cache(github_app: GitHubApp, url: str, entry: dict[str, Any], seconds: int) -> None:
    with logging_outage("github_token_not_kept"):
        connection().set(_redis_key(github_app, url), encrypt(json.dumps(entry)), ex=seconds)
