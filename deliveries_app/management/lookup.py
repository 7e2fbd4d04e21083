"""The base class of commands that call services, and functions that find the rows named by arguments."""

from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db.models import Model, QuerySet

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, AppRepositoryQuerySet, BulkOperation
from deliveries_app.services import NotCheckable, NotFound
from deliveries_app.services.keys import KeyRotationError
from docora.text import can_be_id
from repositories_app.git.exceptions import GitError, InvalidUrl
from repositories_app.models import Repository


class ServiceCommand(BaseCommand):
    """A command that calls services. Their errors, whose messages are for the user, become `CommandError`s."""

    @property
    def actor(self) -> Actor:
        return Actor.command()

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except (ValidationError, InvalidUrl, GitError, KeyRotationError, NotCheckable, NotFound) as error:
            message = " ".join(getattr(error, "messages", [str(error)]))
            raise CommandError(message if message.endswith(".") else f"{message}.") from None


def app_of(app_id: str) -> App:
    """Return the app. Raises `CommandError` if there is none, as the functions below do."""
    return _get(App.objects.filter(ended_at=None), {"app_id": app_id}, f"There is no app {app_id}; see list_apps.")


def watches_of(app: App | None) -> AppRepositoryQuerySet:
    """Return the watches of one app or of all apps."""
    watches = AppRepository.objects.alive().select_related("app", "repository")
    return watches.filter(app=app) if app else watches


def watch_of(app_id: str, repository_id: str) -> AppRepository:
    app = app_of(app_id)
    missing = f"{app} does not watch {repository_id}; see list_watches {app_id}."
    return _get(watches_of(app), {"repository__repository_id": repository_id}, missing)


def repository_of(repository_id: str) -> Repository:
    missing = f"There is no repository {repository_id}; see list_watches."
    return _get(Repository.objects.all(), {"repository_id": repository_id}, missing)


def operation_of(operation_id: str, hint: str = "") -> BulkOperation:
    missing = f"There is no such bulk operation. {hint}".strip()
    return _get(BulkOperation.objects.all(), {"operation_id": operation_id}, missing)


def _get[M: Model](rows: QuerySet[M], ids: dict[str, str], missing: str) -> M:
    row = rows.filter(**ids).first() if all(map(can_be_id, ids.values())) else None
    if row is None:
        raise CommandError(missing.encode(errors="replace").decode())  # an argument may contain surrogates
    return row
