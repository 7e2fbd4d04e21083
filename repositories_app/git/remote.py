"""Ask git hosts for the commit of HEAD, or of the branch or tag that a watch follows, and turn refusals into errors.

A check is a single protocol v2 `ls-refs` request, without a request for capabilities first. Hundreds run at once on
pooled connections. Servers that do not support v2 are checked with `git ls-remote`.
"""

import random
import re
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Self

from django.conf import settings

from docora.backoff import MAX_WAIT_SECONDS
from docora.http.client import HttpClient, Outcome, Request
from docora.http.messages import name_of
from docora.http.resolver import ResolvedHost
from repositories_app.git import errors as git_errors
from repositories_app.git import process as git
from repositories_app.git import protocol
from repositories_app.git.exceptions import Cause, GitError, Interrupted, RepositoryMoved
from repositories_app.git.protocol import OBJECT_NAME, Head
from repositories_app.git.refs import HEAD, full_names
from repositories_app.git.url import host_of, parse_url

_MAX_ANSWER = 65536  # bytes
CONCURRENCY = 200
_LOOKUP_SECONDS = 5.0
GIT_SECONDS = 30.0
"""Seconds that git may take for one repository. After this time in total, git starts no further checks."""
_GIT_HOSTS = 16  # hosts that git asks at the same time


def new_client(max_connections: int = CONCURRENCY) -> HttpClient:
    """Return an outbound client with this installation's rules."""
    return HttpClient(
        allowed_networks=settings.ALLOWED_PRIVATE_NETWORKS,
        allow_http=settings.ALLOW_HTTP,
        max_connections=max_connections,
        proxy=settings.EGRESS_PROXY,
    )


def _authorization(remote: git.Remote) -> list[str]:
    return [git_errors.basic_authorization(remote.url, remote.token)] if remote.token else []


def upload_pack_request(
    remote: git.Remote, body: bytes, *, max_body: int = _MAX_ANSWER, timeout: float = 30.0, context: object = None
) -> Request:
    """Return a protocol v2 request. It changes nothing on the host, so it is safe to repeat."""
    headers = (
        "Content-Type: application/x-git-upload-pack-request",
        "Accept: application/x-git-upload-pack-result",
        "Git-Protocol: version=2",
        *_authorization(remote),
    )
    return Request(
        "POST",
        f"{remote.url.removesuffix('/')}/git-upload-pack",
        headers,
        body,
        timeout=timeout,
        max_body=max_body,
        repeatable=True,
        context=context,
    )


@dataclass(slots=True)
class HeadQuery[Key]:
    """Asks for a repository's HEAD, or for the branch or tag `ref`.

    `commit` is an earlier commit of the repository, if there is one: its length reveals the object format.
    `tenant`: who asks. Tenants share the connections, see `ls_heads`.

    Some answers require another request:
    - A host sends an empty answer to a request in the wrong object format. Repeat it in the other format.
    - If neither the ref nor HEAD exists, the repository is empty or has only other refs. Ask for all refs.
    """

    key: Key
    url: str
    token: str = ""
    commit: str = ""
    ref: str = ""
    tenant: object = None
    asks_for_all: bool = False
    _format: str = field(init=False)
    _is_first: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self._format = protocol.object_format(self.commit)

    @property
    def remote(self) -> git.Remote:
        return git.Remote(self.url, self.token)

    def request(self) -> Request:
        """Return the request to send now."""
        body = protocol.ls_refs_request(self.ref, self._format, all_refs=self.asks_for_all)
        return upload_pack_request(self.remote, body, context=self)

    def needs_another_request(self, outcome: Outcome) -> bool:
        """Return whether another request is needed after this answer, and prepare it."""
        is_first, self._is_first = self._is_first, False
        if is_first and outcome.ok and not outcome.body:
            self._format = protocol.SHA1 if self._format == protocol.SHA256 else protocol.SHA256
            return True
        if self.ref and not self.asks_for_all and outcome.ok and outcome.body.startswith(b"0000"):
            self.asks_for_all = True
            return True
        return False


class _Turns[Key]:
    """Decides which queries are made next: at most `CONCURRENCY` at once, and at most its share of them for each tenant."""

    def __init__(self, queries: Iterable[HeadQuery[Key]]) -> None:
        self._waiting = list(queries)
        self._unanswered = Counter(query.tenant for query in self._waiting)
        self._under_way: Counter[object] = Counter()

    def begin(self) -> list[HeadQuery[Key]]:
        """Return the queries to make now."""
        if not self._waiting:
            return []
        room = CONCURRENCY - self._under_way.total()
        share = max(1, CONCURRENCY // len(self._unanswered))
        begun: list[HeadQuery[Key]] = []
        left: list[HeadQuery[Key]] = []
        for query in self._waiting:
            if len(begun) < room and self._under_way[query.tenant] < share:
                self._under_way[query.tenant] += 1
                begun.append(query)
            else:
                left.append(query)
        self._waiting = left
        return begun

    def end(self, query: HeadQuery[Key]) -> None:
        """Give back the turn of a query that has its answer."""
        self._under_way[query.tenant] -= 1
        self._unanswered[query.tenant] -= 1
        if not self._unanswered[query.tenant]:
            del self._unanswered[query.tenant]


def ls_heads[Key](
    client: HttpClient, queries: Iterable[HeadQuery[Key]], tick: git.Tick
) -> Iterator[tuple[Key, Head | GitError | None]]:
    """Yield the key and the HEAD or error of each query, as the answers arrive. Call `tick` about every second.

    Yield None instead of a HEAD if the host does not support protocol v2: pass these queries to `HeadsByGit`.
    Do nothing slow between two answers, because requests in flight time out unless they are polled.

    Names are looked up in threads, so that one without an answer delays no other host's queries. A tenant has at most its
    share of the connections: `CONCURRENCY` ÷ tenants that wait for answers, so that slow hosts delay no other tenant's queries.
    """
    lookups: dict[str, Future[ResolvedHost]] = {}  # by name
    queued: list[HeadQuery[Key]] = []  # until their names are looked up
    turns = _Turns(queries)
    try:
        while True:
            unsent = [*queued, *turns.begin()]
            queued = []
            for query in unsent:
                name = name_of(query.url)
                if name not in lookups:
                    lookups[name] = client.resolver.look_up(name, _LOOKUP_SECONDS)
                if not lookups[name].done():
                    queued.append(query)
                    continue
                resolved = lookups[name].result()
                client.resolver.add(name, resolved)  # so that it is known when the connection is opened
                if resolved.cause is not None and not settings.EGRESS_PROXY:  # a proxy may know the name
                    turns.end(query)
                    yield query.key, git_errors.unreachable(resolved.cause, resolved.message, token=query.token)
                else:
                    client.submit(query.request())
            if not (client.in_flight or unsent):
                return
            tick()
            if not client.in_flight:
                wait([lookups[name_of(query.url)] for query in queued], 1.0, FIRST_COMPLETED)
            for request, outcome in client.poll(0.05 if queued else 1.0):
                asked: HeadQuery[Key] = request.context  # type: ignore[assignment]
                if asked.needs_another_request(outcome):
                    client.submit(asked.request())
                    continue
                try:
                    found: Head | GitError | None = _head(asked, outcome)
                except GitError as error:
                    found = error
                turns.end(asked)
                yield asked.key, found
    finally:
        client.reset()  # after an exception in `tick`, the client's next user must not get these answers


class HeadsByGit[Key]:
    """Asks hosts without protocol v2 in threads, with `git ls-remote`, while others are asked with `ls_heads`.

    Each host is asked one query at a time, so a slow host delays only its own. Queries that could not be started within
    `GIT_SECONDS` get no answer.
    """

    def __init__(self) -> None:
        self._until = time.monotonic() + GIT_SECONDS
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(_GIT_HOSTS, "ls-remote")
        self._unstarted: dict[str, deque[HeadQuery[Key]]] = defaultdict(deque)  # by host
        self._threads: dict[str, Future[None]] = {}  # by host
        self._answers: deque[tuple[Key, Head | GitError]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown()

    def ask(self, queries: Iterable[HeadQuery[Key]]) -> None:
        """Make these queries in a random order, so that it is not always the same ones that are left out."""
        shuffled = list(queries)
        random.shuffle(shuffled)
        for query in shuffled:
            self._unstarted[host_of(query.url)].append(query)

    def proceed(self, seconds: float) -> bool:
        """Start the next hosts, and wait at most this long for one to finish. Return whether any were being asked."""
        for host in [host for host, thread in self._threads.items() if thread.done()]:
            self._threads.pop(host).result()
        if time.monotonic() < self._until:
            for host, queries in self._unstarted.items():
                if queries and host not in self._threads:
                    self._threads[host] = self._pool.submit(self._ask_host, queries)
        wait(self._threads.values(), seconds, FIRST_COMPLETED)
        return bool(self._threads)

    def answers(self) -> list[tuple[Key, Head | GitError]]:
        """Return the key and the HEAD or error of each query that was answered since the last call."""
        return [self._answers.popleft() for _ in range(len(self._answers))]

    def _ask_host(self, queries: deque[HeadQuery[Key]]) -> None:
        while queries and time.monotonic() < self._until:
            query = queries.popleft()
            try:
                answer: Head | GitError = _ls_remote(query.remote, query.ref, _deadline(self._stopped))
            except GitError as error:
                answer = error
            self._answers.append((query.key, answer))


def _deadline(stopped: threading.Event) -> git.Tick:
    """Return a tick that raises `GitError` once `GIT_SECONDS` are over, and `Interrupted` once the work is stopped."""
    deadline = time.monotonic() + GIT_SECONDS

    def tick() -> None:
        if stopped.is_set():
            raise Interrupted
        if time.monotonic() > deadline:
            raise git_errors.explain(Cause.TIMEOUT, f"git took longer than {GIT_SECONDS:.0f} seconds")

    return tick


def ls_head(
    client: HttpClient, url: str, token: str = "", tick: git.Tick | None = None, *, commit: str = "", ref: str = ""
) -> Head:
    """Return the HEAD of one repository, or its branch or tag `ref`. `commit` is an earlier commit of it, if there is one.

    Raises `GitError`: `NoCommit` if the repository is empty, `RefNotFound` if it has no such branch or tag.
    """
    query = HeadQuery(None, url, token, commit, ref)
    outcome = client.request(query.request(), tick)
    while query.needs_another_request(outcome):
        outcome = client.request(query.request(), tick)
    return _head(query, outcome) or _ls_remote(query.remote, ref, tick)


def _head(query: HeadQuery[Any], outcome: Outcome) -> Head | None:
    """Return the HEAD in a host's answer, or None if the host does not support protocol v2. Raises `GitError`."""
    require_answer(query.remote, outcome)
    return protocol.parse_ls_refs(outcome.body, query.ref) if outcome.ok else None


def require_answer(remote: git.Remote, outcome: Outcome) -> None:
    """Raise `GitError` unless the host answered with 2xx, or in a way that means that it does not support protocol v2."""
    token = remote.token
    if outcome.cause is not None:
        raise git_errors.unreachable(outcome.cause, outcome.message, token=token, reached=outcome.reached)
    status = outcome.status or 0
    if is_rate_limit(outcome):
        raise git_errors.rate_limited(outcome.retry_after(time.time()), token=token)
    if status == 403:
        needs_sso = b"SAML" in outcome.body or b"SSO" in outcome.body
        sso = "it isn't authorised for the organisation's single sign-on"
        raise git_errors.explain(Cause.AUTH, sso if needs_sso else git_errors.FORBIDDEN, token=token)
    if status == 401:
        raise git_errors.explain(Cause.AUTH, token=token)
    if status in {404, 410}:
        raise git_errors.explain(Cause.NOT_FOUND, token=token)
    if 300 <= status < 400:
        raise _moved(remote, outcome)
    if status >= 500:
        error = git_errors.temporary(Cause.NETWORK, f"The git host returned HTTP {status}.")
        error.no_answer = status in {502, 503, 504}
        error.cooldown = min(outcome.retry_after(time.time()) or 0.0, MAX_WAIT_SECONDS)
        raise error


def is_rate_limit(outcome: Outcome) -> bool:
    """Return whether the host refuses because of a rate limit. GitHub also does so with a 403."""
    if outcome.status != 403:
        return outcome.status == 429
    headers = outcome.headers
    is_secondary = b"secondary rate limit" in outcome.body.lower()  # GitHub says so in the message alone
    return "retry-after" in headers or headers.get("x-ratelimit-remaining") == "0" or is_secondary


def _moved(remote: git.Remote, outcome: Outcome) -> RepositoryMoved:
    """Return the error for a redirect, which is not followed. It names the target if that may be watched."""
    url = remote.url.removesuffix("/")
    try:
        target = outcome.redirect_target(f"{url}/")
        repository = re.sub(r"/(info/refs|git-upload-pack)$", "", target)
        parsed = parse_url(repository)
    except ValueError:  # `InvalidUrl` is one
        return git_errors.moved("")
    if repository == target and "/" in parsed.owner:  # probably a page such as /users/sign_in/now
        return git_errors.moved("")
    address = parsed.spelled.removesuffix("/")
    return git_errors.moved(address if address != url and git_errors.scrub(address, remote.token) == address else "")


def redirect_error(remote: git.Remote, tick: git.Tick | None) -> RepositoryMoved:
    """Return the error to raise after git was redirected. Ask the host again, because git does not report the target."""
    outcome = _advertisement(remote, tick)
    return _moved(remote, outcome) if outcome.status and 300 <= outcome.status < 400 else git_errors.moved("")


def _advertisement(remote: git.Remote, tick: git.Tick | None) -> Outcome:
    """Return the host's answer to the request with which git begins."""
    address = f"{remote.url.removesuffix('/')}/info/refs?service=git-upload-pack"
    with new_client(max_connections=1) as client:
        return client.request(Request("GET", address, tuple(_authorization(remote))), tick)


def _ls_remote(remote: git.Remote, ref: str, tick: git.Tick | None) -> Head:
    """Return HEAD or the branch or tag `ref` from `git ls-remote`, for servers that do not support protocol v2."""
    names = full_names(ref)
    wanted = [HEAD, *names, *(f"{name}^{{}}" for name in names)] if ref else [HEAD]
    output = _run_ls_remote(remote, ["--symref", "--", remote.url, *wanted], tick)
    commits = {name: commit for commit, name in re.findall(rf"(?m)^({OBJECT_NAME.pattern.decode()})\t(\S+)$", output)}
    if not ref and HEAD in commits:
        branch = re.search(r"^ref: (\S+)\tHEAD$", output, re.MULTILINE)
        return Head(commits[HEAD], protocol.branch_of(branch[1] if branch else ""))
    heads = {
        name: Head(commits.get(f"{name}^{{}}", commits[name]), protocol.branch_of(name), name)
        for name in names
        if name in commits
    }
    has_refs = bool(commits) or (bool(ref) and not heads and _has_refs(remote, tick))
    if not has_refs:
        _require_advertisement(remote, tick)
    return protocol.preferred(heads, ref, has_refs=has_refs)


def _require_advertisement(remote: git.Remote, tick: git.Tick | None) -> None:
    """Raise `GitError` unless the host answers as a git server.

    git falls back to its old protocol for any other answer, and takes a page without a line break for the list of a
    repository without refs.
    """
    outcome = _advertisement(remote, tick)
    require_answer(remote, outcome)
    content_type = outcome.headers.get("content-type", "")
    if content_type != "application/x-git-upload-pack-advertisement":
        detail = f"the host sent {content_type or 'a page'} instead of refs"
        raise git_errors.explain(Cause.OTHER, detail, token=remote.token)


def _has_refs(remote: git.Remote, tick: git.Tick | None) -> bool:
    try:
        return bool(_run_ls_remote(remote, ["--", remote.url], tick))
    except GitError as error:
        if error.cause is Cause.TOO_LARGE:  # more than can be listed
            return True
        raise


def _run_ls_remote(remote: git.Remote, arguments: Sequence[str], tick: git.Tick | None) -> str:
    try:
        output = git.run(["ls-remote", *arguments], remote=remote, timeout=60.0, tick=tick)
    except RepositoryMoved:
        raise redirect_error(remote, tick) from None
    except GitError as error:
        error.no_connection = False  # the host has just answered, so it is not down
        raise
    return output.decode("utf-8", "replace")
