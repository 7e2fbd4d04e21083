"""The whole API (for client apps, git hosts and probes) in one OpenAPI document, with one shape of errors."""

import json
import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from django.conf import settings
from django.core import exceptions
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from ninja import NinjaAPI
from ninja.errors import HttpError, ValidationError
from ninja.operation import Operation
from ninja.parser import Parser

from deliveries_app.api import app, errors, files, health, push_hooks, repositories, runs, webhook_schemas
from docora import __version__
from docora.db.connection import is_outage
from docora.security.crypto import DecryptionError
from docora.web.api import validation_message
from docora.web.error_codes import ErrorCode
from docora.web.errors import INTERNAL, NOT_FOUND, ApiError, database_down, json_error
from repositories_app.git.exceptions import GitError

logger = logging.getLogger(__name__)

DESCRIPTION = """Docora watches git repositories and pushes every created, updated and deleted file to the webhooks of \
client apps. With this API, an app chooses which repositories to watch and reads the state of their syncs."""


TAGS = {
    "App": "The app itself: its settings, a test ping, its signing key.",
    "Repositories": "Which repositories the app watches, and how.",
    "Files": "What was sent, what was not accepted, and sending it again.",
    "Runs": "Each sync: why it started, its progress, and its outcome.",
    "Push hooks": "For git hosts, to announce a push.",
    "Health": "For monitoring. No token is needed.",
    "Webhooks": "What Docora sends to the app.",
}


class JsonParser(Parser):
    """Explain why a body cannot be read. Ninja keeps the explanation as the cause of its own error."""

    def parse_body(self, request: HttpRequest) -> Any:
        if request.content_type != "application/json":
            raise ApiError("Send the body as JSON, with Content-Type: application/json", 422)
        try:
            return json.loads(request.body)
        except (ValueError, RecursionError):
            raise ApiError("The body is not valid JSON: check its quotes, commas and brackets", 422) from None


class Api(NinjaAPI):
    def get_openapi_operation_id(self, operation: Operation) -> str:
        """Return the name of the view. Links to the documentation and generated clients contain it, so it is a contract."""
        return operation.view_func.__name__


api = Api(
    title="Docora",
    version=__version__,
    description=DESCRIPTION,
    urls_namespace="rest",
    openapi_url=None,  # served below, at two URLs
    docs_url=None,
    servers=[{"url": settings.PUBLIC_URL}],
    parser=JsonParser(),
)
api.add_router("/api/app", app.router)
api.add_router("/api/repositories", repositories.router)
api.add_router("/api/repositories", files.router)
api.add_router("/api/repositories", runs.router)
api.add_router("/api/hooks", push_hooks.router)
api.add_router("", health.router)


@api.exception_handler(HttpError)
def _http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    cause = error.__cause__
    return cause.response() if isinstance(cause, ApiError) else json_error(str(error), error.status_code)


def _refused(request: HttpRequest, error: Any, *, status: int, code: ErrorCode | None) -> HttpResponse:
    return json_error(str(error), status, {"Retry-After": str(error.seconds)} if status == 429 else None, code=code)


_responses: dict[type[Exception], Callable[[HttpRequest, Any], HttpResponse]] = {
    ApiError: lambda _, error: error.response(),
    GitError: lambda _, error: errors.unreadable(error).response(),
    Http404: lambda _, __: json_error(NOT_FOUND, 404),
    ValidationError: lambda _, error: json_error(validation_message(error.errors), 422),
    exceptions.ValidationError: lambda _, error: json_error(" ".join(error.messages), 422),
    exceptions.TooManyFieldsSent: lambda _, __: json_error("There are too many query parameters", 422),
    **{kind: partial(_refused, status=status, code=code) for kind, (status, code) in errors.STATUSES.items()},
}
for _kind, _response in _responses.items():
    api.add_exception_handler(_kind, _response)


@api.exception_handler(Exception)
def _unexpected(request: HttpRequest, error: Exception) -> HttpResponse:
    if isinstance(error, DecryptionError):
        raise error  # DecryptionErrorMiddleware responds, as it does for pages
    if is_outage(error):
        return database_down(request, error)
    logger.error("api_call_failed", extra={"path": request.path}, exc_info=error)
    return json_error(INTERNAL, 500)


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    schema: dict[str, Any] = json.loads(json.dumps(api.get_openapi_schema(path_prefix="")))
    for operations in schema["paths"].values():
        operations.pop("head", None)  # documented by GET
        for operation in operations.values():
            operation.setdefault("security", [])  # public
    webhook_schemas.add_to(schema)
    schema["tags"] = [{"name": name, "description": description} for name, description in TAGS.items()]
    schema["info"]["contact"] = {"name": "Documentation", "url": f"{settings.PUBLIC_URL}/docs/"}
    return schema


@csrf_exempt  # other methods are a 405, not a CSRF failure
@require_safe
def openapi_json(request: HttpRequest) -> JsonResponse:
    return JsonResponse(document())
