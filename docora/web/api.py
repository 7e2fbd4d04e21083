"""How an operation of the API documents its answers, the errors too."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.http import HttpRequest
from ninja import Schema
from pydantic import Field

from docora.security import throttle
from docora.web.errors import ApiError

UNAUTHORIZED = "The token is missing, unknown or expired."
THROTTLED = (
    "Too many failed attempts from this address, or, after a move from an earlier service, many tokens that are used for "
    "the first time. `Retry-After` says for how many seconds to wait."
)
INTERNAL = "Something went wrong in Docora; its log has the cause."
COMMON = {401: UNAUTHORIZED, 429: THROTTLED, 500: INTERNAL}


class Error(Schema):
    """Every error has this shape."""

    error: str = Field(description="One sentence that says what to do.", examples=["The field github_url is required"])


def answers(
    status: int, model: Any, description: str, errors: Mapping[int, str] | None = None, *, media_type: str = ""
) -> dict[str, Any]:
    """Arguments for an operation's decorator: what it answers when all is well, and its errors in words.

    `media_type` is for a body that is not JSON; `model` is then one line of it.
    """
    told = dict(sorted({status: description, **(errors or {}), 500: INTERNAL}.items()))
    extra: dict[int, dict[str, Any]] = {code: {"description": words} for code, words in told.items()}
    if 401 in told:
        extra[401]["headers"] = {"WWW-Authenticate": _header("How to authenticate.", {"type": "string"})}
    if 429 in told:
        extra[429]["headers"] = {"Retry-After": _header("Seconds to wait.", {"type": "integer"})}
    if media_type:
        extra[status]["content"] = {media_type: {"schema": model.model_json_schema()}}
    models = dict.fromkeys(told, Error) | {status: None if media_type else model}
    return {"response": models, "openapi_extra": {"responses": extra}}


def _header(description: str, schema: dict[str, str]) -> dict[str, Any]:
    return {"description": description, "schema": schema}


_PIECE = 65536  # bytes


class TooLarge(ValueError):
    """The body is larger than is accepted; the message says how large it may be."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is too large: send at most {limit:,} bytes")


def pieces(request: HttpRequest, limit: int) -> Iterator[bytes]:
    """The body in pieces, in constant memory; raises `TooLarge`, before the first piece where that is possible."""
    announced = request.META.get("CONTENT_LENGTH") or ""
    if announced.isdecimal():
        if int(announced) > limit:
            raise TooLarge(limit)
        read: Callable[[int], bytes] = request.read
    elif request.META.get("wsgi.input_terminated"):
        read = request.META["wsgi.input"].read
    else:
        return
    size = 0
    while piece := read(_PIECE):
        size += len(piece)
        if size > limit:
            raise TooLarge(limit)
        yield piece


def read_body(request: HttpRequest, limit: int) -> None:
    """Make `request.body` the whole of it, chunked ones included; `ApiError` for one of more than `limit` bytes."""
    try:
        request._body = b"".join(pieces(request, limit))
    except TooLarge as error:
        raise ApiError(str(error), 413) from None
    except OSError:
        raise ApiError("The body ended before it was complete: send it again", 422) from None


_PLACES = {"query": "The query parameter", "path": "The path parameter", "header": "The header"}
_EXPECTED = {
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le}",
    "missing": "is required",
    "string_pattern_mismatch": "must be printable ASCII characters without spaces",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "string_type": "must be a string",
    "string_unicode": "must be Unicode text without lone surrogates",
}
_NO_OBJECT = {"dict_type", "model_type", "model_attributes_type"}


def sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """All of it in one line; the names are the call's own, what was sent is not repeated."""
    return "; ".join(dict.fromkeys(_told(error) for error in errors))


def _told(error: Mapping[str, Any]) -> str:
    source, *names = [str(part) for part in error["loc"]]
    if source == "body":
        # The first name is the view's own for the whole body.
        if len(names) < 2 and error["type"] in {*_NO_OBJECT, "missing"}:
            return "The body must be a JSON object, sent with Content-Type: application/json"
        place, names = "The field", names[1:]
    else:
        place = _PLACES.get(source, source)
    expected = _EXPECTED.get(error["type"])
    words = expected.format(**error.get("ctx", {})) if expected else f"is not accepted: {error['msg']}"
    return f"{place} {'.'.join(names)} {words}"


def refusal(request: HttpRequest, kind: str, words: str) -> ApiError:
    """The answer to a failed authentication: 401, or 429 when there were too many from this address."""
    wait = throttle.count_failure(kind, request.META.get("REMOTE_ADDR", ""))
    if wait is None:
        return ApiError(words, 401, {"WWW-Authenticate": "Bearer"})
    return ApiError(
        f"Too many failed attempts from this address: wait {wait} seconds.", 429, {"Retry-After": str(wait)}
    )


SHELL = "x-docora-shell"
"""Of a header that no example can stand for, since it is made from the body: the shell's words for it, with the body in
`$BODY`."""
