"""The REST API's requests and responses, with the descriptions and examples that the documentation shows."""

from typing import Annotated, Any

from ninja import Schema
from pydantic import BaseModel, ConfigDict, Field

from deliveries_app.models import AppRepository, Status
from deliveries_app.services.watching import Watched
from deliveries_app.webhooks.payloads import timestamp

REPOSITORY_ID = "repo_5f2b8c1d9e3a4f6072b1c8d4"
_URL = "https://github.com/acme/handbook"
_COMMIT = "3f786850e387550fdab836ed7e6dc881de23001b"
_WHEN = "2026-11-24T12:00:00.000Z"
_RUN = "run_0c9d8e7f6a5b4c3d2e1f0a9b"
_PRINTABLE = "^[!-~]+$"

Moment = Annotated[str, Field(examples=[_WHEN], json_schema_extra={"format": "date-time"})]
GithubToken = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        pattern=_PRINTABLE,
        description="A token that can read the repository: 1 to 255 printable ASCII characters without spaces. It is "
        "stored encrypted and never shown.",
        examples=["github_pat_11ABCDEFG"],
    ),
]


class Registration(BaseModel):
    """A repository to watch."""

    model_config = ConfigDict(strict=True)

    github_url: str = Field(
        min_length=1,
        max_length=2048,
        description="`https://<host>/owner/name`, with an optional `.git` or slash at the end. Responses and "
        "notifications repeat it as spelled here. The administrator decides which hosts are allowed.",
        examples=[_URL],
    )
    github_token: GithubToken | None = Field(
        default=None, description="Required for a private repository. Each app's watch is read with its own token only."
    )


class NewToken(BaseModel):
    """A new token for a watched repository."""

    model_config = ConfigDict(strict=True)

    github_token: GithubToken


class Registered(Schema):
    """A newly watched repository."""

    repository_id: str = Field(description="Identifies the repository in all other calls.", examples=[REPOSITORY_ID])
    github_url: str = Field(description="As the app spelled it.", examples=[_URL])
    owner: str = Field(examples=["acme"])
    name: str = Field(examples=["handbook"])
    is_private: bool = Field(description="Whether it cannot be read without a token.", examples=[True])
    created_at: Moment = Field(description="When the app started to watch it.")


class WatchedRepository(Registered):
    """A watched repository and the state of its sync."""

    status: Status = Field(
        description="`pending_snapshot`: a sync is due, or the repository has no commit yet. `scanning`: a sync is running. `synced`: the app has "
        "acknowledged everything. `failed`: all attempts failed; the next one is at the next rescan.",
        examples=["synced"],
    )
    last_synced_at: Moment | None = Field(description="When the last complete sync ended.")
    last_scanned_at: Moment | None = Field(description="When git was last checked for changes.")
    last_commit: str | None = Field(
        description="The commit of the last complete sync: 40 hexadecimal digits, or 64 in a repository that uses SHA-256.",
        examples=[_COMMIT],
    )
    branch: str | None = Field(description="The repository's default branch.", examples=["main"])
    files: int = Field(description="Number of files in that commit that are sent to the app.", ge=0, examples=[1280])
    bytes: int = Field(description="Their total size.", ge=0, examples=[9600000])
    files_failing: int = Field(description="Number of files that the app has not accepted.", ge=0, examples=[0])
    left_out: dict[str, int] = Field(
        description="Number of files that are not sent, or not sent unchanged, by cause.", examples=[{"symlink": 3}]
    )
    last_error: str | None = Field(description="Why the last attempt failed.", examples=[None])
    last_error_cause: str | None = Field(
        description="The cause as a code, such as `auth`, `not_found`, `timeout` or `network`.", examples=[None]
    )
    next_sync_at: Moment | None = Field(
        description="When the next sync is due; null if nothing is to be sent. Checks for changes continue either way."
    )


class RepositoryPage(Schema):
    """One page of the app's repositories, in the order in which they were first watched."""

    page: int = Field(ge=1, examples=[1])
    pages: int = Field(description="Number of pages, at least 1.", ge=1, examples=[1])
    total: int = Field(description="Number of repositories that the app watches.", ge=0, examples=[1])
    repositories: list[WatchedRepository]


class Message(Schema):
    """A message that says what was done."""

    message: str = Field(examples=["Token updated successfully"])


class Announced(Schema):
    """A message that says what the push has started."""

    message: str = Field(examples=["Check queued"])


class Resync(Schema):
    """A queued re-sync."""

    run_id: str = Field(description="Sent with notifications as `X-Docora-Run-Id`.", examples=[_RUN])


class ManifestLine(BaseModel):
    """One file that the app has acknowledged."""

    path: str = Field(description="As in the notification.", examples=["src/index.ts"])
    sha: str = Field(
        description="SHA-256 of the content, hex.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    size: int | None = Field(
        description="Size in bytes; null if an earlier service delivered the file and the first sync has not compared it yet.",
        ge=0,
        examples=[1234],
    )


def watched_repository(watch: AppRepository) -> dict[str, Any]:
    """Return the `WatchedRepository` of a watch whose repository is loaded."""
    return Watched(watch, created=False).as_dict() | {
        "status": watch.status,
        "last_synced_at": watch.last_synced_at and timestamp(watch.last_synced_at),
        "last_scanned_at": watch.last_scanned_at and timestamp(watch.last_scanned_at),
        "last_commit": watch.last_commit or None,
        "branch": watch.branch or None,
        "files": watch.tree_files,
        "bytes": watch.tree_bytes,
        "files_failing": watch.files_failing,
        "left_out": watch.left_out,
        "last_error": watch.last_error or None,
        "last_error_cause": watch.last_error_cause or None,
        "next_sync_at": watch.next_sync_at and timestamp(watch.next_sync_at),
    }
