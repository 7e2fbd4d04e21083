"""Turn failures of git, git hosts and the HTTP client into a `GitError` whose message says what to do.

All foreign text passes through `scrub` and `clean_text`, so no message contains the token, even if a host repeats it. Only
git's own text decides the cause: a host that writes "corrupt" must not cause the mirror to be rebuilt, and a repository may
be called `acme/timeout`.
"""

import base64
import re
import signal
from urllib.parse import urlsplit

from django.conf import settings

from docora.backoff import MAX_WAIT_SECONDS
from docora.http.client import Cause as HttpCause
from docora.http.egress import CHECK_PROXY, THROUGH_PROXY
from docora.security.redaction import pattern_of
from docora.text import clean_text, format_bytes, format_seconds, one_line
from repositories_app.git.exceptions import (
    AddressNotAllowed,
    Cause,
    GitError,
    RateLimited,
    RepositoryMoved,
    TokenRequired,
)
from repositories_app.git.refs import describe

DEFAULT_COOLDOWN = 60.0  # seconds, if a host says "too many requests" but not for how long
FORBIDDEN = "it isn't allowed to read this repository"
# Most hosts ignore the user name that comes with a token: GitHub (Enterprise too), Gitea, Forgejo and Azure DevOps accept
# any, and so does GitLab for access tokens. The default therefore works with most self-hosted servers. Other tokens need a
# specific user name and are entered as `user:token`: Bitbucket's API tokens and app passwords, GitLab's deploy tokens, and
# tokens of Bitbucket Data Center.
DEFAULT_USER = "x-access-token"
_USERS = {
    "gitlab.com": "oauth2",  # needed for OAuth tokens
    "bitbucket.org": "x-token-auth",  # for access tokens of a repository, project or workspace
}
CHECK_CERTIFICATE = "Check the host's certificate and this server's certificate authorities (ca-certificates)."
_CHECK_NETWORK = "Check the URL and this server's network."
_MESSAGE = 300  # characters of foreign text in a message
_DAMAGED = "The mirror is damaged and will be rebuilt"
_MOVED_TO = "The repository was renamed or moved to ", ". Watch that URL instead."
_MOVED = re.compile(r"returned error: 30[12378]\b|update url base from redirection")
_RATE_LIMITED = re.compile(r"returned error: 429\b")
_NO_SHALLOW = re.compile(r"does not support shallow")
_FILE_LIMIT = re.compile(r"file too large", re.IGNORECASE)
_FULL_DISK = re.compile(r"no space left|quota", re.IGNORECASE)
_NO_CONNECTION = re.compile(r"could not resolve host|failed to connect|couldn't connect to server", re.IGNORECASE)
_BAD_CERTIFICATE = re.compile(r"certificate problem|certificate subject|verification failed")  # OpenSSL, GnuTLS
# The first pattern that matches any line decides the cause.
_PATTERNS: list[tuple[Cause, str]] = [
    (Cause.OTHER, r"remote error: upload-pack: not our ref|unadvertised object"),  # the fetch then asks for the ref
    (Cause.AUTH, r"authentication failed|could not read (username|password)|error: (401|403)|terminal prompts disabled"),
    (Cause.NOT_FOUND, r"repository '' not found|error: (404|410)|couldn't find remote ref"),
    (Cause.TOO_LARGE, r"no space left|disk quota exceeded|exceeds maximum|exceeded maximum|file too large|over limit"
     r"|out of memory"),
    (Cause.CORRUPT, r"loose object|bad object|corrupt|unable to read (tree|sha1)|missing blob|did not match any|bad tree"
     r"|not a git repository|not a tree object|not a valid object|invalid object|could not parse|unable to parse"
     r"|packfile \S+ |index file \S+ is |differ in contents|not a valid (sha1|object name)|needed a single revision"
     r"|nonexistent object|unable to resolve reference|reference broken|bad ref|packed-refs|unterminated line"
     r"|bad config|unresolved delta|all necessary objects|(malformed mode|empty filename) in tree|too-short tree"
     r"|truncated in tree|could not read [0-9a-f]{40}|unable to find [0-9a-f]{40}|bad signature|failed to read object"
     r"|not a commit|missing (tree|commit|object)|unable to (open|read) object|error reading from|bad shallow"
     r"|shallow file|existing object|unknown object type|object file \S+ is empty"
     r"|does not match index|non-monotonic index|index v2 file size|far too short|unable to unpack"),
    (Cause.TIMEOUT, r"timed out|operation too slow|timeout"),
    (Cause.NETWORK, r"could not resolve|couldn't connect|connection (refused|reset)|failed to connect|unable to access"
     r"|remote end hung up|early eof|ssl|rpc failed|empty reply|recv failure|send failure|index-pack output"
     r"|index-pack failed|protocol error|expected flush|unexpected disconnect|bad (line length|band)|bad pack"),
]  # fmt: skip
_COMPILED = [(cause, re.compile(pattern, re.IGNORECASE)) for cause, pattern in _PATTERNS]


def basic_authorization(url: str, token: str) -> str:
    """Return the header with which the host of `url` accepts the token: HTTP Basic with the right user name.

    A token `user:token` has its own user name.
    """
    user, colon, password = token.partition(":")
    if not colon:
        user, password = _USERS.get(urlsplit(url).hostname or "", DEFAULT_USER), token
    return "Authorization: Basic " + _basic(user, password)


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


def scrub(text: str, token: str) -> str:
    """Return foreign text without the token in any form of `pattern_of`, and without other credentials in URLs."""
    if token:
        secrets = [token, token.partition(":")[2], *(_basic(user, token) for user in {DEFAULT_USER, *_USERS.values()})]
        text = pattern_of(*filter(None, secrets)).sub("…", text)
    return re.sub(r"://[^/@\s]*@", "://", text)


def quoted(text: str | bytes, token: str, limit: int = _MESSAGE) -> str:
    """Return foreign text for a message, on one line and without a full stop.

    The text is scrubbed before it is shortened, because half a token would not be recognised.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return one_line(scrub(text[:100_000], token), limit).rstrip(".")


def classify(stderr: bytes, *, token: str = "", ended: int = 1, local: bool = False) -> GitError:
    """Return the error that git's stderr describes.

    `ended` is the exit status. For signal n it is -n, as in `subprocess`, or 128 + n, as in a shell. `local`: the command
    only read the mirror, so an unknown message means that the mirror is damaged.
    """
    text = scrub(clean_text(stderr, 20_000), token)
    lines = [line for line in text.splitlines() if line.startswith(("fatal:", "error:"))]
    own = [re.sub(r"'[^']*'|(?<=remote error: )(?!upload-pack: not our ref).*", "''", line) for line in lines]
    if any(map(_MOVED.search, own)):
        return moved("")
    if any(map(_RATE_LIMITED.search, own)):
        return rate_limited(None, token=token)
    if any(map(_NO_SHALLOW.search, own)):
        text = (
            "The git host can't send a commit without its history, which Docora needs: git clone --depth=1 fails too."
        )
        remedy = "Update the host's git server, or watch a copy of the repository on another host."
        return GitError(Cause.OTHER, f"{text} {remedy}", permanent=True, for_every_watcher=True)
    for cause, pattern in _COMPILED:
        for line, own_text in zip(lines, own, strict=True):
            if pattern.search(own_text):
                error = explain(cause, _detail(cause, line, text), token=token)
                error.no_connection = _NO_CONNECTION.search(own_text) is not None
                return error
    message = re.sub(r"(?m)^(fatal|error): ", "", "\n".join(lines) or text)
    if local and message and ended > 0:
        return explain(Cause.CORRUPT, message)
    number = -ended if ended < 0 else ended - 128
    if number == signal.SIGXCPU:
        text = "git took too much processor time to read the repository. Repack it on the git host with `git gc`, or split it."
        return temporary(Cause.TOO_LARGE, text)
    fallback = f"it was killed by signal {number}" if number > 0 else "it gave no error message"
    return explain(Cause.OTHER, message or fallback, token=token)


def _detail(cause: Cause, line: str, text: str) -> str:
    if cause is Cause.AUTH:  # git's message is about user names and prompts, which do not apply here
        return FORBIDDEN if "error: 403" in line else ""
    line = re.sub(r"^(fatal|error): ", "", line)
    remote_lines = re.findall(r"(?m)^remote:[ \t]*(\S.*)", text) if cause in {Cause.NETWORK, Cause.OTHER} else []
    return f"{line} (host message: {clean_text(remote_lines[-1], 150)})" if remote_lines else line


def explain(cause: Cause, detail: str = "", *, token: str = "") -> GitError:
    """Return the `GitError` for a cause. `detail` may be foreign text."""
    detail = quoted(detail, token)
    if cause is Cause.AUTH and token:
        reason = detail or "it is invalid, expired or revoked"
        text = f"The git host rejected the token: {reason}. Use a token that can read the repository."
        return GitError(cause, text, permanent=True)
    if cause in {Cause.AUTH, Cause.NOT_FOUND}:
        if token:
            text = "Repository not found. Check the URL, and check that the token can read the repository."
            return GitError(Cause.NOT_FOUND, text, permanent=True)
        text = "Repository not found. Check the URL. If the repository is private, add a token."
        return (TokenRequired if cause is Cause.AUTH else GitError)(Cause.NOT_FOUND, text, permanent=True)
    if cause is Cause.CORRUPT:
        return GitError(cause, f"{_DAMAGED}: {detail}.")
    if cause is Cause.TOO_LARGE:
        # A full disk is this machine's problem: clients are not notified, and a retry may succeed.
        here = _FULL_DISK.search(detail) is not None
        error = GitError(cause, _too_large_message(detail), permanent=not here, for_every_watcher=not here)
        error.is_local = here
        return error
    text = f"git couldn't read the repository: {detail}. If this continues, check that you can clone it."
    if cause is Cause.TIMEOUT:
        text = f"The git host timed out: {detail}."
    elif cause is Cause.NETWORK:
        hint = CHECK_CERTIFICATE if _BAD_CERTIFICATE.search(detail) else _CHECK_NETWORK
        text = f"Couldn't fetch from the git host: {detail}. {hint}"
    return temporary(cause, text)


def temporary(cause: Cause, text: str, *, for_every_watcher: bool = True) -> GitError:
    """Return an error that may be gone at the next attempt."""
    return GitError(cause, text, for_every_watcher=for_every_watcher, next_step="Docora retries automatically.")


def still_damaged(error: GitError) -> GitError:
    """Return the error for a mirror that is damaged although it was just rebuilt.

    The repository itself or the disk is damaged, which concerns all watches.
    """
    detail = str(error).removeprefix(f"{_DAMAGED}: ").rstrip(".")
    return GitError(
        Cause.CORRUPT,
        f"The repository is still unreadable after its mirror was rebuilt: {detail}. Check that you can clone it. If you "
        "can, check the disk that holds REPOS_DIR.",
        for_every_watcher=True,
    )


def mirror_held(seconds: float) -> GitError:
    """Return the error for a mirror whose lock another process has held for so long that it must hang."""
    return GitError(
        Cause.OTHER,
        f"Another process on this server has been using the repository's mirror for {format_seconds(seconds)}. It is frozen "
        "or hangs. Restart the workers here, and check the disk that holds REPOS_DIR.",
    )


def ref_not_served(name: str) -> GitError:
    """Return the error for a branch or tag that the host has just listed, but whose objects it does not send yet."""
    message = f"The git host lists the {describe(name)}, but doesn't serve it yet."
    return temporary(Cause.NOT_FOUND, message, for_every_watcher=False)


def not_a_commit(name: str) -> GitError:
    message = f"The {describe(name)} doesn't point to a commit, so it has no files. Choose another branch or tag."
    return GitError(Cause.NOT_FOUND, message, permanent=True)


def _too_large_message(detail: str) -> str:
    if _FILE_LIMIT.search(detail):
        return (
            f"The repository is larger than MAX_FETCH_BYTES ({format_bytes(settings.MAX_FETCH_BYTES)}). "
            "An administrator can raise the limit."
        )
    if _FULL_DISK.search(detail):
        return f"There isn't enough disk space for the repository: {detail}. Free up space in REPOS_DIR."
    return f"The repository is too large: {detail}. Shrink or split it."


def too_large(message: str) -> GitError:
    """Return the error for a repository that is over a limit. It concerns all watches until the repository or limit changes."""
    return GitError(Cause.TOO_LARGE, message, permanent=True, for_every_watcher=True)


def moved(address: str) -> RepositoryMoved:
    """Return the error for a redirect. `address` is its target if that may be watched, otherwise empty."""
    if address:
        return RepositoryMoved(address.join(_MOVED_TO))
    return RepositoryMoved(
        "The git host redirects this URL, and Docora doesn't follow redirects. If the repository was renamed or moved, "
        "watch its new URL. If it requires sign-in, add a token."
    )


def moved_to(message: str) -> str:
    """Return the address in a message of `moved`, otherwise an empty string."""
    start, end = _MOVED_TO
    return message[len(start) : -len(end)] if message.startswith(start) and message.endswith(end) else ""


def rate_limited(seconds: float | None, *, token: str) -> GitError:
    """Return the error for a rate limit.

    Hosts count requests per token, or per address without one, so the limit of one app's token must not open the circuit
    for others.
    """
    cooldown = min(DEFAULT_COOLDOWN if seconds is None else max(seconds, 1.0), MAX_WAIT_SECONDS)
    whose = "for this token" if token else "for requests without a token"
    hint = "" if token else " Adding a token usually raises the limit."
    return RateLimited(
        Cause.NETWORK,
        f"The git host's rate limit {whose} is exceeded. The host asks for a pause of {format_seconds(cooldown)}.{hint}",
        for_every_watcher=not token,
        cooldown=cooldown,
    )


def unreachable(cause: HttpCause, message: str, *, token: str = "", reached: bool = False) -> GitError:
    """Return the error for a request without a response. `reached`: the host may have received it."""
    error: GitError
    if cause is HttpCause.REFUSED_ADDRESS:
        hint = "An administrator can allow it with ALLOWED_PRIVATE_NETWORKS."
        error = AddressNotAllowed(Cause.NETWORK, f"{quoted(message, token)}. {hint}", for_every_watcher=True)
    else:
        is_timeout = cause is HttpCause.TIMEOUT
        check = CHECK_PROXY if THROUGH_PROXY in message else _CHECK_NETWORK
        hint = CHECK_CERTIFICATE if cause is HttpCause.TLS else "" if is_timeout and reached else check
        text = f"{quoted(message, token)}. {hint}".rstrip()
        error = temporary(Cause.TIMEOUT if is_timeout else Cause.NETWORK, text)
        error.no_connection = not reached
    error.no_answer = True
    return error
