"""How an operation of the API documents its answers, the errors too."""

from collections.abc import Mapping
from typing import Any

from ninja import Schema
from pydantic import Field

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
