"""Store the credentials of GitHub Apps, and test them. `change_app` assigns them to client apps."""

import re
from collections.abc import Collection

from django.core.exceptions import ValidationError
from django.db import transaction

from deliveries_app import audit, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, AppRepositoryQuerySet, AuditAction
from deliveries_app.models.root_causes import RootCause
from deliveries_app.permissions import Permission
from deliveries_app.services.requests import NotFound
from docora.db.locks import lock_rows
from repositories_app import github
from repositories_app.git.exceptions import GitError, InvalidUrl
from repositories_app.git.url import host_of, parse_url
from repositories_app.models import GitHubApp

_FIELDS = ("name", "host", "app_id", "private_key")
_APP_ID = re.compile("[A-Za-z0-9._-]{1,100}")


def validate_host(text: str) -> str:
    """Return the address of GitHub or of a GitHub Enterprise Server, without a slash at the end. Raises `ValidationError`."""
    try:
        url = parse_url(f"{text.strip().removesuffix('/')}/owner/name")
    except InvalidUrl:
        url = None
    if url is None or url.owner != "owner":
        raise ValidationError(
            "Enter the address of GitHub, such as https://github.com. ALLOWED_GIT_HOSTS must contain its host."
        )
    return host_of(url.canonical).removesuffix("/")


def validate_app_id(text: str) -> str:
    """Return the app ID or client ID. Raises `ValidationError`."""
    if not _APP_ID.fullmatch(text):
        raise ValidationError("Copy the app ID or the client ID from the app's settings on GitHub.")
    return text


def validate_private_key(text: str) -> str:
    """Return the private key as stored. Raises `ValidationError`."""
    text = text.replace("\r\n", "\n").strip() + "\n"
    if len(text) > github.MAX_KEY:
        raise ValidationError(f"The private key must have at most {github.MAX_KEY:,} characters.")
    try:
        github.load_key(text)
    except ValueError as error:
        raise ValidationError(str(error)) from None
    return text


def save_github_app(
    actor: Actor, github_app: GitHubApp, private_key: str = "", changed: Collection[str] = ("name", "host", "app_id")
) -> None:
    """Save the credentials. Raises `ValidationError`, and `NotFound` if they have been deleted.

    Of credentials that are already stored, save only the fields named in `changed`, and the `private_key` unless it is empty.
    Repositories that could not be read are then synced.
    """
    is_new = github_app.pk is None
    actor.require(Permission.ADD_GITHUB_APPS if is_new else Permission.CHANGE_GITHUB_APPS)
    github_app.host = validate_host(github_app.host)
    github_app.app_id = validate_app_id(github_app.app_id)
    if private_key or is_new:
        github_app.private_key = validate_private_key(private_key)
    with transaction.atomic():
        if is_new:
            github_app.save()
            changes = audit.Changes.initial(GitHubApp, {name: getattr(github_app, name) for name in _FIELDS})
            audit.record(actor, AuditAction.GITHUB_APP_ADDED, [github_app], "Added the GitHub App", changes)
            return
        before = GitHubApp.objects.select_for_update(no_key=True).filter(pk=github_app.pk).first()
        if before is None:
            raise NotFound("GitHub App not found")
        names = [*changed, "private_key"] if private_key else changed
        given = {name: getattr(github_app, name) for name in names}
        github_app.save(update_fields={*given, "updated_at"})
        changes = audit.Changes.of(GitHubApp, {name: getattr(before, name) for name in given}, given)
        if changes:
            audit.record(actor, AuditAction.GITHUB_APP_CHANGED, [github_app], changes.summary, changes)
            sync_refused(AppRepository.objects.filter(app__github_app=github_app))


def sync_refused(watches: AppRepositoryQuerySet) -> None:
    """Sync those of these watches now that git hosts have refused, because they are read with other credentials from now on."""
    refused = watches.failing().filter(root_cause__in=(RootCause.GIT_AUTH, RootCause.GIT_NOT_FOUND))
    scheduling.request_sync(refused, **scheduling.ALL_ATTEMPTS)
    transaction.on_commit(scheduling.enqueue_due, robust=True)


def delete_github_app(actor: Actor, github_app: GitHubApp) -> None:
    """Delete the credentials. Raises `ProtectedError` while a client app uses them."""
    actor.require(Permission.DELETE_GITHUB_APPS)
    with transaction.atomic():
        if lock_rows(GitHubApp.objects.filter(pk=github_app.pk)):  # otherwise another request has just deleted it
            audit.record(actor, AuditAction.GITHUB_APP_DELETED, [github_app], "Deleted the GitHub App")
            github_app.delete()


def list_installations(actor: Actor, github_app: GitHubApp) -> list[str]:
    """Return the accounts on which the GitHub App is installed, at most 100. This also tests its key.

    Raises `GitError`, and `DecryptionError` if the key cannot be decrypted.
    """
    actor.require(Permission.CHANGE_GITHUB_APPS)
    try:
        accounts = github.installations(github_app)
    except GitError as error:
        error.promise_no_retry()
        raise
    audit.record(actor, AuditAction.GITHUB_APP_TESTED, [github_app], "Tested the key")
    return accounts
