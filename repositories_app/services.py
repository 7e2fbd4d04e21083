"""Verbs about repositories: find or create, and the circuit breaker."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db.models import F, Q
from django.db.models.functions import Now

from repositories_app.git.exceptions import GitError
from repositories_app.git.remote import RepositoryUrl
from repositories_app.mirror.mirror import Mirror
from repositories_app.models import Repository, Snapshot


def find_or_create(url: RepositoryUrl, *, is_private: bool) -> Repository:
    """The row of this repository, whichever spelling of its URL was used."""
    repository, created = Repository.objects.get_or_create(
        canonical_url=url.canonical, twin=0, defaults={"owner": url.owner, "name": url.name, "is_private": is_private}
    )
    if not created:
        note_privacy(repository, is_private=is_private)
    return repository


def note_privacy(repository: Repository, *, is_private: bool) -> None:
    """Whether it was private when git was asked last."""
    if repository.is_private != is_private:
        repository.is_private = is_private
        repository.save(update_fields=["is_private", "updated_at"])


def mirror_of(repository: Repository) -> Mirror:
    return Mirror(Path(settings.REPOS_DIR) / f"{repository.repository_id}.git")


def record_snapshot(
    repository: Repository, commit: str, branch: str, files: int, size: int, *, for_all: bool = True
) -> None:
    """What the tree of `commit` was like; one row per commit, the newest kept. Not `for_all`: one watch's own rules have
    changed the numbers, which are better than none and never replace others."""
    facts = {"branch": branch, "file_count": files, "total_bytes": size}
    record = Snapshot.objects.update_or_create if for_all else Snapshot.objects.get_or_create
    record(repository=repository, commit_sha=commit, defaults=facts)


@dataclass(frozen=True)
class Circuit:
    """What a failure did to a repository's circuit: `opened` just now, and `open_for` so many seconds (0: closed)."""

    opened: bool
    open_for: float


def record_failure(repository: Repository, error: GitError) -> Circuit:
    """Count a failure that concerns every watcher, once per check round however many watch, and open the circuit at
    the threshold. An attempt after the cool-down that fails too prolongs the same opening."""
    round_ago = Now() - timedelta(seconds=settings.RESCAN_INTERVAL_SECONDS / 2)
    cooldown = settings.CIRCUIT_BREAKER_COOLDOWN_SECONDS
    until = Now() + timedelta(seconds=cooldown)
    rows = Repository.objects.filter(pk=repository.pk)
    rows.update(last_error=str(error), last_error_cause=error.cause.value)
    rows.filter(Q(last_failure_at=None) | Q(last_failure_at__lte=round_ago)).update(
        consecutive_failures=F("consecutive_failures") + 1, last_failure_at=Now()
    )
    failing = rows.filter(consecutive_failures__gte=settings.CIRCUIT_BREAKER_THRESHOLD)
    opened = failing.filter(circuit_open_until=None).update(circuit_open_until=until) == 1
    if not opened:
        failing.filter(circuit_open_until__lte=Now()).update(circuit_open_until=until)
    repository.refresh_from_db()
    return Circuit(opened, cooldown if repository.circuit_is_open else 0.0)


def close_circuit(repository: Repository) -> bool:
    """The repository can be read, or a person says so: the circuit closes and the count starts over. Whether that ends a
    cool-down that held others back."""
    rows = Repository.objects.filter(pk=repository.pk)
    closed = rows.exclude(consecutive_failures=0, circuit_open_until=None).update(
        consecutive_failures=0, circuit_open_until=None, last_failure_at=None, last_error="", last_error_cause=""
    )
    return closed == 1 and repository.circuit_is_open
