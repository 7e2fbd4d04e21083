"""Watch and unwatch repositories, and delete apps (`engine.md` §9)."""

import time
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Case, F, When
from django.db.models.functions import Now

from deliveries_app import scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Outcome, Reason, Status
from deliveries_app.progress import runs
from deliveries_app.services.resync import resync_single
from deliveries_app.webhooks.payloads import timestamp
from docora.redis import queues
from repositories_app import services as repositories
from repositories_app.git import remote
from repositories_app.git.exceptions import Cause, GitError, InvalidUrl
from repositories_app.git.url import RepositoryUrl, owner_and_name
from repositories_app.models import Repository

GIT_CHECK_SECONDS = 12.0  # for all requests to the git host while a user or client waits for the response


@dataclass(frozen=True)
class Watched:
    """The watch. `created` is False if the app was already watching the repository."""

    watch: AppRepository
    created: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the response of the REST API and of the command."""
        owner, name = owner_and_name(self.watch.github_url)
        return {
            "repository_id": self.watch.repository.repository_id,
            "github_url": self.watch.github_url,
            "owner": owner,
            "name": name,
            "is_private": self.watch.repository.is_private,
            "created_at": timestamp(self.watch.created_at),
        }


def validate_token(token: str) -> str:
    """Return the token. Raises `ValidationError` unless it is empty or 1 to 255 printable ASCII characters, no spaces."""
    if token and not (len(token) <= 255 and token.isascii() and token.isprintable() and " " not in token):
        raise ValidationError("The token must be 1 to 255 printable ASCII characters without spaces.", code="token")
    return token


def watch_repository(actor: Actor, app: App, url: str, token: str = "") -> Watched:
    """Watch a repository for the app, after checking with git that it can be read.

    If the app is already watching it, replace the token and send every file again. Raises `InvalidUrl`, `ValidationError`
    or `GitError`, each with a message for the user.
    """
    actor.require("deliveries_app.add_apprepository")
    actor.require_app(app)
    parsed = remote.parse_url(url)
    validate_token(token)
    is_private = check_readable(parsed.spelled, token)
    with transaction.atomic():  # lock the app before its watch, as the claim does
        if App.objects.select_for_update(no_key=True).filter(pk=app.pk, ended_at=None).first() is None:
            raise InvalidUrl("The app is being removed.")  # check this after git, which may have taken seconds
        repository = _find_or_create(app, parsed, is_private=is_private)
        # Lock the watch. Otherwise one that has ended could be removed just after it is revived.
        watches = AppRepository.objects.select_for_update(of=("self",)).select_related("app", "repository")
        watch, created = watches.get_or_create(
            app=app,
            repository=repository,
            defaults={"github_url": parsed.spelled, "github_token": token, "next_check_at": Now()},
        )
        if created:
            watch.refresh_from_db()
            run = runs.open_run(watch, Reason.INITIAL, requested_by=actor.name, user_pk=actor.user_pk)
            run.save()
            runs.log_requested([run])
            scheduling.enqueue(watch, "high")
            return Watched(watch, True)
        # Watching again re-syncs the existing row, and revives it if it is being removed.
        watch.github_url, watch.github_token, watch.ended_at = parsed.spelled, token, None
        watch.save(update_fields=["github_url", "github_token", "ended_at"])
        resync_single(actor, watch, skip_permission_check=True)
    return Watched(watch, False)


def _find_or_create(app: App, url: RepositoryUrl, *, is_private: bool) -> Repository:
    """Return the repository for this URL. If the app already watches it, return the row whose id the app knows."""
    watched = AppRepository.objects.filter(app=app, repository__canonical_url=url.canonical)
    as_spelled = Case(When(github_url=url.spelled, then=0), default=1)
    watch = watched.select_related("repository").order_by(as_spelled, "repository__twin").first()
    if watch is None:
        return repositories.find_or_create(url, is_private=is_private)
    repositories.record_privacy(watch.repository, is_private=is_private)
    return watch.repository


def check_readable(url: str, token: str) -> bool:
    """Return whether the repository is private: readable with the token, but not without.

    Raises `GitError` if it cannot be read with this token, or if its host takes longer than `GIT_CHECK_SECONDS`.
    """
    deadline = time.monotonic() + GIT_CHECK_SECONDS

    def check_deadline() -> None:
        if time.monotonic() > deadline:
            raise GitError(
                Cause.TIMEOUT, f"The host did not answer within {GIT_CHECK_SECONDS:.0f} seconds. Try again later."
            )

    with remote.new_client(max_connections=1) as client:
        remote.ls_head(client, url, token, check_deadline)
        if not token:
            return False
        try:
            remote.ls_head(client, url, "", check_deadline)
        except GitError:
            return True
    return False


def unwatch_repository(actor: Actor, watch: AppRepository) -> None:
    """Stop watching. Nothing more is sent; the rows are removed once no worker is using them."""
    actor.require("deliveries_app.delete_apprepository")
    actor.require_watch(watch)
    with transaction.atomic():
        _end(watch)


def _end(watch: AppRepository) -> None:
    """Mark the watch as ended. The new generation fences its worker."""
    ended = AppRepository.objects.filter(pk=watch.pk, ended_at=None).update(
        ended_at=Now(), generation=F("generation") + 1, next_sync_at=None, status=Status.PENDING
    )
    if ended:
        watch.refresh_from_db()
        watch.notices.all().delete()
        runs.end_runs(watch.pk, watch.generation, Outcome.ENDED)
        transaction.on_commit(lambda: queues.drop([watch.job_id]), robust=True)


def delete_app(actor: Actor, app: App) -> None:
    """Remove a client app. It and its watches end now; the rows are removed once no worker is using them."""
    actor.require("deliveries_app.delete_app")
    actor.require_app(app)
    with transaction.atomic():  # lock the app before its watches, as the claim does
        App.objects.filter(pk=app.pk, ended_at=None).update(ended_at=Now())
        watches = AppRepository.objects.filter(app=app, ended_at=None).order_by("pk")
        for watch in watches.select_related("app", "repository"):
            _end(watch)
