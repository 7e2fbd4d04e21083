"""Validate repository URLs, and tell which of them name the same repository. Cheap for text of any length.

Only one narrow form is accepted, so that git, libcurl and Python cannot read a URL differently: no user info, no backslashes,
and none of git's options and transports (`ext::`, `--upload-pack`). Escapes are accepted only in the URLs of Azure DevOps, whose
names may contain spaces.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes, urlsplit

from django.conf import settings

from docora.text import clean_text
from repositories_app.git.exceptions import HostNotAllowed, InvalidUrl

# If a host is missing here, two spellings of a URL count as two repositories. If a host is here by mistake, two repositories
# count as one. Adding a host that could be watched before would change the canonical URLs that are stored.
CASE_INSENSITIVE_HOSTS = {"github.com", "dev.azure.com"}
TWO_SEGMENT_HOSTS = {"github.com", "bitbucket.org", "codeberg.org"}
"""Hosts without subgroups. A longer URL is that of a page inside a repository."""
MAX_LENGTH = 2048
MAX_OWNER = 255  # characters, as in the database
_FORM = "https://<host>/owner/name"
_NO_HOST = f"The repository URL must name a host, such as github.com: {_FORM}."
_SEGMENT = re.compile(r"(?!-)[A-Za-z0-9._-]{1,200}")
_GROUP = re.compile(r"~?(?!-)[A-Za-z0-9._-]{1,200}")  # Bitbucket Data Center and sourcehut: ~user
_ESCAPED = re.compile(r"(?!-)(?:[A-Za-z0-9._-]|%[0-9A-Fa-f]{2}){1,600}")
_AZURE = "_git"  # https://dev.azure.com/organization/project/_git/name
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class RepositoryUrl:
    """`canonical` identifies the repository. `spelled` is the URL as the app wrote it; Docora fetches from it.

    `owner` is everything between the host and the name, such as `group/subgroup`. Escapes are decoded in it and in `name`.
    """

    spelled: str
    canonical: str
    owner: str
    name: str


def parse_url(url: str) -> RepositoryUrl:
    """Parse `https://<allowed host>/owner/name`, with an optional `.git` and trailing slash. Raises `InvalidUrl`.

    The owner may have several segments, as on GitLab, and Azure DevOps has `_git` before the name.
    """
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
        raise InvalidUrl(_NO_HOST) from None
    host, port = _host_and_port(parts.netloc, _DEFAULT_PORTS[parts.scheme])
    place = host if port == _DEFAULT_PORTS[parts.scheme] else f"{host}:{port}"
    owner, name, path = _parse_path(host, parts.path)
    if host in CASE_INSENSITIVE_HOSTS:
        path = path.lower()
    return RepositoryUrl(url, f"{parts.scheme}://{place}/{path}", owner, name)


_SCP_FORM = re.compile(r"[A-Za-z0-9._-]+@([A-Za-z0-9.-]+):(?!/)(\S+)")
_SSH_FORM = re.compile(r"(?:git\+)?ssh://(?:[A-Za-z0-9._-]+@)?([A-Za-z0-9.-]+)(?::[0-9]+)?/(\S+)")
_NO_SCHEME = re.compile(r"((?:[A-Za-z0-9-]+\.)+[A-Za-z0-9-]+(?::[0-9]+)?/)(\S+)")


def as_https(text: str) -> str:
    """Return the https URL of a repository that a person has entered in another form.

    These are `git@host:owner/name`, `ssh://git@host/owner/name` and `host/owner/name`. Other text is returned as it is, for
    `parse_url` to check. Only people's input is read like this. The API accepts URLs as its contract says.
    """
    text = text.strip()
    if match := _SCP_FORM.fullmatch(text) or _SSH_FORM.fullmatch(text):
        return f"https://{match[1]}/{match[2]}"
    return f"https://{text}" if _NO_SCHEME.fullmatch(text) else text


def owner_and_name(spelled: str) -> tuple[str, str]:
    """Return owner and name as an accepted URL spells them. `Acme/Docs` and `acme/docs` may be one repository."""
    parts = urlsplit(spelled)
    return _parse_path(parts.hostname or "", parts.path)[:2]


def host_of(canonical: str) -> str:
    """Return the prefix of the canonical URLs on this URL's host, such as `https://github.com/`."""
    return "/".join(canonical.split("/", 3)[:3]) + "/"


def _host_and_port(authority: str, default_port: int) -> tuple[str, int]:
    if "@" in authority:
        raise InvalidUrl("The repository URL must not contain credentials. Enter the token separately.")
    host, colon, digits = authority.partition(":")
    if authority.startswith("["):
        host, _, rest = authority.partition("]")
        host, colon, digits = f"{host}]", rest[:1], rest[1:]
    if not _HOST.fullmatch(host) or colon not in {"", ":"}:
        raise InvalidUrl(_NO_HOST)
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


def _parse_path(host: str, path: str) -> tuple[str, str, str]:
    """Return owner, name and the path of the canonical URL, before case is folded."""
    segments = path.removeprefix("/").removesuffix("/").split("/")
    if len(segments) < 2 or (len(segments) > 2 and host in TWO_SEGMENT_HOSTS):
        raise InvalidUrl(f"The repository URL must name an owner and a repository: {_FORM}.")
    if len(segments) > 2 and segments[-1] == _AZURE:
        raise InvalidUrl("The repository URL must end with the repository's name, after /_git/.")
    if len(segments) > 2 and segments[-2] == _AZURE:
        *groups, name = map(_decode, [*segments[:-2], segments[-1]])
        path = "/".join(quote(part, safe="") for part in [*groups, _AZURE, name])
    else:
        *groups, name = segments
        name = name.removesuffix(".git")
        group = _GROUP if host not in TWO_SEGMENT_HOSTS else _SEGMENT
        if not all(map(group.fullmatch, groups)) or not _SEGMENT.fullmatch(name) or _has_dots_only(*groups, name):
            raise InvalidUrl(
                "Owner and name can contain letters, digits, dots, dashes and underscores, and can't start with a dash."
            )
        if name.lower().endswith(".git"):
            raise InvalidUrl("The repository's name can end in .git only once, in lowercase.")
        if len(groups) > 1 and any(part.endswith(".git") for part in groups):
            raise InvalidUrl(
                "The repository URL must end with the repository's name, and only the name can end in .git."
            )
        path = "/".join([*groups, name])
    owner = "/".join(groups)
    if len(owner) > MAX_OWNER:
        raise InvalidUrl(f"The part of the repository URL before the name must have at most {MAX_OWNER} characters.")
    return owner, name, path


def _decode(segment: str) -> str:
    """Return a part of an Azure DevOps URL without its escapes."""
    try:
        text = unquote_to_bytes(segment).decode() if _ESCAPED.fullmatch(segment) else ""
    except UnicodeDecodeError:
        text = ""
    is_valid = text.isprintable() and text == text.strip() and not text.startswith("-") and not {"/", "\\"} & set(text)
    if not is_valid or len(text) > 200 or _has_dots_only(text):
        raise InvalidUrl(
            "Names in an Azure DevOps URL can contain letters, digits, dots, dashes and underscores. Write other characters "
            "as in the clone URL, such as %20 for a space."
        )
    return text


def _has_dots_only(*parts: str) -> bool:
    return not all(part.strip(".") for part in parts)
