"""Convert the OpenAPI document to template data: calls by group, with parameters, an example and the possible responses."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from deliveries_app.api.openapi import document
from docora.web.api import COMMON, SHELL
from docora.web.error_codes import ErrorCode

type Part = Mapping[str, Any]
"""A part of the OpenAPI document, such as an operation or a schema."""


@dataclass(frozen=True)
class Field:
    """A parameter, or a field of a body. Names of nested fields are dotted, and `[]` stands for the items of a list."""

    name: str
    type: str
    required: bool
    description: str


@dataclass(frozen=True)
class Answer:
    """One possible response."""

    status: int
    phrase: str
    description: str

    @property
    def is_common(self) -> bool:
        """Whether most calls share this response, so that the page explains it only once."""
        return COMMON.get(self.status) == self.description


@dataclass(frozen=True)
class Call:
    """One operation of the API. `fields` and `example` are those of the body of its successful responses."""

    anchor: str
    method: str
    path: str
    summary: str
    description: str
    parameters: list[Field]
    body_description: str
    body: list[Field]
    curl: str
    needs_signature: bool
    answers: list[Answer]
    fields: list[Field]
    example: str


def context() -> dict[str, Any]:
    """Return the context for the template `docs/api.html`."""
    groups: dict[str, list[Call]] = {}
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(_call(path, method, operation))
    scheme = next(iter(document()["components"]["securitySchemes"].values()))
    return {
        "info": document()["info"],
        "authentication": scheme["description"],
        "groups": groups,
        "common": [(status, HTTPStatus(status).phrase, description) for status, description in COMMON.items()],
        "codes": list(ErrorCode),
        "error": json.dumps(_example(document()["components"]["schemas"]["Error"])),
    }


def webhook_fields() -> dict[str, list[Field]]:
    """Return event → the fields of its body. Omit objects that are always present: their fields' dotted names show them."""
    return {
        event: [
            field
            for field in _fields(item["post"]["requestBody"]["content"]["application/json"]["schema"])
            if field.type != "object" or not field.required
        ]
        for event, item in document()["webhooks"].items()
    }


def _call(path: str, method: str, operation: Part) -> Call:
    parameters = operation.get("parameters", [])
    body = next(iter(operation.get("requestBody", {}).get("content", {}).items()), None)
    body_schema = _resolve(body[1]["schema"]) if body else {}
    responses = operation["responses"]
    # All successful responses of a call have the same body.
    media_type, content = next(iter(responses[min(responses)].get("content", {}).items()), ("", None))
    return Call(
        anchor=operation["operationId"],
        method=method.upper(),
        path=path,
        summary=operation["summary"],
        description=" ".join(operation.get("description", "").split()),
        parameters=list(map(_parameter, parameters)),
        body_description=body_schema.get("description", ""),
        body=list(_fields(body_schema)),
        curl=_curl(path, method, operation, body),
        needs_signature=any(SHELL in parameter for parameter in parameters),
        answers=[
            Answer(int(status), HTTPStatus(int(status)).phrase, responses[status]["description"])
            for status in sorted(responses)
        ],
        fields=list(_fields(content["schema"])) if content else [],
        example=_formatted(media_type, content["schema"]) if content else "",
    )


def _parameter(parameter: Part) -> Field:
    schema = _resolve(parameter["schema"])
    kind = f"{_type(schema)}, {parameter['in']}"
    return Field(parameter["name"], kind, parameter.get("required", False), _description(parameter, schema))


def _formatted(media_type: str, schema: Part) -> str:
    """Return an example as JSON. Other media types are streams with one object per line."""
    indent = 2 if media_type == "application/json" else None
    return json.dumps(_example(schema), indent=indent, ensure_ascii=False)


def _curl(path: str, method: str, operation: Part, body: tuple[str, Any] | None) -> str:
    """Return a command that can be pasted into a shell. It reads the token from `$DOCORA_TOKEN`."""
    headers, query = [], []
    is_signed = any(SHELL in parameter for parameter in operation.get("parameters", []))
    for parameter in operation.get("parameters", []):
        example = parameter.get("example", parameter["schema"].get("default"))
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", str(example))
        elif SHELL in parameter:
            headers.append(f'-H "{parameter["name"]}: {parameter[SHELL]}"')
        elif example in {None, ""}:
            continue
        else:
            query.append(f"{parameter['name']}={example}")
    url = document()["servers"][0]["url"] + path + (f"?{'&'.join(query)}" if query else "")
    verb = "" if method == "get" else f"-X {method.upper()} "
    parts = [f"curl {verb}{shlex.quote(url)}"]
    if operation.get("security"):
        parts.append('-H "Authorization: Bearer $DOCORA_TOKEN"')
    if body is not None:
        media_type, content = body
        example = content.get("example", _example(content["schema"]))
        parts.append(f"-H 'Content-Type: {media_type}'")
        text = shlex.quote(json.dumps(example))
        if is_signed:
            parts[0], text = f"BODY={text}\n{parts[0]}", '"$BODY"'
        headers.append(f"-d {text}")
    return " \\\n  ".join([*parts, *headers])


def _resolve(schema: Part) -> Part:
    """Follow references and return the actual schema. For a nullable one, return the alternative that is not null."""
    own = dict(schema)
    if reference := own.pop("$ref", None):
        return _resolve(document()["components"]["schemas"][reference.rpartition("/")[2]] | own)
    if options := own.pop("anyOf", None):
        return _resolve(next(option for option in options if option.get("type") != "null") | own)
    return schema


def _type(schema: Part) -> str:
    resolved = _resolve(schema)
    name = resolved.get("type", "anything")
    if name == "array":
        name = f"list of {_type(resolved['items'])}s"
    if any(option.get("type") == "null" for option in schema.get("anyOf", [])):
        name += " or null"
    return str(name)


def _fields(schema: Part, prefix: str = "") -> Iterator[Field]:
    """Yield the fields of an object. Nested fields follow their parent."""
    resolved = _resolve(schema)
    required = resolved.get("required", [])
    for name, field in resolved.get("properties", {}).items():
        inner = _resolve(field)
        yield Field(f"{prefix}{name}", _type(field), name in required, _description(field, inner))
        if inner.get("type") == "array":
            yield from _fields(inner["items"], f"{prefix}{name}[].")
        else:
            yield from _fields(inner, f"{prefix}{name}.")


def _description(described: Part, schema: Part) -> str:
    """Return the description, with the schema's limits added, and its values unless the description names all of them."""
    sentences = [described.get("description") or schema.get("description", "")]
    values = [f"`{value}`" for value in schema.get("enum", [])]
    if not all(value in sentences[0] for value in values):
        sentences.append(f"One of {', '.join(values)}.")
    if schema.get("default") not in (None, ""):
        sentences.append(f"Default {json.dumps(schema['default'])}.")
    if "maximum" in schema:
        sentences.append(f"At most {schema['maximum']:,}.")
    return " ".join(filter(None, sentences))


def _example(schema: Part) -> Any:
    """Return a valid value, built from the examples in the schema."""
    resolved = _resolve(schema)
    if resolved.get("examples"):
        return resolved["examples"][0]
    if resolved.get("type") == "array":
        return [_example(resolved["items"])]
    if "properties" in resolved:
        return {name: _example(field) for name, field in resolved["properties"].items()}
    return {"boolean": True, "integer": 1, "number": 1.0, "object": {}}.get(resolved.get("type", ""), "…")
