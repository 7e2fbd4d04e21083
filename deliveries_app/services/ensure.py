"""Create or update a watch so that it has the settings an app wants. Change nothing if it already has them."""

from dataclasses import dataclass

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository
from deliveries_app.services import watch_settings
from deliveries_app.services.watching import AlreadyWatched, validate_ref, watch_repository
from repositories_app.git.url import parse_url


@dataclass(frozen=True)
class RequestedOptions:
    """The settings of a watch, as in `watch_repository`. None keeps the current value, or the default of a new watch."""

    token: str | None = None
    ref: str | None = None
    include: str | None = None
    exclude: str | None = None


@dataclass(frozen=True)
class Ensured:
    """The watch, and whether it is new."""

    watch: AppRepository
    created: bool


def ensure_watched(actor: Actor, app: App, url: str, wanted: RequestedOptions) -> Ensured:
    """Watch the repository with the `wanted` settings. Do nothing if the app already does.

    A new repository, a new token and a new branch or tag are checked with git first. Only the differences that another
    branch or other patterns make are sent. Raises the errors of `watch_repository`.
    """
    token, ref, include, exclude = (value or "" for value in (wanted.token, wanted.ref, wanted.include, wanted.exclude))
    try:
        watched = watch_repository(actor, app, url, token, ref, include=include, exclude=exclude, must_be_new=True)
        return Ensured(watched.watch, created=True)
    except AlreadyWatched as error:
        watch = error.watch
    if wanted.token is not None and wanted.token != watch.github_token:
        # Checked together, so that a missing branch or tag does not leave the token replaced.
        next_ref = validate_ref(ref)
        watch_settings.replace_github_token(
            actor, watch, wanted.token, next_ref=next_ref if next_ref != watch.ref else ""
        )
    if wanted.ref is not None:
        watch_settings.set_ref(actor, watch, wanted.ref)
    if wanted.include is not None or wanted.exclude is not None:
        watch_settings.set_app_patterns(actor, watch, wanted.include, wanted.exclude)
    spelled = parse_url(url).spelled
    if spelled != watch.github_url:
        watch_settings.set_spelling(actor, watch, spelled)
    return Ensured(watch, created=False)
