"""Change a watch's settings: its repository token, its branch or tag, its push hook secret and its patterns."""

import secrets
from typing import Any

from django.db import transaction
from django.db.models import Case, F, Value, When

from deliveries_app import audit, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, AuditAction, Status
from deliveries_app.models.root_causes import CLEARED_FAILURE
from deliveries_app.permissions import Permission
from deliveries_app.services.host_checks import check_readable
from deliveries_app.services.patterns import validate_list, validate_patterns
from deliveries_app.services.requests import NotFound
from deliveries_app.services.watching import validate_ref, validate_token
from deliveries_app.sync import circuit
from docora.security.crypto import require_readable


def replace_github_token(actor: Actor, watch: AppRepository, token: str, *, next_ref: str = "") -> None:
    """Replace the token that reads the repository (empty for none), after checking with git that it works.

    If the watch is about to follow another branch or tag, pass it as `next_ref`: it must exist, too. Clears errors and the
    circuit, keeps the delivery records, and enqueues a sync. Raises `ValidationError`, `GitError` if the repository cannot
    be read with the token, and `NotFound` if it is no longer watched.
    """
    actor.require(Permission.CHANGE_WATCHES)
    actor.require_watch(watch)
    validate_token(token)
    github_app = None if token else watch.app.github_app_for(watch.repository.canonical_url)
    # The current ref is not checked, because it may be missing at the moment.
    check_readable(actor, watch.github_url, token, next_ref, github_app)
    with transaction.atomic():
        # Lock the repository's row before the watch's, as `record_git_failure` does.
        circuit.close_circuit(watch.repository)
        before = _before(watch)
        _update(watch, github_token=token, **_start_afresh())
        _record(actor, watch, before, "Changed the repository's token", github_token=token)
        scheduling.enqueue(watch)


def set_ref(actor: Actor, watch: AppRepository, ref: str) -> bool:
    """Follow another branch or tag (empty for the default branch), after checking with git that it exists.

    Clears errors and the circuit, and enqueues a sync, which sends only what differs from the files that the app has. Return
    whether the ref changed. Raises `ValidationError`, `GitError`, and `NotFound` if the repository is no longer watched.
    """
    actor.require(Permission.CHANGE_WATCHES)
    actor.require_watch(watch)
    ref = validate_ref(ref)
    if ref == watch.ref:
        return False
    require_readable(watch.github_token)
    check_readable(actor, watch.github_url, watch.github_token, ref, watch.github_app)
    with transaction.atomic():
        circuit.close_circuit(watch.repository)  # lock the repository first, as above
        before = _before(watch)
        _update(watch, ref=ref, **_start_afresh())
        _record(actor, watch, before, f"Changed the branch or tag to {ref or 'the default branch'}", ref=ref)
        scheduling.enqueue(watch)
    return True


def set_spelling(actor: Actor, watch: AppRepository, url: str) -> None:
    """Store another spelling of the repository's URL. Notifications and API responses repeat it."""
    actor.require(Permission.CHANGE_WATCHES)
    actor.require_watch(watch)
    with transaction.atomic():
        before = _before(watch)
        _update(watch, github_url=url)
        _record(actor, watch, before, "Changed the spelling of the URL", github_url=url)


def _start_afresh() -> dict[str, Any]:
    """Return the changes that clear a watch's errors and make it due, because the change may have fixed its failure."""
    return {
        "retry_count": 0,
        "status": Case(When(status=Status.FAILED, then=Value(Status.PENDING)), default=F("status")),
        **scheduling.DUE_NOW,
        **CLEARED_FAILURE,
    }


def renew_push_secret(actor: Actor, watch: AppRepository) -> str:
    """Replace the push hook secret, which the git host signs with, and return the new one. It cannot be shown again.

    Raises `NotFound` if the repository is no longer watched.
    """
    actor.require(Permission.CHANGE_WATCHES)
    actor.require_watch(watch)
    secret = secrets.token_hex(32)
    with transaction.atomic():
        before = _before(watch)
        _update(watch, push_secret=secret)
        _record(actor, watch, before, "Created a new push hook secret", push_secret=secret)
    return secret


def _update(watch: AppRepository, **changes: object) -> None:
    """Change only these fields of a locked watch, so that a worker's concurrent writes to others survive."""
    AppRepository.objects.filter(pk=watch.pk).update(**changes)
    watch.refresh_from_db()


def _before(watch: AppRepository) -> AppRepository:
    """Return the watch's row as it is before the change, locked. Raises `NotFound` if it is no longer watched."""
    alive = AppRepository.objects.alive().select_for_update(of=("self",), no_key=True)
    row = alive.filter(pk=watch.pk).first()
    if row is None:
        raise NotFound("Repository not found")
    return row


def _record(actor: Actor, watch: AppRepository, before: AppRepository, message: str, **given: str) -> None:
    changes = audit.Changes.of(AppRepository, {name: getattr(before, name) for name in given}, given)
    audit.record(actor, AuditAction.WATCH_CHANGED, [watch], message, changes)


def set_ignore_patterns(actor: Actor, watch: AppRepository, text: str) -> bool:
    """Set the watch's own ignore patterns, which apply in addition to `.docoraignore`. An empty string removes them.

    Return whether they changed. If so, a sync is enqueued: it deletes newly ignored files at the client, and creates those
    that are no longer ignored. Raises `ValidationError`, and `NotFound` if the repository is no longer watched.
    """
    actor.require(Permission.CHANGE_WATCHES)
    actor.require_watch(watch)
    text, count = validate_patterns(text)
    with transaction.atomic():
        before = _before(watch)
        changed = text != before.ignore_patterns
        if changed:
            _update(watch, ignore_patterns=text, **scheduling.DUE_NOW)
            _record(actor, watch, before, f"Changed the ignore patterns ({count} now)", ignore_patterns=text)
            scheduling.enqueue(watch)
    return changed


def set_app_patterns(actor: Actor, watch: AppRepository, include: str | None, exclude: str | None) -> bool:
    """Set the app's own choice of files: those that match `include` (empty: all) and don't match `exclude`. None keeps a list.

    `.docoraignore` and the ignore patterns still apply. Return whether the choice changed. If so, a sync is enqueued: it
    deletes files at the client that are no longer chosen, and creates newly chosen ones. Raises `ValidationError`, whose
    code names the list, and `NotFound` if the repository is no longer watched.
    """
    actor.require(Permission.CHANGE_WATCHES)
    actor.require_watch(watch)
    given = {"include": include, "exclude": exclude}
    patterns = {f"{name}_patterns": validate_list(name, text) for name, text in given.items() if text is not None}
    with transaction.atomic():
        before = _before(watch)
        changed = any(text != getattr(before, name) for name, text in patterns.items())
        if changed:
            _update(watch, **patterns, **scheduling.DUE_NOW)
            _record(actor, watch, before, "Changed the app's include and exclude patterns", **patterns)
            scheduling.enqueue(watch)
    return changed
