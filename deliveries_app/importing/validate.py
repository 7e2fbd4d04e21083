"""Decide which rows of the source can be imported, and convert their values.

Apart from reading settings, these functions are pure. They raise `Refused` for a row that cannot be imported, and call
`remark` or `problem` with a message about a row that can.
"""

import re
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models.functions import Now

from deliveries_app.importing.source import SourceApp, SourceFile, SourceKey, SourceRepository, SourceWatch
from deliveries_app.models import App, Status
from deliveries_app.models.root_causes import internal
from deliveries_app.planning.eligibility import reason_by_path
from deliveries_app.services.imported_tokens import HASH
from deliveries_app.services.keys import validate_key
from deliveries_app.services.onboarding import validate_base_url, validate_website
from deliveries_app.services.watching import validate_token
from deliveries_app.webhooks.signing import STANDARD_PREFIX
from docora.http.addresses import blocked_reason, is_address
from docora.http.messages import name_of
from docora.security.redaction import redact
from docora.text import PUBLIC_ID, clean_text, one_line, printable
from repositories_app.git.exceptions import InvalidUrl
from repositories_app.git.url import RepositoryUrl, parse_url

_SHA = re.compile("[0-9a-f]{64}")

Note = Callable[[str], None]


class Refused(Exception):
    """The row cannot be imported. The message is for the user."""


def validate_app(app: SourceApp, key: SourceKey, remark: Note) -> App:
    """Return the app to create, unsaved.

    Raises `Refused` for an invalid id or an unreadable signing key. Everything else can be corrected after the import.
    """
    _require_public_id(app.app_id)
    signing_key = key.decrypt(app.key)
    if not signing_key:
        raise Refused("Its signing key cannot be decrypted. Register the app again with a new key.")
    if signing_key.startswith(STANDARD_PREFIX):
        try:
            validate_key(signing_key)
        except ValidationError:
            remark(
                "Its signing key starts with whsec_ but does not continue with base64, as libraries for Standard Webhooks "
                "expect. Clients can only verify X-Docora-Signature until you rotate the key."
            )
    base_url = clean_text(app.base_url, 2048)
    if (reason := _base_url_problem(base_url)) is not None:
        effect = "may go to a wrong URL" if "?" in base_url else "cannot be sent"  # as `?query/create`
        remark(f"Notifications {effect} until its base URL or the settings change. {reason}")
    website = app.website
    try:
        validate_website(website)
    except ValidationError:
        website = ""
        remark("Its website is not a valid http(s) URL and was left out.")
    name = printable(one_line(app.app_name, 100)) or app.app_id
    if name != app.app_name:
        remark(
            f"Its name was empty or too long, or had extra spaces or unprintable characters. In Docora, it is {name!r}."
        )
    return App(
        app_id=app.app_id,
        name=name,
        base_url=base_url,
        email=clean_text(app.email, 255),
        website=website,
        description=clean_text(app.description, 500),
        client_auth_key=signing_key,
    )


def _base_url_problem(url: str) -> str | None:
    """Return why nothing can be sent to the URL, or None. Host names are not looked up, but an address needs no lookup."""
    try:
        host = name_of(validate_base_url(url))
    except ValidationError as error:
        return error.messages[0]
    return blocked_reason(host, settings.ALLOWED_PRIVATE_NETWORKS) if is_address(host) else None


def validate_token_hash(app: SourceApp, problem: Note) -> str:
    """Return the hash of the app's token; empty if it is unusable."""
    if HASH.fullmatch(app.token_hash):
        return app.token_hash
    problem("Its token is not stored as a valid bcrypt hash of cost 14 or less. Rotate its token.")
    return ""


def validate_repository(repository: SourceRepository) -> RepositoryUrl:
    """Return the repository's parsed URL.

    Raises `Refused` for a URL that the settings do not allow. A later import includes it once they do.
    """
    _require_public_id(repository.repository_id)
    try:
        return parse_url(repository.github_url)
    except InvalidUrl as error:
        raise Refused(f"{error} Once that is fixed, import again to include it and its watches.") from None


def validate_token_of(watch: SourceWatch, key: SourceKey, problem: Note) -> str:
    """Return the repository's token; empty if there is none or it is unusable."""
    if not watch.token:
        return ""
    token = key.decrypt(watch.token)
    if token is None:
        problem("Its token cannot be decrypted and was left out. Enter it again.")
        return ""
    try:
        return validate_token(token)
    except ValidationError as error:
        problem(f"Its token was left out. {error.messages[0]} Enter it again.")
        return ""


def initial_state(watch: SourceWatch, remark: Note) -> dict[str, Any]:
    """Return the columns of the watch's initial state. Syncs that were in progress start again."""
    if watch.status == "synced":
        return {"status": Status.SYNCED}
    if watch.status == "failed":  # one attempt, as at every rescan of a failed watch
        error = clean_text(redact(watch.last_error), 400) or "unknown error"
        failure = internal(f"Failed in the service that it was imported from: {error}")
        attempts = {"status": Status.FAILED, "next_sync_at": Now(), "retry_count": settings.MAX_RETRY_ATTEMPTS - 1}
        return attempts | failure.columns()
    if watch.status not in {"pending_snapshot", "scanning"}:
        remark(f"Its status {clean_text(watch.status, 20)!r} is unknown. Docora will sync it.")
    return {"status": Status.PENDING, "next_sync_at": Now()}


def validate_file(file: SourceFile) -> SourceFile:
    """Return the record with a lowercase SHA-256. Raises `Refused` if the path or the SHA-256 is unusable."""
    skipped = reason_by_path(file.path.encode())
    if skipped is not None:
        raise Refused(f"{skipped.message} The app keeps its copy.")
    sha = file.sha.lower()
    if not _SHA.fullmatch(sha):
        raise Refused("Its record has no SHA-256. If the file still exists in the repository, it is sent again.")
    return file._replace(sha=sha)


def _require_public_id(public_id: str) -> None:
    if not re.fullmatch(PUBLIC_ID, public_id):
        raise Refused("Its id may contain only letters, digits, dashes and underscores, at most 50 characters.")
