"""Public endpoints: liveness, readiness and version. Only readiness uses the database and Redis."""

import os
import shutil
import socket
import time
from typing import Any

from django.db import DatabaseError, InterfaceError, connection
from django.http import HttpRequest
from django.utils import timezone
from ninja import Router, Schema, Status
from pydantic import Field

from deliveries_app.webhooks.payloads import timestamp
from docora import __version__, disk
from docora.conf.installation import program
from docora.db import schema
from docora.redis import heartbeat
from docora.redis.connection import responds as redis_responds
from docora.redis.heartbeat import Signs
from docora.text import format_seconds
from docora.web.api import READ, documented_responses

router = Router(tags=["Health"])

METHODS = {405: "Only GET and HEAD are allowed."}

_started = time.monotonic()
OK = "ok"
DATABASE_DOWN = "the database is not responding: check DATABASE_URL and the database server"
SQLITE_UNUSABLE = "the database file cannot be used: check its disk and its permissions"
SQLITE_READ_ONLY = (
    "the database file is read-only: check that Docora's user owns it, its folder, and the files beside it, and that its disk "
    "is mounted writable"
)
DATABASE_REFUSES = (
    "the database refuses new connections, which workers need: check the password in DATABASE_URL, and PostgreSQL's "
    "max_connections"
)
DATABASE_READ_ONLY = (
    "the database is read-only: check that DATABASE_URL points to the primary, and that the server's disk isn't full"
)
REDIS_DOWN = "Redis is not responding: check REDIS_URL and the Redis server"
REDIS_UNUSABLE = (
    "Redis is not responding or rejects writes: check REDIS_URL and the Redis server, also its memory and its disk"
)
_UNKNOWN_WITHOUT_REDIS = "unknown without Redis"
_UNKNOWN_WITHOUT_DATABASE = "unknown without the database"


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
    **documented_responses(200, Health, "Docora is alive.", METHODS),
)
def health(request: HttpRequest) -> dict[str, object]:
    """Cheap enough to poll every second. It does not use the database."""
    return {"timestamp": timestamp(timezone.now()), "uptime": round(time.monotonic() - _started, 3)}


def _readiness(model: type[Schema], subject: str) -> dict[str, Any]:
    not_ready = {503: (model, f"{subject} is not ready. `checks` says why.")}
    return documented_responses(200, model, f"{subject} is ready.", METHODS, others=not_ready)


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
    **documented_responses(200, Version, "The running version.", METHODS),
)
def version(request: HttpRequest) -> dict[str, str]:
    """The version and build of the process that responds."""
    return build()


def build() -> dict[str, str]:
    return {
        "version": __version__,
        "buildNumber": os.environ.get("DOCORA_BUILD_NUMBER", ""),
        "gitSha": os.environ.get("DOCORA_BUILD_SHA", ""),
        "buildDate": os.environ.get("DOCORA_BUILD_DATE", ""),
    }


def read_checks(signs: Signs | None) -> dict[str, str]:
    """Check everything that syncing needs. Each value is `OK` or describes the problem. Pass the result of `heartbeat.read`."""
    database, sweep = check_database(), check_sweep(signs)
    if database == OK and not schema.accepts_connections():
        database = DATABASE_REFUSES
    if database != OK and sweep != OK:
        sweep = _UNKNOWN_WITHOUT_DATABASE  # it waits for the database, so its service may be fine
    return {
        "database": database,
        "redis": OK if signs else REDIS_UNUSABLE,
        "git": OK if shutil.which("git") else "git is not installed",
        "disk": disk_problem(signs) or OK,
        "workers": check_workers(signs),
        "sweep": sweep,
    }


def check_database() -> str:
    is_sqlite = connection.vendor == "sqlite"
    try:
        if not schema.is_migrated():
            return schema.not_migrated()
        if schema.is_read_only():
            return SQLITE_READ_ONLY if is_sqlite else DATABASE_READ_ONLY
    except (DatabaseError, InterfaceError):
        return SQLITE_UNUSABLE if is_sqlite else DATABASE_DOWN
    return OK


def disk_problem(signs: Signs | None) -> str:
    """Return what is wrong with a disk of this machine or of one that runs workers, and what to do, or an empty string.

    Name the machine if it is not this one. Without Redis, only this one is known.
    """
    here = socket.gethostname()
    found = {**(signs.disk_problems if signs else {}), here: disk.problem()}
    problems = {host: problem for host, problem in found.items() if problem}
    if problems.keys() == {here}:
        return problems[here]
    return "; ".join(f"on {host}, {problem}" for host, problem in sorted(problems.items()))


def check_workers(signs: Signs | None) -> str:
    if signs is None:
        return _UNKNOWN_WITHOUT_REDIS
    if signs.workers:
        return OK
    return (
        "no worker is running, so nothing is synced: check the service that runs the workers (systemd: docora-worker@1; "
        f"containers: worker), or start {program()} up or {program()} rqworker high default low"
    )


def check_sweep(signs: Signs | None) -> str:
    if signs is None:
        return _UNKNOWN_WITHOUT_REDIS
    if not signs.sweep_is_late:
        return OK
    service = "check the service that runs the sweep (systemd: docora-sweep; containers: sweep)"
    if signs.sweep_age is None:
        return f"the sweep has not run for a day: {service}, or start {program()} up or {program()} sweep"
    return f"the sweep last ran {format_seconds(signs.sweep_age)} ago: {service} and its log"
