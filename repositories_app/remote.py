"""The far side: which URLs may be watched, and where a repository's HEAD stands.

A check is one `ls-refs` request of protocol v2, sent at once without asking for capabilities first; hundreds are under
way together on pooled connections. A server that does not speak v2 is asked by git itself.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from django.conf import settings

from docora import http
from docora.http.client import Cause as HttpCause
from docora.http.client import HttpClient, Outcome, Request
from repositories_app import git
from repositories_app.exceptions import Cause, GitError, InvalidUrl

CASE_INSENSITIVE_HOSTS = {"github.com"}
_SEGMENT = re.compile(r"(?!-)[A-Za-z0-9._-]{1,200}")
_MAX_ANSWER = 65536  # bytes
CONCURRENCY = 200


@dataclass(frozen=True, slots=True)
class RepositoryUrl:
    """`canonical` identifies the repository; `spelled` is what the app wrote, and what is fetched from."""

    spelled: str
    canonical: str
    owner: str
    name: str


@dataclass(frozen=True, slots=True)
class Head:
    """The commit that HEAD names, and the branch behind it (empty when HEAD is detached)."""

    commit: str
    branch: str


def parse_url(url: str) -> RepositoryUrl:
    """`https://<allowed host>/owner/name`, with an optional `.git` and trailing slash; `InvalidUrl` in words."""
    url = url.strip()
    schemes = ("https", "http") if settings.ALLOW_HTTP else ("https",)
    form = "https://<host>/owner/name"
    if len(url) > 2048 or not url.isprintable() or " " in url:
        raise InvalidUrl(f"The repository URL must look like {form}.")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise InvalidUrl(f"The repository URL must look like {form}.") from None
    if parts.scheme not in schemes or not host:
        raise InvalidUrl(f"The repository URL must look like {form}; only {' and '.join(schemes)} are accepted.")
    if parts.username is not None or parts.password is not None:
        raise InvalidUrl("The repository URL must not contain credentials; give the token separately.")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise InvalidUrl(f"The repository URL must end with the repository's name: {form}.")
    _require_allowed_host(host, port)
    segments = parts.path.removesuffix("/").removeprefix("/").split("/")
    if len(segments) != 2:
        raise InvalidUrl(f"The repository URL must name an owner and a repository: {form}.")
    owner, name = segments[0], segments[1].removesuffix(".git")
    if not all(_SEGMENT.fullmatch(part) and part.strip(".") for part in (owner, name)):
        raise InvalidUrl("Owner and name may hold letters, digits, dots, dashes and underscores.")
    default_port = {"https": 443, "http": 80}[parts.scheme]
    place = host if port in {None, default_port} else f"{host}:{port}"
    path = f"{owner}/{name}"
    if host in CASE_INSENSITIVE_HOSTS:
        path = path.lower()
    return RepositoryUrl(url.removesuffix("/"), f"{parts.scheme}://{place}/{path}", owner, name)


def _require_allowed_host(host: str, port: int | None) -> None:
    allowed = {entry.lower() for entry in settings.ALLOWED_GIT_HOSTS}
    if host not in allowed and f"{host}:{port}" not in allowed:
        raise InvalidUrl(
            f"Repositories on {host} may not be watched here. Allowed: {', '.join(sorted(allowed))}. "
            "An administrator can add the host to ALLOWED_GIT_HOSTS."
        )


def new_client(max_connections: int = CONCURRENCY) -> HttpClient:
    """The outbound client as this installation's rules want it."""
    return HttpClient(
        allowed_networks=settings.ALLOWED_PRIVATE_NETWORKS,
        allow_http=settings.ALLOW_HTTP,
        user_agent=http.user_agent(),
        max_connections=max_connections,
    )


def _packet(line: str) -> bytes:
    data = line.encode()
    return b"%04x%s" % (len(data) + 4, data)


_LS_REFS = (
    b"".join(map(_packet, ["command=ls-refs\n", "agent=docora\n", "object-format=sha1"]))
    + b"0001"
    + b"".join(map(_packet, ["symrefs\n", "ref-prefix HEAD\n"]))
    + b"0000"
)


def _request(url: str, token: str, context: object) -> Request:
    headers = (
        "Content-Type: application/x-git-upload-pack-request",
        "Accept: application/x-git-upload-pack-result",
        "Git-Protocol: version=2",
        *([git.basic_authorization(token)] if token else []),
    )
    return Request(
        "POST", f"{url}/git-upload-pack", headers, _LS_REFS, max_body=_MAX_ANSWER, repeatable=True, context=context
    )


def ls_heads[Key](
    client: HttpClient, questions: Iterable[tuple[Key, str, str]], tick: git.Tick
) -> Iterator[tuple[Key, Head | GitError]]:
    """HEAD of each `(key, url, token)`, in the order of arrival; an error is an answer too. `tick` is called all the
    while, about every second at least."""
    waiting = iter(questions)
    exhausted = False
    while True:
        while not exhausted and client.in_flight < CONCURRENCY:
            question = next(waiting, None)
            if question is None:
                exhausted = True
            else:
                client.submit(_request(question[1], question[2], question))
        if exhausted and client.in_flight == 0:
            return
        tick()
        for request, outcome in client.poll(1.0):
            asked: tuple[Key, str, str] = request.context  # type: ignore[assignment]
            yield asked[0], _head_or_error(asked[1], asked[2], outcome)


def ls_head(client: HttpClient, url: str, token: str = "", tick: git.Tick | None = None) -> Head:
    """HEAD of one repository; raises the `GitError`."""
    return _head(url, token, wait_for(client, _request(url, token, None), tick))


def wait_for(client: HttpClient, request: Request, tick: git.Tick | None) -> Outcome:
    """The outcome of one request on an idle client; `tick` is called about every second until it is there."""
    client.submit(request)
    try:
        while not (finished := client.poll(1.0)):
            if tick:
                tick()
    except BaseException:
        client.abort()
        raise
    return finished[0][1]


def _head_or_error(url: str, token: str, outcome: Outcome) -> Head | GitError:
    try:
        return _head(url, token, outcome)
    except GitError as error:
        return error


def _head(url: str, token: str, outcome: Outcome) -> Head:
    with_token = bool(token)
    if outcome.cause is not None:
        cause = Cause.TIMEOUT if outcome.cause is HttpCause.TIMEOUT else Cause.NETWORK
        raise git.explain(cause, outcome.message, with_token=with_token)
    status = outcome.status or 0
    if status in {401, 403}:
        raise git.explain(Cause.AUTH, "", with_token=with_token)
    if status == 404:
        raise git.explain(Cause.NOT_FOUND, "", with_token=with_token)
    if 300 <= status < 400:
        raise git.classify(b"redirect", with_token=with_token)
    if status == 429 or status >= 500:
        raise git.explain(Cause.NETWORK, f"the host answers {status}", with_token=with_token)
    head = parse_ls_refs(outcome.body) if outcome.ok else None
    return head or _ls_remote(url, token)


def parse_ls_refs(answer: bytes) -> Head | None:
    """HEAD from the packets of an `ls-refs` answer; None when these are not such packets.

    A repository without commits answers with no ref at all, and is an error in words: nothing must be deleted at a
    client because a host lost a branch.
    """
    position = 0
    while position + 4 <= len(answer):
        try:
            length = int(answer[position : position + 4], 16)
        except ValueError:
            return None
        if length == 0:
            raise _no_commit()
        line = answer[position + 4 : position + length].rstrip(b"\n").split(b" ")
        if length > 4 and len(line) >= 2 and line[1] == b"HEAD" and re.fullmatch(rb"[0-9a-f]{40,64}", line[0]):
            targets = [part.removeprefix(b"symref-target:") for part in line[2:] if part.startswith(b"symref-target:")]
            return Head(line[0].decode("ascii"), _branch(targets[0].decode("utf-8", "replace") if targets else ""))
        position += max(length, 4)
    return None


def _branch(ref: str) -> str:
    return ref.removeprefix("refs/heads/")[:255]


def _no_commit() -> GitError:
    return GitError(
        Cause.NOT_FOUND,
        "The repository has no commit on its default branch yet; it is synced after the first push.",
        permanent=True,
    )


def _ls_remote(url: str, token: str) -> Head:
    """The same from `git ls-remote`, for servers that do not speak protocol v2."""
    output = git.run(["ls-remote", "--symref", "--", url, "HEAD"], token=token, timeout=60.0).decode("utf-8", "replace")
    commit = re.search(r"^([0-9a-f]{40,64})\tHEAD$", output, re.MULTILINE)
    if commit is None:
        raise _no_commit()
    branch = re.search(r"^ref: (\S+)\tHEAD$", output, re.MULTILINE)
    return Head(commit[1], _branch(branch[1] if branch else ""))
