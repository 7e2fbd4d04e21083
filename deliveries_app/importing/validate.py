"""What Docora can take of a row, and in which form. Pure but for the settings; what cannot be taken is `Refused`, what is
worth knowing about the rest goes to `remark` and `problem` as a sentence."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from django.core.exceptions import ValidationError

from deliveries_app.importing.source import SourceApp, SourceFile, SourceKey, SourceRepository, SourceWatch
from deliveries_app.models import Status
from deliveries_app.planning.eligibility import reason_by_path
from deliveries_app.services.imported_tokens import HASH
from deliveries_app.services.onboarding import validate_base_url, validate_website
from deliveries_app.services.watching import validate_token
from docora.security.redaction import redact
from docora.text import clean_text
from repositories_app.git.exceptions import InvalidUrl
from repositories_app.git.url import RepositoryUrl, parse_url

_PUBLIC_ID = re.compile("[A-Za-z0-9_-]{1,50}")  # it is a part of addresses, job ids and names of folders
_SHA = re.compile("[0-9a-f]{64}")

Tell = Callable[[str], None]


class Refused(Exception):
    """This row cannot be taken; one sentence."""


@dataclass(frozen=True)
class AppFacts:
    name: str
    base_url: str
    email: str
    website: str
    description: str
    client_auth_key: str = field(repr=False)
    token_hash: str = field(repr=False)
    """Empty where the app has none that Docora could recognise."""


@dataclass(frozen=True)
class State:
    """How a watch begins here; `error` is what the existing service said last of one that had failed."""

    status: Status
    error: str = ""


def judge_app(app: SourceApp, key: SourceKey, problem: Tell, remark: Tell) -> AppFacts:
    """An app without its signing key is refused; other than that, what is wrong with it can be mended here."""
    _require_public_id(app.app_id)
    signing_key = key.decrypt(app.key or "")
    if not signing_key:
        raise Refused("Its signing key cannot be decrypted. Register the app anew, with a key of its own.")
    try:
        validate_base_url(app.base_url)
    except ValidationError as error:
        remark(f"Notifications will not arrive before its base URL is changed, or the settings. {error.messages[0]}")
    website = app.website or ""
    try:
        validate_website(website)
    except ValidationError:
        website = ""
        remark("Its website is no address that a browser could be led to, and was left out.")
    name = clean_text(app.app_name or "", 100) or app.app_id
    if name != app.app_name:
        remark(f"Its name was not fit to be shown, and is {name!r} here.")
    token_hash = app.token_hash or ""
    if not HASH.fullmatch(token_hash):
        token_hash = ""
        problem("Its token is not stored as a bcrypt hash of at most cost 14. Rotate its token to make a new one.")
    return AppFacts(
        name,
        clean_text(app.base_url, 2048),
        clean_text(app.email or "", 255),
        website,
        clean_text(app.description or "", 500),
        signing_key,
        token_hash,
    )


def judge_repository(repository: SourceRepository) -> RepositoryUrl:
    """One that the settings do not allow is refused: once they do, another import takes it."""
    _require_public_id(repository.repository_id)
    try:
        return parse_url(repository.github_url)
    except InvalidUrl as error:
        raise Refused(f"{error} Once that is changed, another import takes it with its watches.") from None


def judge_token(watch: SourceWatch, key: SourceKey, problem: Tell) -> str:
    """The token that opens the repository; empty if there is none, or none that can be used."""
    if not watch.token:
        return ""
    token = key.decrypt(watch.token)
    try:
        if token is None:
            raise ValidationError("it cannot be decrypted.")
        return validate_token(token)
    except ValidationError as error:
        problem(f"Its token was left out, give it anew: {error.messages[0]}")
        return ""


def judge_state(watch: SourceWatch, remark: Tell) -> State:
    """What was under way is to be begun again."""
    if watch.status == "failed":
        words = redact(clean_text(watch.last_error or "", 400)) or "it did not say why."
        return State(Status.FAILED, f"It had failed in the service that it was imported from: {words}")
    if watch.status == "synced":
        return State(Status.SYNCED)
    if watch.status not in {"pending_snapshot", "scanning"}:
        remark(f"Its status {clean_text(watch.status or '', 20)!r} is not known: it is synced anew.")
    return State(Status.PENDING)


def judge_file(file: SourceFile) -> SourceFile:
    """With its SHA-256 as Docora writes it."""
    skipped = reason_by_path(file.path.encode())
    if skipped is not None:
        raise Refused(f"{skipped.message} The app keeps what it has under it.")
    sha = (file.sha or "").lower()
    if not _SHA.fullmatch(sha):
        raise Refused("Its record holds no SHA-256: if the repository still has the file, it is sent again.")
    return file._replace(sha=sha)


def _require_public_id(public_id: str) -> None:
    if not _PUBLIC_ID.fullmatch(public_id):
        raise Refused("Its id has other characters than letters, digits, dashes and underscores.")
