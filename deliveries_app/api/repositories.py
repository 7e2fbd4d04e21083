"""The calls about repositories. Every query starts from the caller's own watches, so another app's id gives a 404."""

from collections.abc import Iterator
from typing import Annotated, Any

import orjson
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import Case, F, When
from django.http import HttpRequest, StreamingHttpResponse
from ninja import Path, Query, Router, Status

from deliveries_app import services
from deliveries_app.actors import Actor
from deliveries_app.api import schemas
from deliveries_app.api.auth import AppToken, caller
from deliveries_app.models import AppRepository, AppRepositoryQuerySet, Delivery
from deliveries_app.services import watch_settings
from docora.text import can_be_id
from docora.web.api import THROTTLED, UNAUTHORIZED, documented_responses
from docora.web.errors import ApiError
from repositories_app.git.exceptions import GitError, InvalidUrl

router = Router(auth=AppToken(), tags=["Repositories"])

MAX_BODY = 65536  # bytes of a JSON body
MANIFEST_PAGE = 2000  # rows read, and lines sent, at once
REFUSED = {401: UNAUTHORIZED, 429: THROTTLED}
NOT_WATCHED = REFUSED | {404: "The app does not watch this repository."}
WITH_BODY = AppToken(max_body=MAX_BODY)
BODY = {413: f"The body is larger than {MAX_BODY:,} bytes."}

RepositoryId = Annotated[
    str, Path(description="The id that `POST /api/repositories` returned.", example=schemas.REPOSITORY_ID)
]


@router.post(
    "",
    operation_id="watch_repository",
    summary="Watch a repository",
    auth=WITH_BODY,
    **documented_responses(
        201,
        schemas.Registered,
        "The repository is watched, and the first sync is queued.",
        REFUSED
        | BODY
        | {
            404: "The repository cannot be reached, or not with this token. The error says which.",
            422: "The body, the URL or the token is malformed, or the host is not allowed.",
        },
    ),
)
def watch_repository(request: HttpRequest, registration: schemas.Registration) -> Status[dict[str, Any]]:
    """Docora checks with git that the repository can be read, then starts the first sync. A repository without a commit
    is synced after its first push. If the app already watches the repository, its token is replaced and every file is sent
    again."""
    app = caller(request)
    try:
        watched = services.watch_repository(
            _actor(request), app, registration.github_url, registration.github_token or ""
        )
    except GitError as error:
        raise ApiError(str(error), 404) from None
    except InvalidUrl as error:
        raise ApiError(str(error), 422) from None
    except ValidationError as error:
        raise ApiError(" ".join(error.messages), 422) from None
    return Status(201, watched.as_dict())


@router.get(
    "",
    operation_id="list_repositories",
    summary="List the watched repositories",
    **documented_responses(
        200, schemas.RepositoryPage, "One page of the list.", REFUSED | {422: "`page` or `per_page` is out of range."}
    ),
)
def list_repositories(
    request: HttpRequest,
    page: Annotated[int, Query(ge=1, le=1_000_000, description="The page number, starting at 1.")] = 1,
    per_page: Annotated[int, Query(ge=1, le=100, description="Repositories per page.")] = 50,
) -> dict[str, Any]:
    """Lists the repositories that the app watches, with the state of each sync. Pages after the last one are empty."""
    paginator = Paginator(_watches(request).order_by("pk"), per_page)
    start = (page - 1) * per_page
    return {
        "page": page,
        "pages": paginator.num_pages,
        "total": paginator.count,
        "repositories": [
            schemas.watched_repository(watch) for watch in paginator.object_list[start : start + per_page]
        ],
    }


@router.get(
    "/{repository_id}",
    operation_id="get_repository",
    summary="Get one repository",
    **documented_responses(200, schemas.WatchedRepository, "The state of its sync.", NOT_WATCHED),
)
def get_repository(request: HttpRequest, repository_id: RepositoryId) -> dict[str, Any]:
    """Returns the state of one watched repository's sync and its last error."""
    return schemas.watched_repository(_watch(request, repository_id))


@router.delete(
    "/{repository_id}",
    operation_id="unwatch_repository",
    summary="Stop watching a repository",
    **documented_responses(204, None, "The repository is no longer watched.", NOT_WATCHED),
)
def unwatch_repository(request: HttpRequest, repository_id: RepositoryId) -> Status[None]:
    """Nothing more is sent, not even deletes. Whether the app keeps or removes its files is up to the app."""
    services.unwatch_repository(_actor(request), _watch(request, repository_id))
    return Status(204, None)


@router.patch(
    "/{repository_id}/token",
    operation_id="replace_token",
    summary="Replace the repository's token",
    auth=WITH_BODY,
    **documented_responses(
        200,
        schemas.Message,
        "The new token is used from now on.",
        NOT_WATCHED | BODY | {422: "The body or the token is malformed, or the token cannot reach the repository."},
    ),
)
def replace_token(request: HttpRequest, repository_id: RepositoryId, new: schemas.NewToken) -> dict[str, str]:
    """Docora first checks with git that the new token works. Then it clears the error state and starts a sync. Files
    that the app has acknowledged are not sent again."""
    watch = _watch(request, repository_id)
    try:
        watch_settings.replace_github_token(_actor(request), watch, new.github_token)
    except GitError as error:
        raise ApiError(str(error), 422) from None
    except ValidationError as error:
        raise ApiError(" ".join(error.messages), 422) from None
    return {"message": "Token updated successfully"}


@router.post(
    "/{repository_id}/resync",
    operation_id="resync_repository",
    summary="Send every file again",
    **documented_responses(202, schemas.Resync, "The re-sync is queued.", NOT_WATCHED),
)
def resync_repository(request: HttpRequest, repository_id: RepositoryId) -> Status[dict[str, str]]:
    """Starts a fresh sync of the whole repository: every file is sent as a create, and every removed file as a delete. It
    replaces a sync that is already running."""
    return Status(202, {"run_id": services.resync_single(_actor(request), _watch(request, repository_id)).run.run_id})


@router.get(
    "/{repository_id}/manifest",
    operation_id="get_manifest",
    summary="List what the app has acknowledged",
    **documented_responses(
        200, schemas.ManifestLine, "One JSON object per line.", NOT_WATCHED, media_type="application/x-ndjson"
    ),
)
def get_manifest(request: HttpRequest, repository_id: RepositoryId) -> StreamingHttpResponse:
    """Lists every file that the app has acknowledged, one JSON object per line, in byte order of the paths. Compare it
    with your copy to find out whether you need a re-sync. Files that are being sent are not listed."""
    watch = _watch(request, repository_id)
    return StreamingHttpResponse(_manifest(watch.pk), content_type="application/x-ndjson")


def _manifest(watch_pk: int) -> Iterator[bytes]:
    """Yield the manifest in pages, one query each, so that neither memory nor a transaction grows with the repository.

    Each page uses the resend floor at the time it is read, so files that a re-sync has cleared meanwhile are not listed.
    The size is unknown for imported files that have not been compared yet (`Delivery.known_size`).
    """
    rows = Delivery.objects.filter(
        watch_id=watch_pk, watch__ended_at=None, acknowledged=True, generation__gte=F("watch__resend_floor")
    ).order_by("path")
    columns = rows.values_list("path", "sha", Case(When(source_key__isnull=False, then=F("size"))))
    last = ""
    while page := list(columns.filter(path__gt=last)[:MANIFEST_PAGE]):
        yield b"".join(map(_manifest_line, page))
        last = page[-1][0]


def _manifest_line(row: tuple[str, str, int | None]) -> bytes:
    return orjson.dumps(dict(zip(("path", "sha", "size"), row, strict=True)), option=orjson.OPT_APPEND_NEWLINE)


def _watches(request: HttpRequest) -> AppRepositoryQuerySet:
    return AppRepository.objects.alive().filter(app=caller(request)).select_related("app", "repository")


def _watch(request: HttpRequest, repository_id: str) -> AppRepository:
    """Return the caller's watch of this repository. Raise `NotFound` for any other id."""
    watches = _watches(request).filter(repository__repository_id=repository_id)
    watch = watches.first() if can_be_id(repository_id) else None
    if watch is None:
        raise services.NotFound("Repository not found: GET /api/repositories lists what this app watches")
    return watch


def _actor(request: HttpRequest) -> Actor:
    return Actor.of_app(caller(request), address=request.META.get("REMOTE_ADDR", ""))
