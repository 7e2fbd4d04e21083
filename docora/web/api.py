"""Shared parts of the REST API: documented responses, bounded request bodies and error messages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.http import HttpRequest
from ninja import Schema
from pydantic import Field

from docora.security import throttle
from docora.web.error_codes import ErrorCode
from docora.web.errors import ApiError

READ = ["GET", "HEAD"]
"""The methods of a call that only reads. The server leaves out the body of a response to HEAD."""

UNAUTHORIZED = "The token is missing, unknown or expired."
THROTTLED = (
    "Too many failed attempts from this address, or, after a migration from an earlier service, many tokens used for "
    "the first time. `Retry-After` is the number of seconds to wait."
)
INTERNAL = ErrorCode.INTERNAL_ERROR.meaning
UNAVAILABLE = "The database isn't responding, is read-only or is full. Try again later."
COMMON = {401: UNAUTHORIZED, 429: THROTTLED, 500: INTERNAL, 503: UNAVAILABLE}


class Error(Schema):
    """The body of every error response."""

    error: str = Field(description="Says what to do. For people.", examples=["The field github_url is required"])
    code: ErrorCode = Field(description="Says what went wrong. For programs.", examples=["invalid_request"])
    retryable: bool = Field(description="Whether the same request may succeed later.", examples=[False])


def prefers_async(request: HttpRequest) -> bool:
    """Return whether the client prefers not to wait: `Prefer: respond-async` (RFC 7240), alone or among others."""
    preferences = request.headers.get("Prefer", "").split(",")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)


def documented_responses(
    status: int,
    model: Any,
    description: str,
    errors: Mapping[int, str],
    *,
    others: Mapping[int, tuple[Any, str]] = {},
    media_type: str = "",
) -> dict[str, Any]:
    """Return arguments for the decorator of an operation, which document its successful response and its errors.

    `others` maps the statuses of further responses to their model and description. If the body is not JSON, pass its
    `media_type`, and the schema of one line as `model`.
    """
    failures = {500: INTERNAL} | ({503: UNAVAILABLE} if 401 in errors else {})  # only probes need no database
    described = {code: text for code, (_, text) in others.items()}
    descriptions = dict(sorted({status: description, **errors, **failures, **described}.items()))
    extra: dict[int, dict[str, Any]] = {code: {"description": text} for code, text in descriptions.items()}
    if 401 in descriptions:
        extra[401]["headers"] = {"WWW-Authenticate": _header("How to authenticate.", {"type": "string"})}
    if 429 in descriptions:
        extra[429]["headers"] = {"Retry-After": _header("Seconds to wait.", {"type": "integer"})}
    if media_type:
        extra[status]["content"] = {media_type: {"schema": model.model_json_schema()}}
    models = dict.fromkeys(descriptions, Error) | {status: None if media_type else model}
    models |= {code: other for code, (other, _) in others.items()}
    return {"response": models, "openapi_extra": {"responses": extra}}


def _header(description: str, schema: dict[str, str]) -> dict[str, Any]:
    return {"description": description, "schema": schema}


def header_parameter(name: str, description: str, **more: Any) -> dict[str, Any]:
    """Return the documentation of a request's header, with `more` fields."""
    return {"in": "header", "name": name, "description": description, "schema": {"type": "string"}, **more}


_CHUNK_SIZE = 65536  # bytes


def body_chunks(request: HttpRequest, limit: int) -> Iterator[bytes]:
    """Yield the body in chunks, using constant memory.

    Raises `ApiError` above `limit` bytes, before the first chunk if Content-Length already exceeds it.
    """
    too_large = ApiError(f"The body is too large: send at most {limit:,} bytes", 413)
    content_length = request.META.get("CONTENT_LENGTH") or ""
    if content_length.isdecimal():
        if int(content_length) > limit:
            raise too_large
        read: Callable[[int], bytes] = request.read
    elif request.META.get("wsgi.input_terminated"):
        read = request.META["wsgi.input"].read
    else:
        return
    size = 0
    while chunk := read(_CHUNK_SIZE):
        size += len(chunk)
        if size > limit:
            raise too_large
        yield chunk


def read_body(request: HttpRequest, limit: int) -> None:
    """Read the whole body, chunked or not, into `request.body`. Raises `ApiError` above `limit` bytes, or if it breaks off."""
    try:
        request._body = b"".join(body_chunks(request, limit))
    except OSError:
        raise ApiError("The body ended before it was complete: send it again", 422) from None


_SOURCES = {"query": "The query parameter", "path": "The path parameter", "header": "The header"}
_EXPECTED = {
    "administrators_only": "can only be changed by an administrator",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "enum": "must be one of {expected}",
    "extra_forbidden": "is not known",
    "greater_than_equal": "must be at least {ge}",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "missing": "is required",
    "one_line": "must be a single line without NUL",
    "string_pattern_mismatch": "must be printable ASCII characters without spaces",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "too_long": "must have at most {max_length} items",
    "too_short": "must not be empty",
    "string_type": "must be a string",
    "string_unicode": "must be Unicode text without lone surrogates",
}
_NOT_AN_OBJECT = {"dict_type", "model_type", "model_attributes_type"}


def validation_message(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return all of pydantic's errors as one line that names the parameters but does not repeat their values."""
    return "; ".join(dict.fromkeys(_error_message(error) for error in errors))


def _error_message(error: Mapping[str, Any]) -> str:
    source, *names = [str(part) for part in error["loc"]]
    if source == "body":
        # The first name is the parameter of the view that receives the whole body.
        if len(names) < 2 and error["type"] in {*_NOT_AN_OBJECT, "missing"}:
            return "The body must be a JSON object, sent with Content-Type: application/json"
        subject, names = "The field", names[1:]
    else:
        subject = _SOURCES.get(source, source)
    expected = _EXPECTED.get(error["type"])
    requirement = expected.format(**error.get("ctx", {})) if expected else f"is not accepted: {error['msg']}"
    return f"{subject} {'.'.join(names)} {requirement}"


def authentication_error(request: HttpRequest, kind: str, message: str, *, challenge: str = "Bearer") -> ApiError:
    """Count a failed authentication and return the error: 401, or 429 after too many failures from this address.

    `challenge` is the value of `WWW-Authenticate`.
    """
    wait = throttle.count_failure(kind, request.META.get("REMOTE_ADDR", ""))
    if wait is None:
        return ApiError(message, 401, {"WWW-Authenticate": challenge})
    return ApiError(
        f"Too many failed attempts from this address: wait {wait} seconds.", 429, {"Retry-After": str(wait)}
    )


SHELL = "x-docora-shell"
"""OpenAPI extension for a header whose value depends on the body: a shell expression that computes it from `$BODY`."""
