"""JSON Schemas of what Docora sends to apps (wire contract §1): the `webhooks` of the OpenAPI document.

`webhooks/payloads.py` builds the bodies. The tests validate bodies that were really sent against these schemas.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema, models_json_schema

from deliveries_app.models import Reason
from deliveries_app.sync.drift import MAX_WAITS
from deliveries_app.webhooks.payloads import PING_REASON, VERIFY_REASON
from docora.text import PUBLIC_ID
from docora.web.api import header_parameter
from repositories_app.git.exceptions import Cause


def _optional(description: str) -> Any:
    """Return a field that may be missing, but is never null."""
    return Field(default=None, description=description, json_schema_extra=_without_default)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


_Sha = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Commit = Annotated[
    str,
    Field(
        pattern="^([0-9a-f]{40}|[0-9a-f]{64})$",
        description="The commit that was synced: 40 hexadecimal digits, or 64 in a repository that uses SHA-256.",
    ),
]
_Time = Annotated[
    str,
    Field(
        description="The time of this attempt: ISO 8601, UTC, with milliseconds.",
        json_schema_extra={"format": "date-time"},
    ),
]


class NotifiedRepository(_Body):
    repository_id: str = Field(
        description="The repository's id. It is the same for every app that watches the repository.",
        pattern=f"^{PUBLIC_ID}$",
    )
    github_url: str = Field(description="The repository's URL, spelled as your app sent it.")
    owner: str = Field(description="The part of the URL before the name. It may contain slashes.")
    name: str = Field(description="The last part of the URL, without `.git`.")


class NotifiedChunk(_Body):
    id: str = Field(description="Identifies one attempt to send the file. All of its chunks share it.")
    index: int = Field(description="The position of this chunk, starting at 0.", ge=0)
    total: int = Field(description="The number of chunks.", ge=1)


class NotifiedFile(_Body):
    path: str = Field(description="The path from the root of the repository, separated by `/`. At most 1,024 bytes.")
    sha: _Sha = Field(description="The hexadecimal SHA-256 of the file's content. This is not git's blob id.")
    size: int = Field(description="The size of the whole content in bytes.", ge=0)
    content: str = Field(description="The content: plain text, base64, or one piece of the whole file's base64.")
    content_encoding: Literal["base64"] | SkipJsonSchema[None] = _optional(
        "`base64`. Omitted if `content` is plain text."
    )
    chunk: NotifiedChunk | SkipJsonSchema[None] = _optional("Only in the pieces of a large file.")


class DeletedFile(_Body):
    path: str = Field(description="The path from the root of the repository, separated by `/`. At most 1,024 bytes.")
    sha: _Sha = Field(
        description="The hexadecimal SHA-256 of the content that your app last acknowledged or, if there is none, was "
        "last sent. Delete the file whatever its content is."
    )


class Create(_Body):
    """A file and its content."""

    repository: NotifiedRepository
    file: NotifiedFile
    commit_sha: _Commit
    timestamp: _Time


class Update(_Body):
    """A file and its new content."""

    repository: NotifiedRepository
    file: NotifiedFile
    previous_sha: _Sha = Field(description="The `sha` that your app last acknowledged for this path.")
    commit_sha: _Commit
    timestamp: _Time


class Delete(_Body):
    """A file that is gone."""

    repository: NotifiedRepository
    file: DeletedFile
    commit_sha: _Commit
    timestamp: _Time


class NotifiedError(_Body):
    type: Literal["git_failure"] = Field(description="Always `git_failure`.")
    message: str = Field(description="A readable description of the error and what to do. It never contains a token.")
    reason: Cause = Field(description=", ".join(f"`{cause}`" for cause in Cause) + ".")


class CircuitBreaker(_Body):
    status: Literal["open"] = Field(description="Always `open`: Docora pauses syncing this repository for a while.")
    consecutive_failures: int = Field(description="The number of failures in a row so far.", ge=0)
    threshold: int = Field(description="The number of failures in a row that opens the circuit.", ge=1)
    cooldown_until: str = Field(
        description="When Docora tries the repository again.", json_schema_extra={"format": "date-time"}
    )


class SyncFailed(_Body):
    """The repository cannot be read."""

    event: Literal["sync_failed"] = Field(description="Always `sync_failed`.")
    repository: NotifiedRepository
    error: NotifiedError
    circuit_breaker: CircuitBreaker
    retry_count: int = Field(description="The number of attempts this sync has used.", ge=0)
    timestamp: _Time


class SyncCompleted(_Body):
    """Your app has acknowledged everything of a commit."""

    event: Literal["sync_completed"] = Field(description="Always `sync_completed`.")
    repository: NotifiedRepository
    commit_sha: _Commit
    files: int = Field(description="The number of files your app should have now.", ge=0)
    tree_sha256: _Sha = Field(
        description="The SHA-256 of the lines `{sha}  {path}` (two spaces, each ending with a line feed) for all these "
        "files, sorted by the bytes of their paths."
    )
    timestamp: _Time


class Verify(_Body):
    """A request to compare your app's copy with what Docora has sent."""

    event: Literal["verify"] = Field(description="Always `verify`.")
    repository: NotifiedRepository
    commit_sha: _Commit
    tree_sha256: _Sha = Field(
        description="The hash of the files your app should have now, computed as in `sync_completed`."
    )
    after: str = Field(description="List the files after this path. Empty in the first request.")
    limit: int = Field(description="The most files to list in this response.", ge=1)
    timestamp: _Time


class VerifiedFile(_Body):
    path: str = Field(description="The path from the root of the repository, separated by `/`.")
    sha: _Sha = Field(description="The hexadecimal SHA-256 of the content your app has.")


class SameCopy(_Body):
    """Your app's copy is the same."""

    tree_sha256: _Sha = Field(description="The `tree_sha256` of the request.")


class CopyPage(_Body):
    """Some files of your app's copy."""

    files: list[VerifiedFile] = Field(
        description="The files after `after`, in byte order of their paths, at most `limit`."
    )
    next: str | None = Field(description="The path of the last file if there are more, else null.")


class PingBody(_Body):
    """A test."""

    event: Literal["ping"] = Field(description="Always `ping`.")
    timestamp: _Time


EVENTS: dict[str, tuple[type[BaseModel], str, str]] = {
    "create": (Create, "A file has this content", "Write it, whatever was there before."),
    "update": (Update, "A file has new content", "Write it, as after `create`."),
    "delete": (Delete, "A file is gone", "Remove it. If it isn't there, still respond with 2xx."),
    "sync_failed": (SyncFailed, "The repository cannot be read", "Keep your copy. Docora retries automatically."),
    "sync_completed": (
        SyncCompleted,
        "Your app has acknowledged a whole commit",
        "Compare the hash with that of your copy. Sent only if it is turned on.",
    ),
    "verify": (
        Verify,
        "A check of your app's copy",
        "Respond with the same `tree_sha256` if your copy has this hash, otherwise with its files. Sent only if it is turned on "
        "and a check is requested.",
    ),
    "ping": (PingBody, "A test of the endpoint", "Respond with 2xx. Your app doesn't have to implement it."),
}
"""Event → model of its body, summary, and what the app should do. An event is the last part of the URL."""

HEADERS = {
    "X-Docora-App-Id": "Your app's id.",
    "X-Docora-Timestamp": "The time of this attempt in Unix seconds.",
    "X-Docora-Signature": "`sha256=` followed by the hexadecimal HMAC-SHA256 of the timestamp, a dot and the body. It does not cover "
    "the `webhook-id`.",
    "X-Docora-Run-Id": "The sync this notification belongs to. Quote it when you ask an administrator about it. A `ping`, a `verify` "
    "and most `sync_failed` belong to no run that the API knows.",
    "X-Docora-Reason": f"Why it is sent: {', '.join(f'`{reason}`' for reason in Reason.values)}, `{VERIFY_REASON}` or `{PING_REASON}`.",
    "X-Docora-Sequence": "A number that increases with every new notification about a path. Not signed: read it from the "
    "`webhook-id`.",
    "webhook-id": "Identifies the notification. It is the same for every retry and never reused. After `msg_` it holds the "
    "watch and the sequence; for a chunk, also the chunk's id and index.",
    "webhook-timestamp": "The time of this attempt in Unix seconds.",
    "webhook-signature": "The Standard Webhooks signature, over the id, the timestamp and the body. Up to two, separated by a space, "
    "while a key is being replaced.",
}
"""Header of every notification → its description."""

_RESPONSES = {
    "2XX": "Accepted. Respond once the file is stored.",
    "429": "Too many requests. Docora sends the same request again after `Retry-After`, or after a short wait. After some "
    "repetitions, it counts as not accepted.",
    "default": "Not accepted. It is sent again.",
}
_PAUSES = {"410": "Stop sending notifications. Docora pauses your app after this response to three files."}
_MISSING = "Accepted if your app may not have the file and is known to work, for example because it accepts a `/ping`."
_RESPONSES_TO = {
    "create": _RESPONSES | _PAUSES,
    "update": _RESPONSES | _PAUSES,
    "delete": _RESPONSES | {"404": _MISSING, "410": _MISSING},
    "sync_failed": {
        "2XX": "Accepted.",
        "410": "Not accepted. It is not sent again.",
        "default": "Not accepted. It is sent again, with growing delays, for a day.",
    },
    "sync_completed": _RESPONSES
    | {
        "2XX": "Accepted.",
        "429": "Too many requests. Docora puts your app on hold for `Retry-After`, or for some seconds, and then sends it again. "
        "This uses up no attempt, so Docora repeats it until your app responds differently.",
    },
    "ping": {
        "2XX": "Accepted.",
        "410": "Stop sending notifications. Docora pauses your app after this response to a test.",
        "default": "Not accepted. It is not sent again.",
    },
}


def add_to(document: dict[str, Any]) -> None:
    """Add the `webhooks` and their schemas to an OpenAPI document."""
    models: list[type[BaseModel]] = [*(model for model, _, _ in EVENTS.values()), SameCopy, CopyPage]
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    document["components"]["schemas"] |= definitions["$defs"]
    document["webhooks"] = {
        event: {
            "post": {
                "operationId": f"on_{event}",
                "summary": summary,
                "description": description,
                "tags": ["Webhooks"],
                "security": [],
                "parameters": [header_parameter(name, text, required=True) for name, text in HEADERS.items()],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}},
                },
                "responses": {
                    status: {"description": text}
                    for status, text in sorted(_RESPONSES_TO.get(event, _RESPONSES).items())
                },
            }
        }
        for event, (model, summary, description) in EVENTS.items()
    }
    choices = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in (SameCopy, CopyPage)]
    document["webhooks"]["verify"]["post"]["responses"] = {
        "2XX": {
            "description": "The result.",
            "content": {"application/json": {"schema": {"anyOf": choices}}},
        },
        "429": {
            "description": f"Too many requests. Docora asks again up to {MAX_WAITS} times, under a new `webhook-id`. Then the copy "
            "counts as not checked."
        },
        "501": {"description": "Your app doesn't support checks."},
        "5XX": {
            "description": "503 with `Retry-After` is like 429. Otherwise, the copy counts as not checked, as without a response."
        },
        "default": {"description": "Your app doesn't support checks. It is not sent again."},
    }
