"""Run `manage.py doctor`, and read the messages of its checks."""

import contextlib
import io
import socket
from collections.abc import Iterable, Iterator

from django.core import checks
from django.core.checks import CheckMessage
from django.core.management import call_command
from redis import Redis

from docora.server.worker import DocoraWorker


def doctor(*options: str) -> tuple[int, str]:
    """Run it and return the exit code and the output."""
    out = io.StringIO()
    try:
        call_command("doctor", *options, stdout=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def of_level(messages: Iterable[CheckMessage], level: int) -> str:
    """Return the messages of this level, with their hints."""
    return "\n".join(f"{message.msg} {message.hint or ''}" for message in messages if message.level == level)


def infos(messages: Iterable[CheckMessage]) -> str:
    return of_level(messages, checks.INFO)


def warnings(messages: Iterable[CheckMessage]) -> str:
    return of_level(messages, checks.WARNING)


def problems(messages: Iterable[CheckMessage]) -> str:
    return of_level(messages, checks.ERROR)


def start_worker(redis: Redis, name: str = "", *, host: str = "") -> None:
    """Register a worker in Redis, as one that has just started does."""
    worker = DocoraWorker(["high"], name=name or None, connection=redis)
    worker.register_birth()
    if host:
        redis.hset(worker.key, "hostname", host)


@contextlib.contextmanager
def silent_host() -> Iterator[str]:
    """Yield `host:port` of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
