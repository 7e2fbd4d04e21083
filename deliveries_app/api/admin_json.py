"""The admin JSON: the admin's actions for scripts that signed-in staff run (wire contract §3)."""

import json
import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate

from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.request import RawPostDataException
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.decorators.http import require_GET, require_POST

from deliveries_app import actors, services
from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, BulkOperation
from deliveries_app.permissions import Permission
from deliveries_app.progress import live
from deliveries_app.reports.status import watch_fields
from docora.db.connection import is_outage
from docora.text import can_be_id
from docora.web.errors import FORBIDDEN, ApiError, database_down, json_error

logger = logging.getLogger(__name__)

PER_PAGE = 50

type Function[**P] = Callable[Concatenate[HttpRequest, Actor, P], dict[str, Any]]


def json_view[**P](failure: str) -> Callable[[Function[P]], Callable[..., HttpResponse]]:
    """Return a decorator that turns a function into a view, which responds with `{"data": …}` or `{"error": …}`.

    `failure` is the error message of a 500.
    """

    def decorate(function: Function[P]) -> Callable[..., HttpResponse]:
        @csrf_protect
        @wraps(function)
        def csrf_checked(request: HttpRequest, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            try:
                return JsonResponse({"data": function(request, Actor.of_request(request), *args, **kwargs)})
            except ApiError as error:
                return error.response()
            except services.NotFound as error:
                return json_error(str(error), 404)
            except services.NotFailed as error:
                return json_error(str(error), 409)
            except PermissionDenied:
                return json_error(FORBIDDEN, 403)
            except Exception as error:
                if is_outage(error):
                    return database_down(request, error)
                logger.exception("admin_call_failed", extra={"path": request.path})
                return json_error(failure, 500)

        @csrf_exempt  # `csrf_checked` checks the token; anonymous calls get a 401 with or without one
        @wraps(function)
        def view(request: HttpRequest, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            if not request.user.is_authenticated:
                return json_error("Sign in to the admin first", 401)
            return csrf_checked(request, *args, **kwargs)

        return view

    return decorate


@require_POST
@json_view("Failed to queue re-sync")
def resync(request: HttpRequest, actor: Actor) -> dict[str, Any]:
    watch = _watch(request, actor, Permission.RESYNC)
    services.resync_single(actor, watch)
    return {"message": "Re-sync queued", "job_id": watch.job_id}


@require_POST
@json_view("Failed to start bulk re-sync")
def resync_app(request: HttpRequest, actor: Actor, app_id: str) -> dict[str, Any]:
    _require(actor, App, Permission.RESYNC)
    app = _first(App.objects.filter(app_id=app_id, ended_at=None), "App not found")
    return _started("Bulk re-sync started", services.resync_by_app(actor, app))


@require_POST
@json_view("Failed to queue retry")
def retry(request: HttpRequest, actor: Actor) -> dict[str, Any]:
    watch = _watch(request, actor, Permission.RETRY)
    services.retry_single(actor, watch)
    return {"message": "Retry queued", "job_id": watch.job_id}


@require_POST
@json_view("Failed to start bulk retry")
def retry_app(request: HttpRequest, actor: Actor, app_id: str) -> dict[str, Any]:
    _require(actor, AppRepository, Permission.RETRY)
    app = _first(App.objects.filter(app_id=app_id, ended_at=None), "No failed notifications for this app")
    return _started("Bulk retry started", services.retry_by_app(actor, app))


@require_POST
@json_view("Failed to start bulk retry")
def retry_all(request: HttpRequest, actor: Actor) -> dict[str, Any]:
    _require(actor, AppRepository, Permission.RETRY)
    return _started("Bulk retry started", services.retry_all(actor))


def _started(message: str, operation: BulkOperation) -> dict[str, Any]:
    return {"message": message, "operation_id": operation.operation_id, "total": operation.total}


@require_GET
@json_view("Failed to list repositories")
def repositories(request: HttpRequest, actor: Actor) -> dict[str, Any]:
    """List the watches, filtered by `app_id`, `status` and `search`, in pages of 50."""
    _require(actor, AppRepository)
    watches = AppRepository.objects.alive().select_related("app", "repository").order_by("app__name", "pk")
    if app_id := request.GET.get("app_id"):
        watches = watches.filter(app__app_id=app_id)
    if status := request.GET.get("status"):
        watches = watches.filter(status=status)
    for word in request.GET.get("search", "").split():
        watches = watches.filter(repository__canonical_url__icontains=word)
    page = Paginator(watches, PER_PAGE).get_page(request.GET.get("page"))
    return {
        "page": page.number,
        "pages": page.paginator.num_pages,
        "total": page.paginator.count,
        "repositories": [watch_fields(watch) for watch in page.object_list],
    }


@require_GET
@json_view("Failed to read progress")
def progress(request: HttpRequest, actor: Actor, operation_id: str) -> dict[str, Any]:
    if not actors.can_view_operations(request.user):
        raise PermissionDenied
    operation = _operation(operation_id)
    return {"operation_id": operation.operation_id, **live.of_operation(operation).as_dict()}


@require_POST
@json_view("Failed to cancel")
def cancel(request: HttpRequest, actor: Actor, operation_id: str) -> dict[str, Any]:
    # Check the permission before revealing whether the operation exists.
    actor.require(Permission.RESYNC, Permission.RETRY)
    services.cancel_operation(actor, _operation(operation_id))
    return {"message": "Cancellation requested"}


def _require(actor: Actor, model: type[Model], *permissions: str) -> None:
    """Require what the same button in the admin needs: its permission, and the one to view the page that has the button."""
    if actor.user is None or not actors.can_view(actor.user, model):
        raise PermissionDenied
    if permissions:
        actor.require(*permissions)


def _operation(operation_id: str) -> BulkOperation:
    return _first(BulkOperation.objects.filter(operation_id=operation_id), "Operation not found or expired")


def _first[M: Model](rows: QuerySet[M], missing: str) -> M:
    row = rows.first()
    if row is None:
        raise services.NotFound(missing)
    return row


def _watch(request: HttpRequest, actor: Actor, permission: str) -> AppRepository:
    """Return the watch that the body names."""
    body = _body(request)
    app_id, repository_id = body.get("app_id"), body.get("repository_id")
    if not (isinstance(app_id, str) and isinstance(repository_id, str) and app_id and repository_id):
        raise ApiError("app_id and repository_id are required", 400)
    _require(actor, AppRepository, permission)
    watches = AppRepository.objects.alive().filter(app__app_id=app_id, repository__repository_id=repository_id)
    if not (can_be_id(app_id) and can_be_id(repository_id)):
        watches = watches.none()
    return _first(watches.select_related("app", "repository"), "App-repository link not found")


def _body(request: HttpRequest) -> dict[str, Any]:
    try:
        body = json.loads(request.body or b"{}")
    except RequestDataTooBig:
        raise ApiError(f"The body must have at most {settings.DATA_UPLOAD_MAX_MEMORY_SIZE:,} bytes", 400) from None
    except (ValueError, RecursionError, RawPostDataException):  # the last one: the CSRF check has read a form
        raise ApiError("The body must be JSON", 400) from None
    if not isinstance(body, dict):
        raise ApiError("The body must be a JSON object", 400)
    return body
