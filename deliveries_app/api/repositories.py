"""API operations to watch a repository, change or re-sync a watch, and stop watching."""

from typing import Annotated, Any

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from ninja import Query, Router, Status

from deliveries_app import services
from deliveries_app.api import callers, errors, paging, schemas
from deliveries_app.api.callers import (
    ASKS_HOST,
    BODY,
    NOT_WATCHED,
    QUERY,
    RESYNCS,
    WATCHES,
    WITH_BODY,
    AppToken,
    RepositoryId,
)
from deliveries_app.api.paging import After, Order
from deliveries_app.models import Status as WatchStatus
from deliveries_app.services import watch_settings
from deliveries_app.services.push_hooks import hook_url
from deliveries_app.services.watching import registered_fields
from docora.web.api import READ, documented_responses, header_parameter, prefers_async
from repositories_app.git.exceptions import GitError

router = Router(auth=AppToken(), tags=["Repositories"])

_ORDER = Order("pk", paging.Number)
_UNREADABLE = "The repository cannot be reached, or this token cannot read it. `code` says which."
_NO_REF = (
    "The repository cannot be reached, this token cannot read it, or it has no such branch or tag. `code` says which."
)
_QUOTA = "The app watches as many repositories as its quota allows."
_MALFORMED = "The body, the URL or the token is malformed, or the host is not allowed. `code` says which."
_NOT_REGISTERED = WATCHES | BODY | {404: _UNREADABLE, 409: _QUOTA, 422: _MALFORMED}


_registered = documented_responses(
    201,
    schemas.Registered,
    "The repository is watched, and the first sync is queued.",
    _NOT_REGISTERED,
    others={
        202: (
            schemas.Registered,
            "Only with `Prefer: respond-async`: the repository is watched, but its git host was not asked.",
        )
    },
)
_registered["openapi_extra"]["responses"][202]["headers"] = {
    "Preference-Applied": {"description": "`respond-async`", "schema": {"type": "string"}},
}
_registered["openapi_extra"]["parameters"] = [
    header_parameter(
        "Prefer",
        "`respond-async`: don't wait for the git host. If the repository can't be read, its first sync fails instead of this "
        "call, and `last_error` says why. `is_private` is true until Docora has read the repository without a token.",
    )
]


@router.post(
    "",
    summary="Watch a repository, or re-send it",
    auth=WITH_BODY,
    **_registered,
)
def watch_repository(
    request: HttpRequest, registration: schemas.Registration, response: HttpResponse
) -> Status[dict[str, Any]]:
    """Checks with git that the repository can be read, then starts the first sync. If the app already watches the
    repository, its token is replaced and every file is sent again, which counts as a re-sync. To avoid that, use `PUT`. A
    repository without a commit is synced after its first push."""
    app, is_async = callers.caller(request), prefers_async(request)
    token = registration.github_token or ""
    watched = services.watch_repository(
        callers.actor(request), app, registration.github_url, ask_host=not is_async, github_token=token
    )
    if is_async:
        response.headers["Preference-Applied"] = "respond-async"
    return Status(202 if is_async else 201, registered_fields(watched.watch))


@router.put(
    "",
    summary="Watch a repository, or update the watch",
    auth=WITH_BODY,
    **documented_responses(
        200,
        schemas.WatchedRepository,
        "The app already watched the repository, which now has these settings.",
        _NOT_REGISTERED | {404: _NO_REF},
        others={201: (schemas.WatchedRepository, "The repository is now watched, and its first sync is queued.")},
    ),
)
def ensure_repository(request: HttpRequest, wanted: schemas.WantedRepository) -> Status[dict[str, Any]]:
    """Idempotent: if the app already watches the repository with these settings, nothing changes and nothing is sent
    again. A new repository, token, branch or tag is checked with git first. Changing the branch or the patterns sends
    only the differences. Unlike `POST`, this never sends every file again."""
    # A field that was left out keeps its value; null resets it.
    given = wanted.model_dump(include=wanted.model_fields_set, exclude={"github_url"})
    settings = {name: "\n".join(value) if isinstance(value, list) else value or "" for name, value in given.items()}
    watched = services.ensure_watched(callers.actor(request), callers.caller(request), wanted.github_url, **settings)
    return Status(201 if watched.created else 200, schemas.watched_repository(watched.watch))


@router.api_operation(
    READ,
    "",
    summary="List watched repositories",
    **documented_responses(200, schemas.RepositoryPage, "One page of the list.", QUERY),
)
def list_repositories(
    request: HttpRequest,
    page: Annotated[int, Query(ge=1, le=1_000_000, description="The page number, starting at 1.")] = 1,
    per_page: Annotated[int, Query(ge=1, le=100, description="Repositories per page.")] = 50,
    after: After = "",
    status: Annotated[WatchStatus | None, Query(description="Only repositories with this status.")] = None,
    failing: Annotated[
        bool | None, Query(description="`true`: only repositories whose last attempt failed. `false`: only the others.")
    ] = None,
) -> dict[str, Any]:
    """Lists the repositories that the app watches, with the state of each sync. To read all of them, follow `next`:
    unlike page numbers, it misses none while others are added or removed. Pages after the last one are empty."""
    watches = callers.own_watches(request)
    if status is not None:
        watches = watches.filter(status=status)
    if failing is not None:
        watches = watches.filter(failing_since__isnull=not failing)
    paginator = Paginator(watches.order_by("pk"), per_page)
    rows, following = _ORDER.page(watches, after, per_page, skip=0 if after else (page - 1) * per_page)
    return {
        "page": page,
        "pages": paginator.num_pages,
        "total": paginator.count,
        "repositories": [schemas.watched_repository(watch) for watch in rows],
        "next": following,
    }


@router.api_operation(
    READ,
    "/{repository_id}",
    summary="Get a watched repository",
    **documented_responses(200, schemas.WatchedRepository, "The state of its sync.", NOT_WATCHED),
)
def get_repository(request: HttpRequest, repository_id: RepositoryId) -> dict[str, Any]:
    """Returns the state of one watched repository's sync and its last error."""
    return schemas.watched_repository(callers.own_watch(request, repository_id))


@router.delete(
    "/{repository_id}",
    summary="Stop watching a repository",
    **documented_responses(204, None, "The repository is no longer watched.", NOT_WATCHED),
)
def unwatch_repository(request: HttpRequest, repository_id: RepositoryId) -> Status[None]:
    """Stops all notifications about the repository, deletes included. For about a second, those that are under way still
    arrive: respond with 2xx, and don't store them. The app can keep its copy or remove it. With a quota of re-syncs, this
    counts as one."""
    services.unwatch_repository(callers.actor(request), callers.own_watch(request, repository_id))
    return Status(204, None)


@router.patch(
    "/{repository_id}/token",
    summary="Replace a repository's token",
    auth=WITH_BODY,
    **documented_responses(
        200,
        schemas.Message,
        "The new token is used from now on.",
        NOT_WATCHED
        | ASKS_HOST
        | BODY
        | {422: "The body or the token is malformed, or the repository cannot be read with it. `code` says which."},
    ),
)
def replace_token(request: HttpRequest, repository_id: RepositoryId, new: schemas.NewToken) -> dict[str, str]:
    """Checks with git that the new token works, clears the error state and starts a sync. Files that the app has
    acknowledged are not sent again."""
    watch = callers.own_watch(request, repository_id)
    try:
        services.change_watch(callers.actor(request), watch, github_token=new.github_token)
    except GitError as error:
        raise errors.unreadable(error, 422) from None
    return {"message": "Token updated successfully"}


@router.post(
    "/{repository_id}/resync",
    summary="Re-sync a repository",
    **documented_responses(202, schemas.Resync, "The re-sync is queued.", NOT_WATCHED | RESYNCS),
)
def resync_repository(request: HttpRequest, repository_id: RepositoryId) -> Status[dict[str, str]]:
    """Sends every file again as a `create`, including those that the app has acknowledged, and a `delete` for each file
    removed since. It replaces a sync that is already running."""
    watch = callers.own_watch(request, repository_id)
    run = services.resync_single(callers.actor(request), watch)
    return Status(202, {"run_id": run.run_id})


@router.post(
    "/{repository_id}/push-secret",
    summary="Create a push hook secret",
    **documented_responses(201, schemas.PushSecret, "The new secret is the only one that works now.", NOT_WATCHED),
)
def renew_push_secret(request: HttpRequest, repository_id: RepositoryId) -> Status[dict[str, str]]:
    """Returns a URL and a secret for the webhook settings of the git host. With them, Docora also checks the repository
    at each push, not only every few minutes."""
    watch = callers.own_watch(request, repository_id)
    secret = watch_settings.renew_push_secret(callers.actor(request), watch)
    return Status(201, {"secret": secret, "url": hook_url(watch)})
