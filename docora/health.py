"""Is it alive, is it ready, and which version is it? All public; the first and the last answer without a database."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.http import HttpRequest
from django.utils import timezone
from ninja import Router, Schema, Status
from pydantic import Field

from docora import __version__, queue_state
from docora.api.answers import answers
from docora.datadir import make_private
from docora.redis import RedisError
from docora.redis import connection as redis_connection

router = Router(tags=["Health"])

_started = time.monotonic()
_WORKER_SEEN = timedelta(seconds=60)
OK = "ok"


class Health(Schema):
    """The web process answers."""

    timestamp: str = Field(examples=["2026-11-24T12:00:00.000Z"], json_schema_extra={"format": "date-time"})
    uptime: float = Field(description="Seconds since this web process was started.", ge=0, examples=[3600.25])


class Readiness(Schema):
    """Whether everything is there that syncing needs."""

    ready: bool
    checks: dict[str, str] = Field(
        description="`ok`, or what is wrong in words, for `database`, `redis`, `git`, `disk` and `workers`.",
        examples=[{"database": OK, "redis": OK, "git": OK, "disk": OK, "workers": OK}],
    )


class Version(Schema):
    """What is running. A build sets all but the first through `DOCORA_BUILD_NUMBER`, `…_SHA` and `…_DATE`."""

    version: str = Field(examples=[__version__])
    buildNumber: str = Field(examples=["1024"])
    gitSha: str = Field(examples=["3f786850e387550fdab836ed7e6dc881de23001b"])
    buildDate: str = Field(examples=["2026-11-24"])


PROBES = ["GET", "HEAD"]


@router.api_operation(
    PROBES, "/health", operation_id="health", summary="Is it alive?", **answers(200, Health, "It is.")
)
def health(request: HttpRequest) -> dict[str, object]:
    """Cheap enough to be asked every second; it does not ask the database."""
    stamp = timezone.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"timestamp": stamp, "uptime": round(time.monotonic() - _started, 3)}


_readiness = answers(200, Readiness, "It is.")
_readiness["response"][503] = Readiness
_readiness["openapi_extra"]["responses"][503] = {"description": "Something is missing; `checks` says what."}


@router.api_operation(PROBES, "/health/ready", operation_id="ready", summary="Is it ready to sync?", **_readiness)
def ready(request: HttpRequest) -> Status[dict[str, object]]:
    """Looks at everything that syncing needs."""
    found = {name: check() for name, check in CHECKS.items()}
    is_ready = all(words == OK for words in found.values())
    return Status(200 if is_ready else 503, {"ready": is_ready, "checks": found})


@router.api_operation(
    PROBES, "/version", operation_id="version", summary="What is running?", **answers(200, Version, "The build.")
)
def version(request: HttpRequest) -> dict[str, str]:
    """Which version of Docora answers, and of which build."""
    return {
        "version": __version__,
        "buildNumber": os.environ.get("DOCORA_BUILD_NUMBER", ""),
        "gitSha": os.environ.get("DOCORA_BUILD_SHA", ""),
        "buildDate": os.environ.get("DOCORA_BUILD_DATE", ""),
    }


@cache
def _latest_migrations() -> set[tuple[str, str]]:
    """The last migration of every app, as this version of the code has them."""
    return set(MigrationLoader(None).graph.leaf_nodes())


def check_database() -> str:
    try:
        applied = MigrationRecorder(connection).applied_migrations()
    except (DatabaseError, InterfaceError):
        return "the database does not answer: check DATABASE_URL and the database server"
    return OK if _latest_migrations() <= applied.keys() else "the database is not migrated: run manage.py migrate"


def check_redis() -> str:
    try:
        redis_connection().ping()
    except (RedisError, OSError):
        return "Redis does not answer: check REDIS_URL and the Redis server"
    return OK


def check_git() -> str:
    return OK if shutil.which("git") else "git is not installed"


def check_disk() -> str:
    if can_be_written(Path(settings.REPOS_DIR)):
        return OK
    return "mirrors of repositories cannot be written: check that REPOS_DIR is writable and its disk not full"


def can_be_written(directory: Path) -> bool:
    """By writing: a full disk and a read-only one look fine from afar."""
    try:
        make_private(directory)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError:
        return False
    return True


def check_workers() -> str:
    """A worker says that it lives every few seconds; one that was killed stays registered for a while."""
    limit = datetime.now(UTC) - _WORKER_SEEN
    try:
        seen = [worker.seen_at for worker in queue_state.read_workers()]
    except (RedisError, OSError):
        return "not known without Redis"
    alive = any(moment and moment > limit for moment in seen)
    return OK if alive else "no sync worker is running: start manage.py up, or manage.py rqworker"


CHECKS: dict[str, Callable[[], str]] = {
    "database": check_database,
    "redis": check_redis,
    "git": check_git,
    "disk": check_disk,
    "workers": check_workers,
}
