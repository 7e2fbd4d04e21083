"""Ask git hosts where a repository's HEAD is, and interpret their answers.

A check is one `ls-refs` request of protocol v2, without asking for capabilities first. Hundreds run at once on pooled
connections. For a server that does not support v2, git asks instead.
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urljoin

from django.conf import settings

from docora import http
from docora.backoff import MAX_WAIT_SECONDS
from docora.http.client import HttpClient, Outcome, Request
from docora.text import clean_text
from repositories_app.git import errors as git_errors
from repositories_app.git import process as git
from repositories_app.git.exceptions import Cause, GitError, NoCommit, RepositoryMoved
from repositories_app.git.url import RepositoryUrl, parse_url

__all__ = ["Head", "RepositoryUrl", "ls_head", "ls_heads", "new_client", "parse_url", "wait_for", "where_to"]

_MAX_ANSWER = 65536  # bytes
CONCURRENCY = 200
_COMMIT = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?")
SHA1, SHA256 = "sha1", "sha256"


@dataclass(frozen=True, slots=True)
class Head:
    """The commit that HEAD names, and the branch behind it (empty when HEAD is detached)."""

    commit: str
    branch: str


def new_client(max_connections: int = CONCURRENCY) -> HttpClient:
    """Return an outbound client with this installation's rules."""
    return HttpClient(
        allowed_networks=settings.ALLOWED_PRIVATE_NETWORKS,
        allow_http=settings.ALLOW_HTTP,
        user_agent=http.user_agent(),
        max_connections=max_connections,
    )


def _packet(line: str) -> bytes:
    data = line.encode()
    return b"%04x%s" % (len(data) + 4, data)


def object_format(commit: str) -> str:
    """Return the object format of a repository with this commit. Without a commit, return the usual one."""
    return SHA256 if len(commit) == 64 else SHA1


def command(name: str, arguments: Sequence[str], object_format: str) -> bytes:
    """Return the body of a request of protocol v2."""
    head = b"".join(map(_packet, [f"command={name}\n", "agent=docora\n", f"object-format={object_format}"]))
    return head + b"0001" + b"".join(_packet(f"{argument}\n") for argument in arguments) + b"0000"


_LS_REFS = {name: command("ls-refs", ["symrefs", "ref-prefix HEAD"], name) for name in (SHA1, SHA256)}


def _authorization(url: str, token: str) -> list[str]:
    return [git_errors.basic_authorization(url, token)] if token else []


def upload_pack_request(
    url: str, token: str, body: bytes, *, max_body: int = _MAX_ANSWER, timeout: float = 30.0, context: object = None
) -> Request:
    """Return a request of protocol v2. It changes nothing at the host, so it may be repeated."""
    headers = (
        "Content-Type: application/x-git-upload-pack-request",
        "Accept: application/x-git-upload-pack-result",
        "Git-Protocol: version=2",
        *_authorization(url, token),
    )
    return Request(
        "POST",
        f"{url}/git-upload-pack",
        headers,
        body,
        timeout=timeout,
        max_body=max_body,
        repeatable=True,
        context=context,
    )


@dataclass(slots=True)
class Question[Key]:
    """Asks for a repository's HEAD. `commit` is one that it had, if any: its length tells the object format.

    A host sends an empty answer to a question in the wrong format. It is then asked again in the other one.
    """

    key: Key
    url: str
    token: str = ""
    commit: str = ""
    asked: int = 0

    def request(self) -> Request:
        """Return the next request."""
        first = object_format(self.commit)
        name = first if self.asked == 0 else SHA1 if first == SHA256 else SHA256
        self.asked += 1
        return upload_pack_request(self.url, self.token, _LS_REFS[name], context=self)

    def is_other_format(self, outcome: Outcome) -> bool:
        return self.asked == 1 and outcome.ok and not outcome.body


def ls_heads[Key](
    client: HttpClient, questions: Iterable[Question[Key]], tick: git.Tick
) -> Iterator[tuple[Key, Head | GitError]]:
    """Yield the key and the HEAD or error of each question, in the order of the answers. Call `tick` at least about every
    second."""
    waiting = iter(questions)
    exhausted = False
    while True:
        while not exhausted and client.in_flight < CONCURRENCY:
            question = next(waiting, None)
            if question is None:
                exhausted = True
            else:
                client.submit(question.request())
        if exhausted and client.in_flight == 0:
            return
        tick()
        for request, outcome in client.poll(1.0):
            asked: Question[Key] = request.context  # type: ignore[assignment]
            if asked.is_other_format(outcome):
                client.submit(asked.request())
            else:
                yield asked.key, _head_or_error(asked.url, asked.token, outcome, tick)


def ls_head(client: HttpClient, url: str, token: str = "", tick: git.Tick | None = None, *, commit: str = "") -> Head:
    """Return the HEAD of one repository. `commit` is one that it had, if any. Raises `GitError`."""
    question = Question(None, url, token, commit)
    outcome = wait_for(client, question.request(), tick)
    if question.is_other_format(outcome):
        outcome = wait_for(client, question.request(), tick)
    return _head(url, token, outcome, tick)


def wait_for(client: HttpClient, request: Request, tick: git.Tick | None) -> Outcome:
    """Send one request on an idle client and return its outcome. Call `tick` about every second meanwhile."""
    client.submit(request)
    try:
        while not (finished := client.poll(1.0)):
            if tick:
                tick()
    except BaseException:
        client.abort()
        raise
    return finished[0][1]


def _head_or_error(url: str, token: str, outcome: Outcome, tick: git.Tick) -> Head | GitError:
    try:
        return _head(url, token, outcome, tick)
    except GitError as error:
        return error


def _head(url: str, token: str, outcome: Outcome, tick: git.Tick | None) -> Head:
    if outcome.cause is not None:
        raise git_errors.unreachable(outcome.cause, outcome.message, token=token, reached=outcome.reached)
    error = refusal(url, token, outcome)
    if error is not None:
        raise error
    head = parse_ls_refs(outcome.body) if outcome.ok else None
    return head or _ls_remote(url, token, tick)


def refusal(url: str, token: str, outcome: Outcome) -> GitError | None:
    """Return what an answer other than 2xx means; None if it only means that the host does not speak protocol v2."""
    status = outcome.status or 0
    if is_rate_limit(outcome):
        return git_errors.rate_limited(outcome.retry_after(time.time()), token=token)
    if status == 403:
        needs_sso = b"SAML" in outcome.body or b"SSO" in outcome.body
        sso = "it isn't authorised for the organisation's single sign-on"
        return git_errors.explain(Cause.AUTH, sso if needs_sso else git_errors.FORBIDDEN, token=token)
    if status == 401:
        return git_errors.explain(Cause.AUTH, token=token)
    if status in {404, 410}:
        return git_errors.explain(Cause.NOT_FOUND, token=token)
    if 300 <= status < 400:
        return _moved(url, token, outcome)
    if status >= 500:
        error = git_errors.temporary(Cause.NETWORK, f"The git host returned HTTP {status}.")
        error.cooldown = min(outcome.retry_after(time.time()) or 0.0, MAX_WAIT_SECONDS)
        return error
    return None


def is_rate_limit(outcome: Outcome) -> bool:
    """Return whether the host refuses because of a rate limit. GitHub also does so with a 403."""
    says_so = "retry-after" in outcome.headers or outcome.headers.get("x-ratelimit-remaining") == "0"
    return outcome.status == 429 or (outcome.status == 403 and says_so)


def _moved(url: str, token: str, outcome: Outcome) -> RepositoryMoved:
    """Return the error for a redirect, which is not followed. It names the target if that may be watched."""
    try:
        target = urljoin(f"{url}/", outcome.headers.get("location", "")).partition("?")[0].partition("#")[0]
        repository = re.sub(r"/(info/refs|git-upload-pack)$", "", target)
        parsed = parse_url(repository)
    except ValueError:  # `InvalidUrl` is one
        return git_errors.moved("")
    if repository == target and "/" in parsed.owner:  # rather a page such as /users/sign_in/now
        return git_errors.moved("")
    address = parsed.spelled
    return git_errors.moved(address if address != url and git_errors.scrub(address, token) == address else "")


def where_to(url: str, token: str, tick: git.Tick | None) -> RepositoryMoved:
    """Ask again after git met a redirect, because git does not say where it leads. Return the error to raise."""
    request = Request("GET", f"{url}/info/refs?service=git-upload-pack", tuple(_authorization(url, token)))
    with new_client(max_connections=1) as client:
        outcome = wait_for(client, request, tick)
    return _moved(url, token, outcome) if outcome.status and 300 <= outcome.status < 400 else git_errors.moved("")


def parse_ls_refs(answer: bytes) -> Head | None:
    """Return HEAD from the packets of an `ls-refs` answer, or None if these are not such packets.

    Raises `NoCommit` if there is no ref, as in a repository without commits. Nothing must be deleted at a client because a
    host lost a branch.
    """
    position = 0
    while position + 4 <= len(answer):
        try:
            length = int(answer[position : position + 4], 16)
        except ValueError:
            return None
        if length == 0:
            raise NoCommit
        line = answer[position + 4 : position + length].rstrip(b"\n").split(b" ")
        if length > 4 and len(line) >= 2 and line[1] == b"HEAD" and _COMMIT.fullmatch(line[0]):
            targets = [part.removeprefix(b"symref-target:") for part in line[2:] if part.startswith(b"symref-target:")]
            return Head(line[0].decode("ascii"), _branch(targets[0].decode("utf-8", "replace") if targets else ""))
        position += max(length, 4)
    return None


def _branch(ref: str) -> str:
    return clean_text(ref.removeprefix("refs/heads/"), 255)


def _ls_remote(url: str, token: str, tick: git.Tick | None) -> Head:
    """Return HEAD from `git ls-remote`, for servers that do not support protocol v2."""
    arguments = ["ls-remote", "--symref", "--", url, "HEAD"]
    try:
        output = git.run(arguments, remote=git.Remote(url, token), timeout=60.0, tick=tick).decode("utf-8", "replace")
    except RepositoryMoved:
        raise where_to(url, token, tick) from None
    commit = re.search(rf"^({_COMMIT.pattern.decode()})\tHEAD$", output, re.MULTILINE)
    if commit is None:
        raise NoCommit
    branch = re.search(r"^ref: (\S+)\tHEAD$", output, re.MULTILINE)
    return Head(commit[1], _branch(branch[1] if branch else ""))
