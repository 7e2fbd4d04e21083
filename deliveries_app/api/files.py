"""API operations on a repository's files: failures, deliveries, the manifest, and resending."""

import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

import orjson
from django.db.models import Case, F, When
from django.http import HttpRequest, StreamingHttpResponse
from ninja import Query, Router, Status

from deliveries_app import services
from deliveries_app.api import callers, paging, schemas
from deliveries_app.api.callers import BODY, NOT_WATCHED, QUERY, TWO_MANIFESTS, WITH_BODY, AppToken, RepositoryId
from deliveries_app.api.paging import DEFAULT_LIMIT, After, Limit, Order
from deliveries_app.models import AppRepository, Delivery, DeliveryFailure, FailureKind
from deliveries_app.models.deliveries import DeliveryState, Kind
from deliveries_app.reports.next_attempt import due_at
from docora.web.api import READ, documented_responses
from docora.web.concurrency import ConcurrencyLimit

router = Router(auth=AppToken(), tags=["Files"])

MANIFEST_PAGE = 2000  # rows read, and lines sent, at a time
MAX_MANIFEST_LIMIT = 10_000
_FAILURES = Order("pk", paging.Number)
_DELIVERIES = Order("path", paging.Text)
_PAGED = NOT_WATCHED | QUERY
_NDJSON = "application/x-ndjson"
STREAMS = ConcurrencyLimit("manifests without a limit", per_caller=2, total=4)


@router.api_operation(
    READ,
    "/{repository_id}/failures",
    summary="List failures",
    **documented_responses(200, schemas.FailurePage, "One page of the list.", _PAGED),
)
def list_failures(
    request: HttpRequest,
    repository_id: RepositoryId,
    kind: Annotated[FailureKind | None, Query(description="Only failures of this kind.")] = None,
    after: After = "",
    limit: Limit = DEFAULT_LIMIT,
) -> dict[str, Any]:
    """Lists the files that the app has not accepted, and those that can't be sent, each with the reason. Of those that can't
    be sent, at most 1,000 of a sync are listed. Files that patterns or a transform leave out are only counted, in `left_out`
    of the repository."""
    watch = callers.own_watch(request, repository_id)
    rows = DeliveryFailure.objects.filter(watch=watch)
    if kind is not None:
        rows = rows.filter(kind=kind)
    page, following = _FAILURES.page(rows, after, limit)
    held = Delivery.objects.filter(watch=watch, path__in=[row.path for row in page], hold_until__isnull=False)
    hold_until = dict(held.values_list("path", "hold_until"))
    return {"failures": [_failure(row, watch, hold_until.get(row.path)) for row in page], "next": following}


def _failure(row: DeliveryFailure, watch: AppRepository, hold_until: datetime | None) -> dict[str, Any]:
    is_retried = row.kind == FailureKind.FAILED
    return {
        "path": row.path,
        "kind": row.kind,
        "cause": row.cause,
        "status": row.status_code,
        "message": row.message,
        "response": row.body,
        "attempts": row.attempts if is_retried else 0,
        "first_at": row.first_at,
        "last_at": row.last_at,
        "next_attempt_at": due_at(watch, hold_until) if is_retried else None,
    }


@router.api_operation(
    READ,
    "/{repository_id}/deliveries",
    summary="List deliveries",
    **documented_responses(200, schemas.DeliveryPage, "One page of the list.", _PAGED),
)
def list_deliveries(
    request: HttpRequest,
    repository_id: RepositoryId,
    path: Annotated[str, Query(max_length=1024, description="Only this file.", example="src/index.ts")] = "",
    state: Annotated[DeliveryState | None, Query(description="Only files in this state.")] = None,
    after: After = "",
    limit: Limit = DEFAULT_LIMIT,
) -> dict[str, Any]:
    """Lists the last notification about each file and whether the app has accepted it, in byte order of the paths. Once
    the app has accepted the delete of a file, the file is no longer listed."""
    watch = callers.own_watch(request, repository_id)
    rows = Delivery.objects.filter(watch=watch)
    if path:
        rows = rows.filter(path=path.replace("\x00", "\ufffd"))
    if state is DeliveryState.UNCONFIRMED:
        rows = rows.filter(acknowledged=False)
    elif state is DeliveryState.ACKNOWLEDGED:
        rows = rows.filter(acknowledged=True, generation__gte=watch.resend_floor)
    elif state is DeliveryState.CLEARED:
        rows = rows.filter(acknowledged=True, generation__lt=watch.resend_floor)
    page, following = _DELIVERIES.page(rows, after, limit)
    return {"deliveries": [_delivery(row, watch) for row in page], "next": following}


def _delivery(row: Delivery, watch: AppRepository) -> dict[str, Any]:
    return {
        "path": row.path,
        "event": Kind(row.kind),
        "state": row.state(watch.resend_floor),
        "sha": row.sha,
        "size": row.known_size,
        "sequence": row.sequence,
        "failed_attempts": row.attempts,
        "updated_at": row.updated_at,
        "next_attempt_at": row.hold_until,
    }


@router.post(
    "/{repository_id}/resend",
    summary="Send some files again",
    auth=WITH_BODY,
    **documented_responses(202, schemas.Resent, "The files are queued.", NOT_WATCHED | BODY),
)
def resend_files(request: HttpRequest, repository_id: RepositoryId, chosen: schemas.Paths) -> Status[dict[str, Any]]:
    """Sends these files again, each as a `create` with a new sequence, or as a `delete` if it is no longer in the
    repository. No other file that the app has acknowledged is sent again."""
    watch = callers.own_watch(request, repository_id)
    resent = services.resend_files(callers.actor(request), watch, chosen.paths)
    run_id = resent.run.run_id if resent.run else None
    return Status(202, {"run_id": run_id, "files": resent.files, "unknown": resent.unknown})


@router.api_operation(
    READ,
    "/{repository_id}/manifest",
    summary="Get the manifest",
    **documented_responses(
        200, schemas.ManifestLine, "One JSON object per line.", _PAGED | TWO_MANIFESTS, media_type=_NDJSON
    ),
)
def get_manifest(
    request: HttpRequest,
    repository_id: RepositoryId,
    after: Annotated[
        str, Query(max_length=1024, description="Only paths after this one, in byte order.", example="src/index.ts")
    ] = "",
    limit: Annotated[
        int | None,
        Query(
            ge=1,
            le=MAX_MANIFEST_LIMIT,
            description="The maximum number of lines. Without a limit, all are sent.",
            example=1000,
        ),
    ] = None,
) -> StreamingHttpResponse:
    """Lists every file that the app has acknowledged, one JSON object per line, in byte order of the paths. Compare it
    with your copy to find out whether you need a re-sync. Files that are being sent are not listed.

    Docora prepares at most two manifests without a `limit` for an app at the same time; another one gets 429. To read a
    manifest in pages, pass a `limit`, and the last path of each page as `after`. A page with fewer lines than `limit` is
    the last one."""
    watch = callers.own_watch(request, repository_id)
    after = after.replace("\x00", "\ufffd")
    pages = _manifest(watch.pk, after, limit or sys.maxsize)
    if limit is None:
        pages = _with_slot(watch.app_id, pages)
        next(pages)  # take the slot before the response begins
    return StreamingHttpResponse(pages, content_type=_NDJSON)


def _with_slot(app_pk: int, pages: Iterator[bytes]) -> Iterator[bytes]:
    """Yield an empty page, and then the pages. From the first one on, this counts towards the app's limit until it ends."""
    with STREAMS.slot(app_pk):
        yield b""
        yield from pages


def _manifest(watch_pk: int, after: str, limit: int) -> Iterator[bytes]:
    """Yield the manifest in pages, one query each, so that neither memory nor a transaction grows with the repository.

    Each page uses the resend floor at the time it is read, so files that a re-sync clears in the meantime are not listed.
    The size is unknown for imported files that have not been compared yet (`Delivery.known_size`).
    """
    rows = Delivery.objects.filter(
        watch_id=watch_pk, watch__ended_at=None, acknowledged=True, generation__gte=F("watch__resend_floor")
    ).order_by("path")
    columns = rows.values_list("path", "sha", Case(When(source_key__isnull=False, then=F("size"))))
    while limit and (page := list(columns.filter(path__gt=after)[: min(limit, MANIFEST_PAGE)])):
        yield b"".join(map(_manifest_line, page))
        after = page[-1][0]
        limit -= len(page)


def _manifest_line(row: tuple[str, str, int | None]) -> bytes:
    return orjson.dumps(dict(zip(("path", "sha", "size"), row, strict=True)), option=orjson.OPT_APPEND_NEWLINE)
