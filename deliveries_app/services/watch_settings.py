"""Change a watch's settings: its repository token, its branch or tag, its patterns and its push hook secret."""

import secrets
from typing import Any, Unpack

from django.db import transaction

from deliveries_app import audit, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, AuditAction
from deliveries_app.models.root_causes import CLEARED_FAILURE
from deliveries_app.permissions import Permission
from deliveries_app.services.host_checks import check_readable
from deliveries_app.services.requests import NotFound
from deliveries_app.services.watching import (
    AlreadyWatched,
    GivenOptions,
    Watched,
    validate_list,
    validate_patterns,
    validate_ref,
    validate_token,
    watch_repository,
)
from deliveries_app.sync import circuit
from docora.security.crypto import require_readable
from repositories_app import services as repositories
from repositories_app.git.url import parse_url


def ensure_watched(actor: Actor, app: App, url: str, **settings: Unpack[GivenOptions]) -> Watched:
    """Watch the repository with these settings, or apply them to the app's existing watch.

    Settings that are left out keep their value. A new repository, a new token and a new branch or tag are checked with git
    first. Only the differences that another branch or other patterns make are sent. Raises the errors of `watch_repository`.
    """
    try:
        return watch_repository(actor, app, url, must_be_new=True, **settings)
    except AlreadyWatched as error:
        watch = error.watch
    changed = settings.copy()
    if changed.get("github_token") == watch.github_token:
        del changed["github_token"]
    try:
        change_watch(actor, watch, github_url=parse_url(url).spelled, **changed)
    except NotFound:  # it was unwatched meanwhile
        return ensure_watched(actor, app, url, **settings)
    return Watched(watch, created=False)


def change_watch(
    actor: Actor, watch: AppRepository, *, github_url: str | None = None, **given: Unpack[GivenOptions]
) -> bool:
    """Change the settings that are given, all in one transaction. Return whether any of them was changed.

    - `github_token` reads the repository (empty for none); `ref` is the branch or tag to follow (empty for the default
      branch). Both are checked with git first. A new one clears errors and the circuit. A token always counts as new.
    - `ignore_patterns` apply in addition to `.docoraignore` and to the app's own choice: the files that match
      `include_patterns` (empty for all) and don't match `exclude_patterns`.
    - `github_url` is another spelling of the URL, which notifications and API responses repeat.

    Delivery records are kept. Any change except a spelling enqueues a sync, which sends only what differs from the files that
    the app has. Raises `ValidationError`, whose code names the list of patterns, `GitError` if the repository cannot be read, and
    `NotFound` if it is no longer watched.
    """
    actor.require_watch(watch, Permission.CHANGE_WATCHES)
    changes: dict[str, dict[str, str]] = {}  # by the message for the audit log
    if "github_token" in given:
        token = validate_token(given["github_token"])
        has_token = bool(token or watch.github_token)
        message = "Changed the repository's token" if has_token else "Checked the repository without a token"
        changes[message] = {"github_token": token}
    if "ref" in given:
        ref = validate_ref(given["ref"])
        changes[f"Changed the branch or tag to {ref or 'the default branch'}"] = {"ref": ref}
    if "ignore_patterns" in given:
        text, count = validate_patterns(given["ignore_patterns"])
        changes[f"Changed the ignore patterns ({count} now)"] = {"ignore_patterns": text}
    changes["Changed the app's include and exclude patterns"] = {
        name: validate_list(name, str(text))
        for name, text in given.items()
        if name in {"include_patterns", "exclude_patterns"}
    }
    if github_url is not None:
        changes["Changed the spelling of the URL"] = {"github_url": github_url}
    changes = _effective(changes, watch)
    if not changes:
        return False
    new: dict[str, Any] = {name: text for fields in changes.values() for name, text in fields.items()}
    is_due = new.keys() != {"github_url"}
    is_private = None
    if new.keys() & {"github_token", "ref"}:
        token = new.get("github_token", watch.github_token)
        require_readable(token)
        github_app = watch.app.github_app_for(watch.repository.canonical_url, token)
        # The current ref is not checked, because it may be missing at the moment.
        is_private = check_readable(actor, watch.github_url, token, new.get("ref", ""), github_app)
        actor.require_active()
        new |= scheduling.ALL_ATTEMPTS | CLEARED_FAILURE
    if is_due:
        new |= scheduling.DUE_NOW
    with transaction.atomic():
        if is_private is not None:  # lock the repository's row before the watch's, as `record_git_failure` does
            if repository := repositories.lock(watch.repository_id):
                repositories.record_privacy(repository, is_private=is_private)
            circuit.close_circuit(watch.repository)
        before = _lock(watch)
        _update(watch, **new)
        for message, fields in _effective(changes, before).items():  # another request may have made the same change
            _record(actor, watch, before, message, fields)
        if is_due:
            scheduling.enqueue(watch)
    return True


def _effective(changes: dict[str, dict[str, str]], watch: AppRepository) -> dict[str, dict[str, str]]:
    """Return those of these changes, by message, that change the watch. A token always counts as new."""
    return {
        message: fields
        for message, fields in changes.items()
        if "github_token" in fields or any(text != getattr(watch, name) for name, text in fields.items())
    }


def renew_push_secret(actor: Actor, watch: AppRepository) -> str:
    """Replace the push hook secret, which the git host signs with, and return the new one. It cannot be shown again.

    Raises `NotFound` if the repository is no longer watched.
    """
    actor.require_watch(watch, Permission.CHANGE_WATCHES)
    secret = secrets.token_hex(32)
    with transaction.atomic():
        before = _lock(watch)
        _update(watch, push_secret=secret)
        _record(actor, watch, before, "Created a new push hook secret", {"push_secret": secret})
    return secret


def _lock(watch: AppRepository) -> AppRepository:
    """Return the watch's row as it is before the change, locked. Raises `NotFound` if it is no longer watched."""
    alive = AppRepository.objects.alive().select_for_update(no_key=True)
    row = alive.filter(pk=watch.pk).first()
    if row is None:
        raise NotFound("Repository not found")
    return row


def _update(watch: AppRepository, **changes: object) -> None:
    """Change only these fields of a locked watch, so that a worker's concurrent writes to others survive."""
    AppRepository.objects.filter(pk=watch.pk).update(**changes)
    watch.refresh_from_db()


def _record(actor: Actor, watch: AppRepository, before: AppRepository, message: str, new: dict[str, str]) -> None:
    changes = audit.Changes.of(AppRepository, {name: getattr(before, name) for name in new}, new)
    audit.record(actor, AuditAction.WATCH_CHANGED, [watch], message, changes)
