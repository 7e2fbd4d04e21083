"""The disk: can be written, has room for the next fetch, and for as many mirrors as it may come to hold."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

from deliveries_app.monitoring import health
from deliveries_app.monitoring.doctor.findings import Finding, fine, problem, warning
from docora.text import format_bytes
from repositories_app.mirror import cache

_FULL_BYTES = 1_000_000_000  # what logs, the database or one repository fill in no time


def space() -> Iterator[Finding]:
    """A fetch may write `MAX_FETCH_BYTES`, into `REPOS_DIR`; elsewhere there is no such number."""
    yield _judge("DATA_DIR", Path(settings.DATA_DIR), enough=_FULL_BYTES)
    yield _judge("REPOS_DIR", Path(settings.REPOS_DIR), enough=max(_FULL_BYTES, settings.MAX_FETCH_BYTES))


def mirrors() -> Iterator[Finding]:
    """What the mirrors of this machine take, and may take."""
    size, bound = cache.measure(), settings.REPOS_MAX_BYTES
    number = "1 mirror" if size.mirrors == 1 else f"{size.mirrors:,} mirrors"
    words = f"REPOS_DIR holds {number} in {format_bytes(size.bytes)}"
    if not bound:
        yield fine(f"{words}; nothing bounds them (REPOS_MAX_BYTES).")
        return
    words = f"{words}; REPOS_MAX_BYTES bounds them to {format_bytes(bound)}."
    if bound > size.bytes + shutil.disk_usage(settings.REPOS_DIR).free:
        yield warning(words, "The disk is full before that: lower the bound, or make room.")
    elif size.bytes > bound:
        yield fine(f"{words} A worker of this machine removes what is too much after its next sync.")
    else:
        yield fine(words)


def _judge(name: str, directory: Path, enough: int) -> Finding:
    if not health.can_be_written(directory):
        return problem(
            f"{name} ({directory}) cannot be written.", "Make it belong to the user of Docora, and its disk not full."
        )
    free = shutil.disk_usage(directory).free
    words = f"{name} ({directory}) can be written; {format_bytes(free)} are free."
    if free < _FULL_BYTES:
        return problem(words, "Make room, or give it a disk of its own. Without room nothing is fetched.")
    if free < enough:
        return warning(words, f"One fetch may write {format_bytes(enough)} (MAX_FETCH_BYTES): make room, or lower it.")
    return fine(words)
