"""What pydantic found wrong with a call, as a sentence for whoever wrote the call."""

from collections.abc import Mapping, Sequence
from typing import Any

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
