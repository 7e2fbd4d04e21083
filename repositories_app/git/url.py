"""Decide which URLs may be watched, and which of them name the same repository. Pure, and cheap for text of any length.

Only one narrow form is accepted, so that git, libcurl and Python cannot read a URL differently: no user info, escapes or
backslashes, and none of git's options and transports (`ext::`, `--upload-pack`).
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from django.conf import settings

from docora.text import clean_text
from repositories_app.git.exceptions import HostNotAllowed, InvalidUrl

CASE_INSENSITIVE_HOSTS = {"github.com"}
MAX_LENGTH = 2048
_FORM = "https://<host>/owner/name"
_SEGMENT = re.compile(r"(?!-)[A-Za-z0-9._-]{1,200}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class RepositoryUrl:
    """`canonical` identifies the repository. `spelled` is the URL as the app wrote it, which is fetched from."""

    spelled: str
    canonical: str
    owner: str
    name: str


def parse_url(url: str) -> RepositoryUrl:
    """Parse `https://<allowed host>/owner/name`, with an optional `.git` and trailing slash. Raises `InvalidUrl`."""
    if len(url) > MAX_LENGTH:
        raise InvalidUrl(f"The repository URL must look like {_FORM} and have at most {MAX_LENGTH:,} characters.")
    url = url.strip(" \t\r\n")
    if not url.isascii():
        raise InvalidUrl("The repository URL must be plain ASCII. Use the xn-- form of an internationalised hostname.")
    if not url.isprintable() or " " in url or "\\" in url:
        raise InvalidUrl(f"The repository URL must look like {_FORM}, without spaces, backslashes or line breaks.")
    starts = ("https://", "http://") if settings.ALLOW_HTTP else ("https://",)
    if not url.startswith(starts):
        raise InvalidUrl(f"The repository URL must look like {_FORM} and start with {' or '.join(starts)}.")
    if "?" in url or "#" in url:
        raise InvalidUrl(f"The repository URL must end with the repository's name: {_FORM}.")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidUrl(f"The repository URL must look like {_FORM}.") from None
    host, port = _host_and_port(parts.netloc, _DEFAULT_PORTS[parts.scheme])
    owner, name = _owner_and_name(parts.path)
    place = host if port == _DEFAULT_PORTS[parts.scheme] else f"{host}:{port}"
    path = f"{owner}/{name}"
    if host in CASE_INSENSITIVE_HOSTS:
        path = path.lower()
    return RepositoryUrl(url.removesuffix("/"), f"{parts.scheme}://{place}/{path}", owner, name)


def owner_and_name(spelled: str) -> tuple[str, str]:
    """Return owner and name as an accepted URL spells them. `Acme/Docs` and `acme/docs` may be one repository."""
    return _owner_and_name(urlsplit(spelled).path)


def host_of(canonical: str) -> str:
    """Return what the canonical URLs of a host's repositories begin with, such as `https://github.com/`."""
    return "/".join(canonical.split("/", 3)[:3]) + "/"


def _host_and_port(authority: str, default_port: int) -> tuple[str, int]:
    if "@" in authority:
        raise InvalidUrl("The repository URL must not contain credentials. Enter the token separately.")
    host, colon, digits = authority.partition(":")
    if authority.startswith("["):
        host, _, rest = authority.partition("]")
        host, colon, digits = f"{host}]", rest[:1], rest[1:]
    if not _HOST.fullmatch(host) or colon not in {"", ":"}:
        raise InvalidUrl(f"The repository URL must name a host, such as github.com: {_FORM}.")
    if colon and not (_PORT.fullmatch(digits) and int(digits) <= 65535):
        raise InvalidUrl("The port in the repository URL must be a number from 1 to 65535.")
    host, port = host.lower(), int(digits) if colon else default_port
    allowed = {entry.lower() for entry in settings.ALLOWED_GIT_HOSTS}
    without_port = {host, host.strip("[]")} if port == default_port else set()
    if not {f"{host}:{port}", f"{host}:*", *without_port} & allowed:
        place = clean_text(host, 100) if port == default_port else f"{clean_text(host, 100)}:{port}"
        raise HostNotAllowed(
            f"Repositories on {place} can't be watched. Allowed hosts: {', '.join(sorted(allowed))}. "
            "An administrator can add the host to ALLOWED_GIT_HOSTS."
        )
    return host, port


def _owner_and_name(path: str) -> tuple[str, str]:
    segments = path.removeprefix("/").removesuffix("/").split("/")
    if len(segments) != 2:
        raise InvalidUrl(f"The repository URL must name an owner and a repository: {_FORM}.")
    owner, name = segments[0], segments[1].removesuffix(".git")
    if not all(_SEGMENT.fullmatch(part) and part.strip(".") for part in (owner, name)):
        raise InvalidUrl(
            "Owner and name can contain letters, digits, dots, dashes and underscores, and can't start with a dash."
        )
    if name.lower().endswith(".git"):
        raise InvalidUrl("The repository's name can end in .git only once, in lowercase.")
    return owner, name
