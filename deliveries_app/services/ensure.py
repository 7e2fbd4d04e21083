"""Make a watch what an app wants it to be, and change nothing if it already is."""

from dataclasses import dataclass

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository
from deliveries_app.services import watch_settings
from deliveries_app.services.watching import AlreadyWatched, watch_repository
from repositories_app.git import remote


@dataclass(frozen=True)
class Ensured:
    """The watch. `created`: it is new. `changed`: it already existed, and something was changed."""

    watch: AppRepository
    created: bool
    changed: bool


def ensure_watched(actor: Actor, app: App, url: str, *, token: str | None = None) -> Ensured:
    """Watch the repository as wanted, and do nothing if the app already does. None keeps a token, or starts without one.

    A new token, and a new repository, are checked with git first. Raises the errors of `watch_repository`.
    """
    actor.require("deliveries_app.add_apprepository")
    actor.require_app(app)
    parsed = remote.parse_url(url)
    try:
        return Ensured(watch_repository(actor, app, url, token or "", must_be_new=True).watch, True, True)
    except AlreadyWatched as error:
        watch = error.watch
    changed = False
    if token is not None and token != watch.github_token:
        watch_settings.replace_github_token(actor, watch, token)
        changed = True
    if parsed.spelled != watch.github_url:
        AppRepository.objects.filter(pk=watch.pk).update(github_url=parsed.spelled)
        watch.refresh_from_db()
        changed = True
    return Ensured(watch, False, changed)
