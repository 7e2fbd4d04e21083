"""The REST API's requests and responses, with the descriptions and examples that the documentation shows."""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

from django.conf import settings
from ninja import Schema
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from deliveries_app.models import AppRepository, FailureKind, Outcome, Reason, Status
from deliveries_app.models.deliveries import DeliveryState, Kind
from deliveries_app.models.root_causes import ErrorCause
from deliveries_app.planning.eligibility import REMARKS, UNLISTED
from deliveries_app.reports.help_texts import LEFT_OUT
from deliveries_app.services.resend import MAX_RESENT
from deliveries_app.services.watching import registered_fields
from deliveries_app.webhooks.payloads import timestamp
from docora.http.messages import Cause as HttpCause

REPOSITORY_ID = "repo_5f2b8c1d9e3a4f6072b1c8d4"
_URL = "https://github.com/acme/handbook"
_COMMIT = "3f786850e387550fdab836ed7e6dc881de23001b"
_WHEN = "2026-11-24T12:00:00.000Z"
RUN_ID = "run_0c9d8e7f6a5b4c3d2e1f0a9b"
_PRINTABLE = "^[!-~]+$"
_LISTED = [cause for cause in LEFT_OUT if cause not in UNLISTED | REMARKS]

Moment = Annotated[
    str,
    BeforeValidator(lambda value: timestamp(value) if isinstance(value, datetime) else value),
    Field(examples=[_WHEN], json_schema_extra={"format": "date-time"}),
]
Next = Annotated[
    str | None,
    Field(description="Pass it as `after` to get the next page; null on the last page.", examples=[None]),
]
GithubToken = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        pattern=_PRINTABLE,
        description="A token that can read the repository: 1 to 255 printable ASCII characters without spaces. It is "
        "stored encrypted and never shown. If the git host also needs a certain user name, write `user:token`.",
        examples=["github_pat_11ABCDEFG"],
    ),
]


def _codes(codes: Iterable[str]) -> str:
    return ", ".join(f"`{code}`" for code in codes)


def _one_line(pattern: str) -> str:
    if set("\n\r\0") & set(pattern):
        raise PydanticCustomError("one_line", "must be a single line")
    return pattern


Pattern = Annotated[
    str, Field(max_length=1000, json_schema_extra={"pattern": "^[^\n\r\0]*$"}), AfterValidator(_one_line)
]
Patterns = Annotated[list[Pattern], Field(max_length=500)]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Registration(BaseModel):
    """A repository to watch."""

    model_config = ConfigDict(strict=True)

    github_url: str = Field(
        min_length=1,
        max_length=2048,
        description="`https://<host>/owner/name`, with an optional `.git` or slash at the end. The owner may contain "
        "slashes, as in GitLab's subgroups; Azure DevOps has `/_git/` before the name. Responses and notifications repeat "
        "the URL as spelled here. The administrator decides which hosts are allowed.",
        examples=[_URL],
    )
    github_token: GithubToken | None = Field(
        default=None,
        description="Required for a private repository, unless the administrator has assigned the app a GitHub App that can "
        "read it. Each app's watch is read with its own token only.",
    )


class WantedRepository(Registration):
    """A repository to watch, and how. Fields that are left out keep their values."""

    model_config = ConfigDict(strict=True, extra="forbid")

    github_token: GithubToken | None = Field(
        default=None,
        description="Required for a private repository, unless the administrator has assigned the app a GitHub App that can "
        "read it. Null removes the token.",
    )
    ref: str | None = Field(
        default=None,
        max_length=255,
        description="The branch or tag to follow: `main`, `v1.2`, or in full, such as `refs/heads/main`. Null follows the "
        "default branch.",
        examples=["main"],
    )
    include_patterns: Patterns | None = Field(
        default=None,
        description="Only files that match one of these patterns are sent. Written as in `.gitignore`. Null or an empty list "
        "sends all.",
        examples=[["docs/**", "*.md"]],
    )
    exclude_patterns: Patterns | None = Field(
        default=None,
        description="Files that match these patterns are not sent. Written as in `.gitignore`.",
        examples=[["*.png"]],
    )


class NewToken(BaseModel):
    """A new token for a watched repository."""

    model_config = ConfigDict(strict=True)

    github_token: GithubToken


class Registered(Schema):
    """A newly watched repository."""

    repository_id: str = Field(description="Identifies the repository in all other calls.", examples=[REPOSITORY_ID])
    github_url: str = Field(description="As the app spelled it.", examples=[_URL])
    owner: str = Field(description="The part of the URL before the name. It may contain slashes.", examples=["acme"])
    name: str = Field(examples=["handbook"])
    is_private: bool = Field(
        description="Whether it could not be read without a token when Docora last checked this: when an app started to watch it, or "
        "changed its token, branch or tag, or at a sync without a token. A sync with a token doesn't check it. Also true after an app "
        "started to watch it with `Prefer: respond-async`, until Docora has read it without a token.",
        examples=[True],
    )
    created_at: Moment = Field(description="When the app started to watch it.")


class WatchedRepository(Registered):
    """A watched repository and the state of its sync."""

    status: Status = Field(
        description="`pending_snapshot`: the first sync, a re-sync, a resend or another attempt is due, or the repository has no "
        "commit yet. `scanning`: a sync is running. `synced`: the app has acknowledged everything in `last_commit`; if "
        "`next_sync_at` is set, another sync is due. `failed`: all attempts failed, or another one wouldn't help; `next_sync_at` says "
        "when Docora tries again.",
        examples=["synced"],
    )
    paused: bool = Field(
        description="Whether an administrator has paused the repository. Then nothing is checked or sent. The pause ends "
        "when the app stops watching the repository.",
        examples=[False],
    )
    last_synced_at: Moment | None = Field(description="When the last complete sync ended.")
    last_scanned_at: Moment | None = Field(description="When git was last checked for changes.")
    last_commit: str | None = Field(
        description="The commit that was last sent: 40 hexadecimal digits, or 64 in a repository that uses SHA-256. The app has "
        "acknowledged all of it, except `files_failing` files.",
        examples=[_COMMIT],
    )
    branch: str | None = Field(description="The branch or tag that is followed.", examples=["main"])
    ref: str | None = Field(
        description="The branch or tag that the app chose; null for the default branch.", examples=[None]
    )
    include_patterns: list[str] = Field(
        description="The app's include patterns; empty to include every file.", examples=[[]]
    )
    exclude_patterns: list[str] = Field(description="The app's exclude patterns.", examples=[["*.png"]])
    files: int = Field(
        description="Number of files in `last_commit`, or in a newer commit whose sync has begun, that are sent to the app.",
        ge=0,
        examples=[1280],
    )
    bytes: int = Field(description="Their total size.", ge=0, examples=[9600000])
    files_failing: int = Field(
        description="Number of files that the app did not accept in the last attempt that tried every file. The list of "
        "failures also has those of an attempt that is under way or was stopped.",
        ge=0,
        examples=[0],
    )
    left_out: dict[str, int] = Field(
        description=f"Number of files that are not sent, by cause: {_codes(LEFT_OUT)}. `lfs_pointer` counts "
        "files that are sent, as pointers.",
        examples=[{"symlink": 3}],
    )
    last_error: str | None = Field(description="Why the last attempt failed.", examples=[None])
    last_error_cause: ErrorCause | None = Field(
        description="The cause of `last_error`, for programs. Of the repository or its host: `auth`, `not_found`, "
        "`too_large`, `corrupt`. Of the app: `http` for a response other than 2xx, `dns`, `refused_address`, `connect`, "
        "`tls`. Of either: `timeout`, `network`. Of files: `blocked` if they wait for another path, `rules` if "
        "`.docoraignore` or other patterns can't be used, `transform`. Also `quota`, `internal` for an error in Docora, and `other`.",
        examples=[None],
    )
    next_sync_at: Moment | None = Field(
        description="When the next sync is due; null if nothing is to be sent. Checks for changes continue either way."
    )


class RepositoryPage(Schema):
    """One page of the app's repositories, in the order in which they were first watched."""

    page: int = Field(description="The `page` of the request.", ge=1, examples=[1])
    pages: int = Field(description="Number of pages, at least 1.", ge=1, examples=[1])
    total: int = Field(description="Number of repositories on all pages.", ge=0, examples=[1])
    repositories: list[WatchedRepository]
    next: Next


class Message(Schema):
    """A message that says what was done."""

    message: str = Field(examples=["Token updated successfully"])


class Announced(Schema):
    """A message that says what the push started."""

    message: str = Field(examples=["Check queued"])


class Resync(Schema):
    """A queued re-sync."""

    run_id: str = Field(description="Sent with notifications as `X-Docora-Run-Id`.", examples=[RUN_ID])


class Failure(Schema):
    """A file that the app has not accepted, or that is not sent."""

    path: str = Field(
        description="As in the notification. The path of a skipped file is shortened to 1,024 characters, and its bytes that "
        "are not UTF-8 are written as `\\xff`.",
        examples=["src/index.ts"],
    )
    kind: FailureKind = Field(
        description="`failed`: the app has not accepted it. `skipped`: it can't be sent, for example because of its size.",
        examples=["failed"],
    )
    cause: str = Field(
        description=f"If it failed: `http` for a response of the app, {_codes(HttpCause)} for a request without a response, "
        "`transform` if a transform failed, or `blocked` if the path waits for another one. If it is skipped: "
        f"{_codes(_LISTED)}, or `ignore_pattern`, which is not about a file: `message` names invalid lines of `.docoraignore`.",
        examples=["http"],
    )
    status: int | None = Field(description="The HTTP status of the app's last response.", examples=[500])
    message: str = Field(description="Says what happened. For people.", examples=["The app returned HTTP 500."])
    response: str = Field(description="The start of the app's last response.", examples=["out of disk space"])
    attempts: int = Field(
        description="Number of attempts to send it so far; 0 if it is skipped, waits for another path or its transform failed.",
        ge=0,
        examples=[3],
    )
    first_at: Moment = Field(description="When it first failed or was first left out.")
    last_at: Moment = Field(description="When it last failed or was last left out.")
    next_attempt_at: Moment | None = Field(
        description="The earliest time of the next attempt; null if none is planned or the time is not known.",
        examples=[_WHEN],
    )


class FailurePage(Schema):
    """One page of a repository's failures, in the order in which they were first listed."""

    failures: list[Failure]
    next: Next


class Run(Schema):
    """One requested sync, or the sync of one detected change, with all its attempts."""

    run_id: str = Field(description="As in `X-Docora-Run-Id`.", examples=[RUN_ID])
    reason: Reason = Field(description="As in `X-Docora-Reason`.", examples=["change"])
    outcome: Outcome | None = Field(
        description="Null until it has ended, with `succeeded`, `failed` or `cancelled`. `superseded`: a later re-sync, or an "
        "administrator's retry or resend, took its place. `ended`: the repository is no longer watched. `paused`: the app was "
        "paused, because it responded with 410.",
        examples=["succeeded"],
    )
    created_at: Moment = Field(description="When it was requested, or when the change was detected.")
    started_at: Moment | None = Field(description="When it first knew what to send.")
    ended_at: Moment | None = Field(description="When it ended.")
    commit_sha: str | None = Field(description="The commit that it sends.", examples=[_COMMIT])
    attempts: int = Field(
        description="Number of attempts so far that knew what to send. Those that couldn't read the repository, or were only "
        "interrupted, for example by a pause, don't count.",
        ge=0,
        examples=[1],
    )
    files_total: int = Field(
        description="Number of files to send. An estimate until it has started.", ge=0, examples=[12]
    )
    files_done: int = Field(description="Number of files that the app has acknowledged.", ge=0, examples=[12])
    files_failed: int = Field(description="Number of files that the app has not accepted.", ge=0, examples=[0])
    bytes_total: int = Field(description="Size of the files to send.", ge=0, examples=[48200])
    bytes_done: int = Field(description="Size of the acknowledged files.", ge=0, examples=[48200])
    percent: int = Field(description="100 only once everything is acknowledged.", ge=0, le=100, examples=[100])
    error: str | None = Field(description="Why it failed. For people.", examples=[None])


class RunPage(Schema):
    """One page of a repository's runs, newest first."""

    runs: list[Run]
    next: Next


class DeliveryRecord(Schema):
    """The last notification about one file."""

    path: str = Field(description="As in the notification.", examples=["src/index.ts"])
    event: Kind = Field(description="The last notification.", examples=["update"])
    state: DeliveryState = Field(
        description="`acknowledged`: the app has accepted it. `unconfirmed`: it is being sent, or was not accepted. "
        "`cleared`: it was accepted, but a re-sync sends it again.",
        examples=["acknowledged"],
    )
    sha: str = Field(
        description="SHA-256 of the content, in hex. For a delete, of the content that the app last acknowledged or, if there is "
        "none, was last sent.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    size: int | None = Field(description="Size in bytes; null if it is not known yet.", ge=0, examples=[1234])
    sequence: int = Field(description="As in `X-Docora-Sequence`.", examples=[1795608000000000])
    failed_attempts: int = Field(description="Failed attempts of this notification.", ge=0, examples=[0])
    updated_at: Moment = Field(description="When it was last sent or recorded.")
    next_attempt_at: Moment | None = Field(
        description="Not sent again before this time, because the app may still be processing it.", examples=[None]
    )


class DeliveryPage(Schema):
    """One page of a repository's delivery records, in byte order of the paths."""

    deliveries: list[DeliveryRecord]
    next: Next


class Paths(_Request):
    """Files to send again."""

    paths: list[Annotated[str, Field(min_length=1, max_length=1024)]] = Field(
        min_length=1,
        max_length=MAX_RESENT,
        description="Paths as in the notifications.",
        examples=[["docs/guide.md", "src/index.ts"]],
    )


class Resent(Schema):
    """The files that are sent again."""

    run_id: str | None = Field(description="The run that sends them; null if there are none.", examples=[RUN_ID])
    files: int = Field(description="Number of files that are sent again.", ge=0, examples=[1])
    unknown: list[str] = Field(
        description="Paths that were never sent to the app, or were deleted there. This call doesn't send them: if they are in "
        "the repository, the next sync does.",
        examples=[["src/index.ts"]],
    )


class KeyRotation(Schema):
    """A key rotation in progress. Notifications carry a signature made with each key."""

    started_at: Moment = Field(description="When the rotation started.")
    new_key_accepted_at: Moment | None = Field(
        description="When the app first accepted the new key. From then on, the old key can be retired."
    )


class Quota(Schema):
    """What the app uses of one quota, and the quota."""

    used: int = Field(description="Current use.", ge=0, examples=[12])
    limit: int | None = Field(description="Null if there is no quota.", ge=1, examples=[100])


class Quotas(Schema):
    """What the app uses of each quota."""

    watches: Quota = Field(description="Watched repositories.")
    files: Quota = Field(description="Files in all watched repositories.")
    bytes: Quota = Field(description="Bytes in all watched repositories.")
    resyncs_per_hour: Quota = Field(
        description="Re-syncs that the app itself requests. A repository that it stops watching counts as one, because watching "
        "it again would send every file. Once they are used up, re-syncs and calls that watch a new repository return 429. "
        "They become available again evenly over an hour. Without a quota, they are not counted."
    )


class Endpoint(Schema):
    """The app, its endpoint and its settings."""

    app_id: str = Field(description="As in `X-Docora-App-Id`.", examples=["app_7d1e4a90c2b35f6881a0d3e7"])
    name: str = Field(examples=["Portal"])
    base_url: str = Field(
        description="Only an administrator can change it.", examples=["https://portal.example/docora"]
    )
    paused: bool = Field(
        description="While paused, nothing is sent. Changes are sent once it is resumed.", examples=[False]
    )
    paused_reason: str | None = Field(description="Why, if Docora or the app paused it.", examples=[None])
    max_in_flight: int = Field(description="Concurrent requests to the app.", ge=1, examples=[8])
    max_in_flight_limit: int = Field(description="The administrator's limit.", ge=1, examples=[8])
    send_sync_completed: bool = Field(description="Whether `/sync_completed` is sent after each complete sync.")
    answers_verify: bool = Field(
        description="Whether the app answers `/verify`, so its copies can be checked for differences."
    )
    on_hold_until: Moment | None = Field(
        description="The endpoint is down or asked to wait. Nothing but pings is sent before this time. To end it, pause the "
        "app and resume it. A test ping that the app requests does not end it.",
        examples=[None],
    )
    key_rotation: KeyRotation | None = Field(description="Null if there is none.", examples=[None])
    quotas: Quotas = Field(description="The app's quotas, and what it uses of each.")


def _administrators_only(value: object) -> None:
    """Refuse the field. A stolen token could otherwise have all files sent elsewhere."""
    raise PydanticCustomError("administrators_only", "only an administrator can change it")


class EndpointSettings(_Request):
    """New settings. Fields that are left out or null keep their values."""

    base_url: SkipJsonSchema[Annotated[None, BeforeValidator(_administrators_only)]] = Field(default=None, exclude=True)
    paused: bool | None = Field(default=None, description="Pause or resume all notifications.", examples=[False])
    max_in_flight: int | None = Field(
        default=None,
        ge=1,
        le=settings.MAX_IN_FLIGHT_LIMIT,
        description="At most `max_in_flight_limit`.",
        examples=[4],
    )
    send_sync_completed: bool | None = Field(
        default=None, description="Whether to send `/sync_completed` after each complete sync.", examples=[True]
    )
    answers_verify: bool | None = Field(
        default=None, description="Whether the app answers `/verify`. Turn it on once it does.", examples=[True]
    )


class Ping(Schema):
    """The result of a ping."""

    delivered: bool = Field(description="Whether the app responded with 2xx.")
    message: str = Field(examples=["The app accepted the ping (HTTP 200)."])
    hint: str = Field(description="What to do if it was not delivered.", examples=[""])
    status: int | None = Field(description="The HTTP status, if the app responded.", examples=[200])
    milliseconds: int = Field(description="How long the response took.", ge=0, examples=[38])
    response: str = Field(description="The start of the response.", examples=["ok"])


class PingWith(_Request):
    """How to sign the ping."""

    new_key: bool = Field(default=False, description="Sign it only with the new key of a rotation.", examples=[False])


class KeyChoice(_Request):
    """The new signing key."""

    key: str | None = Field(
        default=None,
        max_length=500,
        description="A key of your own, 16 to 500 printable characters. If it starts with `whsec_`, at least 16 bytes as "
        "base64 follow. Without one, Docora generates a key.",
        examples=[None],
    )


class NewKey(Schema):
    """The new signing key, which is shown only once."""

    key: str = Field(description="Store it now.", examples=["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"])


class PushSecret(Schema):
    """The new push hook secret, which is shown only once. The previous one no longer works."""

    secret: str = Field(
        description="Store it now.", examples=["5f8e3b7d9a1c2046b8d0e4f6a7c9b1d35f8e3b7d9a1c2046b8d0e4f6a7c9b1d3"]
    )
    url: str = Field(
        description="The URL for the git host's webhook settings.",
        examples=[f"https://docora.example/api/hooks/push/{REPOSITORY_ID}"],
    )


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


def _lines(patterns: str) -> list[str]:
    """Return the stored patterns as the app sent them. Only line feeds separate them; `splitlines` would also split elsewhere."""
    return patterns.split("\n") if patterns else []


def watched_repository(watch: AppRepository) -> dict[str, Any]:
    """Return the `WatchedRepository` of a watch whose repository is loaded."""
    return registered_fields(watch) | {
        "status": watch.status,
        "paused": watch.is_paused,
        "last_synced_at": watch.last_synced_at,
        "last_scanned_at": watch.last_scanned_at,
        "last_commit": watch.last_commit or None,
        "branch": watch.branch or None,
        "ref": watch.ref or None,
        "include_patterns": _lines(watch.include_patterns),
        "exclude_patterns": _lines(watch.exclude_patterns),
        "files": watch.tree_files,
        "bytes": watch.tree_bytes,
        "files_failing": watch.files_failing,
        "left_out": watch.left_out,
        "last_error": watch.last_error or None,
        "last_error_cause": ErrorCause.of(watch.last_error_cause),
        "next_sync_at": watch.next_sync_at,
    }
