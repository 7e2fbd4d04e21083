"""Asking the doctor, and what it finds."""

import contextlib
import io
import socket
from collections.abc import Iterable, Iterator

from django.core.management import call_command
from redis import Redis
from rq import Worker

from deliveries_app.monitoring.doctor import Level
from deliveries_app.monitoring.doctor.findings import Finding


def doctor(*options: str) -> tuple[int, str]:
    """The exit code and what was said."""
    out = io.StringIO()
    try:
        call_command("doctor", *options, stdout=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def of(findings: Iterable[Finding], level: Level) -> str:
    """What is said of that level, with the advice."""
    return "\n".join(f"{finding.words} {finding.advice}" for finding in findings if finding.level is level)


def fines(findings: Iterable[Finding]) -> str:
    return of(findings, Level.FINE)


def warnings(findings: Iterable[Finding]) -> str:
    return of(findings, Level.WARNING)


def problems(findings: Iterable[Finding]) -> str:
    return of(findings, Level.PROBLEM)


def start_worker(redis: Redis, name: str = "", *, host: str = "") -> None:
    """As a worker that has just started leaves it in Redis."""
    worker = Worker(["high"], name=name or None, connection=redis)
    worker.register_birth()
    if host:
        redis.hset(worker.key, "hostname", host)


@contextlib.contextmanager
def silent_host() -> Iterator[str]:
    """host:port of somebody who takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
