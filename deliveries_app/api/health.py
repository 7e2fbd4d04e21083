"""Public endpoints: liveness, readiness and version. Only readiness uses the database and Redis."""

import time
from typing import Any

from django.http import HttpRequest
from django.utils import timezone
from ninja import Router, Schema, Status
from pydantic import Field

from deliveries_app.monitoring.health import OK, REDIS_DOWN, check_database, read_checks
from deliveries_app.webhooks.payloads import timestamp
from docora import __version__
from docora.conf.installation import build
from docora.redis import heartbeat
from docora.redis.connection import responds as redis_responds
from docora.web.api import READ, documented_responses

router = Router(tags=["Health"])

_METHODS = {405: "Only GET and HEAD are allowed."}

_started = time.monotonic()


class Health(Schema):
    """The web process is alive."""

    timestamp: str = Field(examples=["2026-11-24T12:00:00.000Z"], json_schema_extra={"format": "date-time"})
    uptime: float = Field(description="Seconds since this web process was started.", ge=0, examples=[3600.25])


class WebReadiness(Schema):
    """Whether this web process can serve the admin and the API."""

    ready: bool
    checks: dict[str, str] = Field(
        description="`ok` or a description of the problem, for `database` and `redis`.",
        examples=[dict.fromkeys(("database", "redis"), OK)],
    )


class Readiness(Schema):
    """Whether everything that syncing needs is available."""

    ready: bool
    checks: dict[str, str] = Field(
        description="`ok` or a description of the problem, for `database`, `redis`, `git`, `disk` (also if it is almost "
        "full), `workers` and `sweep`.",
        examples=[dict.fromkeys(("database", "redis", "git", "disk", "workers", "sweep"), OK)],
    )
    sweep_age: float | None = Field(
        description="Seconds since the sweep last ran. Null if it has not run for a day, or if Redis is down or rejects writes.",
        ge=0,
        examples=[2.5],
    )


class Version(Schema):
    """The running version. The build sets the other fields, through `DOCORA_BUILD_NUMBER`, `…_SHA` and `…_DATE`."""

    version: str = Field(examples=[__version__])
    buildNumber: str = Field(examples=["1024"])
    gitSha: str = Field(examples=["3f786850e387550fdab836ed7e6dc881de23001b"])
    buildDate: str = Field(examples=["2026-11-24"])


@router.api_operation(
    READ,
    "/health",
    summary="Liveness",
    **documented_responses(200, Health, "Docora is alive.", _METHODS),
)
def health(request: HttpRequest) -> dict[str, object]:
    """Cheap enough to poll every second. It does not use the database."""
    return {"timestamp": timestamp(timezone.now()), "uptime": round(time.monotonic() - _started, 3)}


def _readiness(model: type[Schema], subject: str) -> dict[str, Any]:
    not_ready = {503: (model, f"{subject} is not ready. `checks` says why.")}
    return documented_responses(200, model, f"{subject} is ready.", _METHODS, others=not_ready)


@router.api_operation(
    READ,
    "/health/web",
    summary="Readiness of the web process",
    **_readiness(WebReadiness, "The web process"),
)
def web_ready(request: HttpRequest) -> Status[dict[str, object]]:
    """Checks what the admin and the API need. For load balancers. It ignores workers: without them, the admin must stay reachable."""
    return _status({"database": check_database(), "redis": OK if redis_responds() else REDIS_DOWN})


@router.api_operation(READ, "/health/ready", summary="Readiness to sync", **_readiness(Readiness, "Docora"))
def ready(request: HttpRequest) -> Status[dict[str, object]]:
    """Checks everything that syncing needs."""
    signs = heartbeat.read()
    age = signs.sweep_age if signs else None
    return _status(read_checks(signs), sweep_age=None if age is None else round(age, 1))


def _status(checks: dict[str, str], **more: object) -> Status[dict[str, object]]:
    is_ready = all(message == OK for message in checks.values())
    return Status(200 if is_ready else 503, {"ready": is_ready, "checks": checks, **more})


@router.api_operation(
    READ,
    "/version",
    summary="Version",
    **documented_responses(200, Version, "The running version.", _METHODS),
)
def version(request: HttpRequest) -> dict[str, str]:
    """The version and build of the process that responds."""
    return build()
