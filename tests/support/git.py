"""Real git repositories on a real git server. One line creates or changes a repository."""

import base64
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from deliveries_app.demo import git_server
from deliveries_app.demo.repositories import git, git_environment
from repositories_app.mirror.mirror import Mirror
from tests.support.repositories import Changes, Entry, commit, init

__all__ = [
    "Changes",
    "Entry",
    "GitFixture",
    "GitServer",
    "Repo",
    "Request",
    "Takeover",
    "git",
    "git_environment",
    "has_commit",
]

Takeover = Callable[[socket.socket], None]
"""Write a complete HTTP response to the connection, which is then closed."""

# git would start another process to turn the pack of a small commit into loose objects.
_CONFIG = "[fastimport]\n\tunpackLimit = 0\n"


@dataclass(slots=True)
class Request:
    """The log entry for one request. `status` is 0 until it is answered, and after a takeover."""

    method: str
    target: str
    git_protocol: str
    token: str
    status: int = 0
    user: str = ""


class Handler(git_server.Handler):
    _request: Request | None = None

    def handle_git(self, body: IO[bytes] | None) -> None:
        user, token = self._credentials()
        request = Request(self.command, self.path, self.headers.get("Git-Protocol", ""), token, user=user)
        self._request = request
        decision = self.server.owner.decide(request)
        if callable(decision):
            self.close_connection = True
            decision(self.connection)
        elif decision is not None:
            self.answer(decision)
        else:
            if not self.server.owner.speaks_v2:
                del self.headers["Git-Protocol"]
            super().handle_git(body)

    def _credentials(self) -> tuple[str, str]:
        """Return the user name and the token of HTTP Basic, or two empty strings."""
        scheme, _, encoded = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return "", ""
        try:
            user, _, token = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return "", ""
        return user, token

    def send_response(self, code: int, message: str | None = None) -> None:
        request, self._request = self._request, None
        if request:
            request.status = code
        super().send_response(code, message)
        if code == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="git"')


class GitServer(git_server.GitServer):
    """The demo's git server, with private repositories, a log, and a hook.

    - `tokens` makes repositories private: `owner/name` → the tokens that give access, sent as the password of HTTP
      Basic with any user name. The mapping is read for each request.
    - `on_request(method, target)` is called first, in the thread of the connection. It may block. It returns an error
      status, a `Takeover`, or None to continue as usual.
    - `speaks_v2`: without it, git answers in the old protocol, v0, whatever is requested.
    """

    handler: type[git_server.Handler] = Handler

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tokens: Mapping[str, AbstractSet[str]] | None = None,
    ) -> None:
        super().__init__(directory, host=host, port=port)
        self.tokens: Mapping[str, AbstractSet[str]] = {} if tokens is None else tokens
        self.on_request: Callable[[str, str], int | Takeover | None] | None = None
        self.speaks_v2 = True
        self._log: deque[Request] = deque(maxlen=10_000)

    @property
    def requests(self) -> list[Request]:
        """The last 10,000 requests, oldest first."""
        return list(self._log)

    def decide(self, request: Request) -> int | Takeover | None:
        """Log a request and return how to answer it. With None, git answers."""
        self._log.append(request)
        reply = self.on_request(request.method, request.target) if self.on_request else None
        target = git_server.TARGET.fullmatch(request.target)
        if reply is not None or target is None:
            return reply
        tokens = self.tokens.get(git_server.name_of(target))
        return None if tokens is None or request.token in tokens else 401


@cache
def _new_repository(object_format: str) -> dict[Path, bytes | None]:
    """Return path → content of what `git init` creates, None for a folder. Writing it again is faster than `git init`."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "new.git")
        init(path, "BRANCH", object_format)
        with (path / "config").open("a") as config:
            config.write(_CONFIG)
        made = sorted(path.rglob("*"))
        return {one.relative_to(path): one.read_bytes() if one.is_file() else None for one in made}


def _init(path: Path, branch: str, object_format: str) -> None:
    path.mkdir(parents=True)
    for name, content in _new_repository(object_format).items():
        if content is None:
            (path / name).mkdir()
        else:
            (path / name).write_bytes(content.replace(b"BRANCH", branch.encode()))


@dataclass(frozen=True)
class Repo:
    """One bare repository: `path` on disk, `url` on the server, `name` as `owner/name`."""

    name: str
    path: Path
    server: GitServer

    @property
    def url(self) -> str:
        return f"{self.server.url}/{self.name}"

    @property
    def head(self) -> str:
        """The commit id of HEAD. Without a commit, reading it raises CalledProcessError."""
        file = self.path / "refs" / "heads" / self.branch
        return file.read_text().strip() if file.exists() else self.commit_of("HEAD")

    @property
    def branch(self) -> str:
        return (self.path / "HEAD").read_text().strip().removeprefix("ref: refs/heads/")

    def commit(self, changes: Changes, message: str = "Change", branch: str | None = None) -> str:
        """Add a commit (path → content, None deletes) and return its id."""
        return commit(self.path, changes, message, branch or self.branch)

    def force_push(self, files: Changes, message: str = "Rewritten", branch: str | None = None) -> str:
        """Replace the whole history by one commit that holds exactly `files`, and return its id."""
        return commit(self.path, files, message, branch or self.branch, replace=True)

    def commit_of(self, revision: str) -> str:
        """Return the id of the commit that a branch or tag points to. Without one, raise CalledProcessError."""
        return git(self.path, "rev-parse", "--verify", f"{revision}^{{commit}}").decode().strip()

    def tag(self, name: str, target: str = "HEAD", *, annotated: bool = False) -> None:
        """Create or move a tag."""
        options = ["--annotate", "--message", name] if annotated else []
        who = ("-c", "user.name=Docora", "-c", "user.email=docora@example")
        git(self.path, *who, "tag", "--force", *options, name, target)

    def delete_ref(self, name: str) -> None:
        """Delete a branch or tag by its full name."""
        git(self.path, "update-ref", "-d", name)

    def rename_branch(self, name: str) -> None:
        """Give the default branch another name; HEAD follows."""
        git(self.path, "branch", "--move", self.branch, name)

    def files(self, revision: str = "HEAD") -> dict[str, bytes]:
        """Return path → content of every regular file: what a client should hold. No links, no submodules."""
        blobs = {}
        for line in git(self.path, "ls-tree", "-r", "-z", revision).split(b"\0")[:-1]:
            (mode, _, blob), path = line.split(b"\t", 1)[0].split(), line.split(b"\t", 1)[1]
            if mode in (b"100644", b"100755"):
                blobs[path.decode(errors="surrogateescape")] = blob
        return dict(zip(blobs, self._contents(blobs.values()), strict=True))

    def _contents(self, blobs) -> Iterator[bytes]:
        output = git(self.path, "cat-file", "--batch", stdin=(blob + b"\n" for blob in blobs))
        position = 0
        while position < len(output):
            end = output.index(b"\n", position)
            size = int(output[position:end].rpartition(b" ")[2])
            yield output[end + 1 : end + 1 + size]
            position = end + 1 + size + 1


class GitFixture(AbstractContextManager):
    """A git server on a free port, with the repositories that a test creates.

    `server.on_request` may be set at any time. `server.requests` lists what was requested.
    """

    def __init__(self, directory: Path, host: str = "127.0.0.1") -> None:
        self.directory = directory
        self.tokens: dict[str, set[str]] = {}
        self.server = GitServer(directory, host=host, tokens=self.tokens)
        self.server.start()

    @property
    def url(self) -> str:
        return self.server.url

    def __exit__(self, *_: object) -> None:
        self.server.stop()

    def repo(
        self,
        name: str = "acme/widgets",
        files: Mapping[str, bytes | Entry] | None = None,
        branch: str = "main",
        token: str | None = None,
        object_format: str = "sha1",
    ) -> Repo:
        """Create a repository. With `files` None it has no commit; with a `token` it is private."""
        repo = Repo(name, self.directory / f"{name}.git", self.server)
        _init(repo.path, branch, object_format)
        if files is not None:
            commit(repo.path, files, "Start", branch, replace=True)  # without looking for a parent
        if token is not None:
            self.tokens[name] = {token}
        return repo

    def make_large(self, name: str = "acme/big", *, count: int = 10_000, size: int = 4096) -> Repo:
        """Create a repository of `count` different text files of `size` bytes each, a hundred to a folder."""
        line = b"All work and no play makes a dull file.\n" * (size // 40 + 1)
        return self.repo(
            name,
            {f"folder-{n // 100:04}/file-{n:06}.txt": (b"%d\n%b" % (n, line))[:size] for n in range(count)},
        )

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a git client, for example `run("clone", repo.url, "there")`."""
        return subprocess.run(
            ["git", *arguments], cwd=self.directory, env=git_environment(), capture_output=True, check=check, timeout=60
        )


def has_commit(mirror: Mirror, commit: str) -> bool:
    """Return whether the mirror exists and has the commit and its tree."""
    if not (mirror.directory / "HEAD").exists():
        return False
    with mirror.blobs() as reader:
        return reader.has(commit)
