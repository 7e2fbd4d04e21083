"""API operations on a repository's runs: why each one started, its progress, and its outcome."""

from typing import Annotated, Any

from django.http import HttpRequest
from ninja import Path, Query, Router

from deliveries_app.api import callers, paging, schemas
from deliveries_app.api.callers import NOT_WATCHED, QUERY, AppToken, RepositoryId
from deliveries_app.api.paging import DEFAULT_LIMIT, After, Limit, Order
from deliveries_app.models import Outcome, Reason, SyncRun
from deliveries_app.progress import live
from deliveries_app.progress.live import Progress
from docora.text import can_be_id
from docora.web.api import READ, documented_responses
from docora.web.error_codes import ErrorCode
from docora.web.errors import ApiError

router = Router(auth=AppToken(), tags=["Runs"])

_ORDER = Order("created_at", paging.Moment, newest_first=True)


@router.api_operation(
    READ,
    "/{repository_id}/runs",
    summary="List runs",
    **documented_responses(200, schemas.RunPage, "One page of the list.", NOT_WATCHED | QUERY),
)
def list_runs(
    request: HttpRequest,
    repository_id: RepositoryId,
    reason: Annotated[Reason | None, Query(description="Only runs with this reason.")] = None,
    outcome: Annotated[Outcome | None, Query(description="Only runs with this outcome.")] = None,
    is_open: Annotated[
        bool | None,
        Query(alias="open", description="`true`: only runs that haven't ended. `false`: only those that have."),
    ] = None,
    after: After = "",
    limit: Limit = DEFAULT_LIMIT,
) -> dict[str, Any]:
    """Lists the repository's first sync, changes, re-syncs and retries, newest first. Old runs are removed."""
    runs = SyncRun.objects.filter(watch=callers.own_watch(request, repository_id))
    if reason is not None:
        runs = runs.filter(reason=reason)
    if outcome is not None:
        runs = runs.filter(outcome=outcome)
    if is_open is not None:
        runs = runs.filter(outcome="") if is_open else runs.exclude(outcome="")
    page, following = _ORDER.page(runs, after, limit)
    progress = live.of_runs(page)
    return {"runs": [_run(run, progress[run.pk]) for run in page], "next": following}


@router.api_operation(
    READ,
    "/{repository_id}/runs/{run_id}",
    summary="Get a run and its progress",
    **documented_responses(
        200,
        schemas.Run,
        "The run.",
        NOT_WATCHED | {404: "The app does not watch this repository, or the repository has no such run."},
    ),
)
def get_run(
    request: HttpRequest,
    repository_id: RepositoryId,
    run_id: Annotated[str, Path(description="As in `X-Docora-Run-Id`.", example=schemas.RUN_ID)],
) -> dict[str, Any]:
    """Returns the run with its current progress. Poll it, for example every two seconds, until `outcome` is set."""
    runs = SyncRun.objects.filter(watch=callers.own_watch(request, repository_id))
    run = runs.filter(run_id=run_id).first() if can_be_id(run_id) else None
    if run is None:
        raise ApiError("Run not found: old runs are removed", 404, code=ErrorCode.RUN_NOT_FOUND)
    return _run(run, live.of_runs([run])[run.pk])


def _run(run: SyncRun, progress: Progress) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "reason": run.reason,
        "outcome": run.outcome or None,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "commit_sha": run.commit_sha or None,
        "attempts": run.attempts,
        "files_total": progress.files_total,
        "files_done": progress.files_done,
        "files_failed": progress.files_failed,
        "bytes_total": progress.bytes_total,
        "bytes_done": progress.bytes_done,
        "percent": progress.percent,
        "error": run.error or None,
    }
