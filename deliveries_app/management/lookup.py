"""The rows that ids on the command line name; an id that names none is one sentence, and so is what a service refuses."""

from django.core.management.base import CommandError
from django.db.models import Model, QuerySet

from deliveries_app.models import App, AppRepository, AppRepositoryQuerySet
from repositories_app.models import Repository


def app_of(app_id: str) -> App:
    return _first(App.objects.filter(ended_at=None), {"app_id": app_id}, f"There is no app {app_id}; see list_apps.")


def watches_of(app: App | None, repository_id: str | None = None) -> AppRepositoryQuerySet:
    """What the app watches, or all apps, or one of it."""
    watches = AppRepository.objects.alive().select_related("app", "repository")
    if app:
        watches = watches.filter(app=app)
    return watches.filter(repository__repository_id=repository_id) if repository_id else watches


def watch_of(app_id: str, repository_id: str) -> AppRepository:
    app = app_of(app_id)
    nothing = f"{app} does not watch {repository_id}; see list_watches {app_id}."
    return _first(watches_of(app), {"repository__repository_id": repository_id}, nothing)


def repository_of(repository_id: str) -> Repository:
    nothing = f"There is no repository {repository_id}; see list_watches."
    return _first(Repository.objects.all(), {"repository_id": repository_id}, nothing)


def refusal(error: Exception) -> CommandError:
    """What a service has against it, in its own words."""
    return CommandError(" ".join(getattr(error, "messages", [str(error)])))


def _first[M: Model](rows: QuerySet[M], ids: dict[str, str], nothing: str) -> M:
    # Databases refuse the question for what is no text.
    found = rows.filter(**ids).first() if all(value.isprintable() for value in ids.values()) else None
    if found is None:
        raise CommandError(nothing.encode(errors="replace").decode())
    return found
