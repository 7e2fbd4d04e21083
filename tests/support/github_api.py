"""GitHub on loopback: a git server, and beside it the part of GitHub's API that a GitHub App uses, at `/api/v3`.

It checks what GitHub checks: the signature and the times of the JWT, which repositories an installation has, and that a token is
not expired. Private repositories can be read with its tokens only.
"""

import base64
import json
import time
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from repositories_app import github
from repositories_app.models import GitHubApp
from tests.support.git import GitFixture, GitServer, Handler

github.load_key = cache(github.load_key)  # it checks an RSA key for 40 ms, and the tests use the same few keys
APP_ID = "123456"
Reply = tuple[int, dict[str, str], Any]


@cache
def private_key(name: str = "the app's") -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: Any = None, form: PrivateFormat = PrivateFormat.TraditionalOpenSSL, encryption: Any = None) -> str:
    """Return the key as the file that GitHub generates."""
    return (key or private_key()).private_bytes(Encoding.PEM, form, encryption or NoEncryption()).decode()


@dataclass
class Installation:
    """`repositories` are those that the app was granted on the account, as `owner/name`."""

    number: int
    account: str
    repositories: set[str]
    may_read: bool = True
    suspended: bool = False


@dataclass
class GitHub:
    """The API's state, and the log of its requests as `METHOD /path`."""

    tokens: dict[str, AbstractSet[str]]
    installations: list[Installation] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    minted: list[str] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    lifetime: float = 3600.0
    clock: float = 0.0  # seconds by which GitHub's clock is ahead
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    def install(self, account: str, *repositories: str) -> Installation:
        installation = Installation(1000 + next(self._numbers), account, set(repositories))
        self.installations.append(installation)
        return installation

    def revoke_all(self) -> None:
        """Make the git server refuse every token from now on."""
        for name in self.tokens:
            self.tokens[name] = set()

    def handle(self, method: str, path: str, authorization: str, body: bytes) -> Reply:
        self.requests.append(f"{method} {path}")
        if self.replies:
            return self.replies.pop(0)
        if refusal := self._refusal(authorization.removeprefix("Bearer ")):
            return 401, {}, {"message": refusal}
        parts = path.partition("?")[0].strip("/").split("/")
        match method, parts:
            case "GET", ["app", "installations"]:
                found = [{"id": one.number, "account": {"login": one.account}} for one in self.installations]
                return 200, {}, found
            case "GET", ["repos", owner, name, "installation"]:
                for one in self.installations:
                    if f"{owner}/{name}".lower() in {repository.lower() for repository in one.repositories}:
                        return 200, {}, {"id": one.number, "account": {"login": one.account}}
                return 404, {}, {"message": "Not Found"}
            case "POST", ["app", "installations", number, "access_tokens"]:
                return self._mint(int(number), json.loads(body))
        return 404, {}, {"message": "Not Found"}

    def _mint(self, number: int, asked: Any) -> Reply:
        self.bodies.append(asked)
        installation = next((one for one in self.installations if one.number == number), None)
        if installation is None:
            return 404, {}, {"message": "Not Found"}
        if installation.suspended:
            return 403, {}, {"message": "This installation has been suspended"}
        names = {name for name in installation.repositories if name.partition("/")[2] in asked["repositories"]}
        if not names or (asked["permissions"] == {"contents": "read"} and not installation.may_read):
            return 422, {}, {"message": "The permissions requested are not granted to this installation."}
        token = f"ghs_Minted{next(self._numbers):06}"
        self.minted.append(token)
        for name in names:
            self.tokens[name] = {*self.tokens.get(name, ()), token}
        expires = datetime.fromtimestamp(time.time() + self.lifetime, UTC)
        return 201, {}, {"token": token, "expires_at": expires.strftime("%Y-%m-%dT%H:%M:%SZ"), "permissions": {}}

    def _refusal(self, jwt: str) -> str:
        """Return why GitHub would refuse the JWT, or an empty string."""
        signed, _, signature = jwt.rpartition(".")
        try:
            private_key().public_key().verify(_decoded(signature), signed.encode(), PKCS1v15(), SHA256())
        except InvalidSignature:
            return "A JSON web token could not be decoded"
        header, claims = (json.loads(_decoded(part)) for part in signed.split("."))
        now = time.time() + self.clock
        if header != {"alg": "RS256", "typ": "JWT"} or claims["iss"] != APP_ID:
            return "Integration not found"
        if claims["iat"] > now or not now < claims["exp"] <= now + 600:
            return "'Expiration time' claim ('exp') is too far in the future"
        return ""


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class _Handler(Handler):
    def do_GET(self) -> None:
        self._answer_api() or super().do_GET()

    def do_POST(self) -> None:
        self._answer_api() or super().do_POST()

    def _answer_api(self) -> bool:
        if not self.path.startswith("/api/v3/"):
            return False
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        github = self.server.owner.github
        path = self.path.removeprefix("/api/v3")
        status, headers, answer = github.handle(self.command, path, self.headers.get("Authorization", ""), body)
        versions = self.headers.get("Accept"), self.headers.get("X-GitHub-Api-Version")
        content = self.headers.get("Content-Type", "application/json" if not body else "")
        if (*versions, content) != ("application/vnd.github+json", "2022-11-28", "application/json"):
            status, headers, answer = 415, {}, {}
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        return True


class GitHubServer(GitServer):
    """The git server of the tests, which also answers `/api/v3` from `github`."""

    handler = _Handler
    github: GitHub


class GitHubFixture(GitFixture):
    """Repositories on a GitHub of the test's own. `github` is its API; private ones need a token minted by it."""

    def __init__(self, directory: Path, host: str = "127.0.0.1") -> None:
        self.directory = directory
        self.tokens = {}
        self.github = GitHub(self.tokens)
        self.server = GitHubServer(directory, host=host, tokens=self.tokens)
        self.server.github = self.github
        self.server.start()

    def private(self, name: str, files: Any) -> Any:
        """Create a repository that only minted tokens can read."""
        repo = self.repo(name, files)
        self.tokens[name] = set()
        return repo

    def app(self, name: str = "Docora Reader", **fields: Any) -> GitHubApp:
        """Store the credentials of the GitHub App."""
        fields = {"host": self.url, "app_id": APP_ID, "private_key": pem()} | fields
        return GitHubApp.objects.create(name=name, **fields)
