"""Find or create repositories, record their snapshots, and operate their circuit breakers and the outages of git hosts."""

import random
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import CharField, Exists, ExpressionWrapper, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Now

from docora.backoff import backoff
from docora.db.clock import from_now
from docora.db.compiled import compiled_and_prepared
from docora.db.locks import lock_rows
from repositories_app.git.exceptions import GitError
from repositories_app.git.url import RepositoryUrl, host_of
from repositories_app.mirror.mirror import Mirror
from repositories_app.models import HostOutage, Repository, Snapshot

HOST_BASE_DELAY_SECONDS = 5.0
HOST_MAX_DELAY_SECONDS = 300.0


def find_or_create(url: RepositoryUrl, *, is_private: bool | None) -> Repository:
    """Return the repository's row for any spelling of its URL. Create the row if there is none.

    `is_private` is None if git was not asked. A new row then counts as private until a later check.

    Call this inside a transaction: the row is locked until its end, so it cannot be removed before a watch refers to it.
    """
    repository, created = Repository.objects.select_for_update(no_key=True).get_or_create(
        canonical_url=url.canonical,
        twin=0,
        defaults={"owner": url.owner, "name": url.name, "is_private": is_private is not False},
    )
    if not created and is_private is not None:
        record_privacy(repository, is_private=is_private)
    return repository


def lock(repository_pk: int) -> Repository | None:
    """Return the repository's row, locked until the transaction ends, or None if it was removed meanwhile."""
    return Repository.objects.select_for_update(no_key=True).filter(pk=repository_pk).first()


def record_privacy(repository: Repository, *, is_private: bool) -> None:
    """Record whether the repository was private when git last checked."""
    if repository.is_private != is_private:
        repository.is_private = is_private
        repository.save(update_fields=["is_private", "updated_at"])


def mirror_of(repository: Repository) -> Mirror:
    return Mirror(settings.REPOS_DIR / f"{repository.repository_id}.git")


def record_snapshot(repository: Repository, commit: str, branch: str, files: int, size: int, *, for_all: bool) -> None:
    """Record the size of a commit's tree, in one row per commit. It becomes the repository's newest snapshot.

    Pass `for_all=False` if a watch's own rules have changed the numbers: they are stored only if there are none yet.
    """
    snapshot = Snapshot(repository=repository, commit_sha=commit, branch=branch, file_count=files, total_bytes=size)
    Snapshot.objects.bulk_create(
        [snapshot],
        update_conflicts=True,
        unique_fields=["repository", "commit_sha"],
        update_fields=["created_at", *(["branch", "file_count", "total_bytes"] if for_all else [])],
    )


def _counts_again() -> Q:
    """Match repositories whose last failure was in another rescan round."""
    half_interval_ago = Now() - timedelta(seconds=settings.RESCAN_INTERVAL_SECONDS / 2)
    return Q(last_failure_at=None) | Q(last_failure_at__lte=half_interval_ago)


def next_failure_counts() -> Q:
    """Match repositories for which another failure counts or prolongs an open circuit."""
    return _counts_again() | Q(circuit_open_until__lte=Now())


def record_failure(repository: Repository, error: GitError) -> bool:
    """Count a failure that affects all watches, and open the circuit at the threshold. Return whether this opened it.

    At most one failure is counted per rescan round, even if many watches fail. If an attempt after the cooldown fails too,
    the circuit stays open for another cooldown.
    """
    rows = Repository.objects.filter(pk=repository.pk)
    _count_failures(rows, error)
    opened = _at_threshold(rows).filter(circuit_open_until=None).update(circuit_open_until=_cooldown_end()) == 1
    repository.refresh_from_db()
    return opened


def record_failures(repositories: Iterable[Repository], error: GitError) -> list[Repository]:
    """Count one failure for each repository as `record_failure` does, except those whose circuit it would open.

    Return these, for which nothing was counted. The number of statements does not depend on the number of repositories.
    """
    last = settings.CIRCUIT_BREAKER_THRESHOLD - 1
    opening: list[Repository] = []
    others: list[Repository] = []
    for repository in repositories:
        opens = repository.circuit_open_until is None and repository.consecutive_failures >= last
        (opening if opens else others).append(repository)
    if others:
        with transaction.atomic():
            locked = lock_rows(Repository.objects.filter(pk__in=[repository.pk for repository in others]))
            _count_failures(Repository.objects.filter(pk__in=locked), error)
    return opening


def _count_failures(rows: QuerySet[Repository], error: GitError) -> None:
    """Count one failure for each of these repositories, and open circuits whose cooldown is over for another cooldown."""
    rows.update(last_error=str(error), last_error_cause=error.cause.value)
    rows.filter(_counts_again()).update(consecutive_failures=F("consecutive_failures") + 1, last_failure_at=Now())
    _at_threshold(rows).filter(circuit_open_until__lte=Now()).update(circuit_open_until=_cooldown_end())


def _at_threshold(rows: QuerySet[Repository]) -> QuerySet[Repository]:
    return rows.filter(consecutive_failures__gte=settings.CIRCUIT_BREAKER_THRESHOLD)


def _cooldown_end() -> CombinedExpression:
    return Now() + timedelta(seconds=settings.CIRCUIT_BREAKER_COOLDOWN_SECONDS)


def some_host_is_down() -> Exists:
    """Return the condition that a git host is down. Unlike `host_is_down`, it is evaluated once for all rows."""
    return Exists(HostOutage.objects.all())


def host_is_down(canonical_url: str) -> Exists:
    """Return the condition that the git host of `canonical_url`, a lookup from the outer query, is down."""
    return Exists(_outages_of(canonical_url))


def host_retry_at(canonical_url: str) -> Subquery:
    """Return the time at which the git host of `canonical_url`, if it is down, is tried again; else None."""
    return Subquery(_outages_of(canonical_url).values("retry_at")[:1])


def _outages_of(canonical_url: str) -> QuerySet[HostOutage]:
    url = ExpressionWrapper(OuterRef(canonical_url), output_field=CharField())
    return HostOutage.objects.annotate(url=url).filter(url__startswith=F("host"))


def record_host_failure(repository: Repository, error: GitError) -> None:
    """Record that the repository's git host is down. If that is known, do nothing: the sweep's next probe decides."""
    until = from_now(backoff(1, base=HOST_BASE_DELAY_SECONDS, jitter=random.random()))  # noqa: S311  no secret
    fields = {"since": Now(), "retry_at": until, "error": str(error)}
    HostOutage.objects.get_or_create(host=host_of(repository.canonical_url), defaults=fields)


def prolong_outage(outage: HostOutage, error: GitError) -> None:
    """Record another failure to connect to a host that is down."""
    failures = outage.failures + 1
    seconds = backoff(failures, base=HOST_BASE_DELAY_SECONDS, jitter=random.random())  # noqa: S311  no secret
    rows = HostOutage.objects.filter(pk=outage.pk)
    rows.update(failures=failures, retry_at=from_now(min(seconds, HOST_MAX_DELAY_SECONDS)), error=str(error))


def try_hosts_now(repositories: Iterable[Repository]) -> None:
    """If a git host of these repositories is down, let the sweep's next round try it."""
    hosts = {host_of(repository.canonical_url) for repository in repositories}
    HostOutage.objects.filter(host__in=hosts).update(retry_at=Now())


def is_failing(repository: Repository) -> bool:
    """Return whether the repository's row, as it is now, counts failures or has an open circuit."""
    return bool(_failing(repository.pk))


_CLOSED: dict[str, Any] = {
    "consecutive_failures": 0,
    "circuit_open_until": None,
    "last_failure_at": None,
    "last_error": "",
    "last_error_cause": "",
}


def close_circuit(repository: Repository) -> bool:
    """Close the circuit and reset its failure count: the repository can be read again, or a user has reset the circuit.

    Return whether this ended a cooldown that was still running.
    """
    # By the database's clock, as all of its times are.
    was_open = Repository.objects.filter(pk=repository.pk, circuit_open_until__gt=Now()).exists()
    return _failing.update(repository.pk, **_CLOSED) == 1 and was_open


def close_circuits(repositories: Iterable[Repository]) -> None:
    """Close these circuits as `close_circuit` does. Call this inside a transaction: it locks the rows in key order."""
    rows = Repository.objects.filter(pk__in=[repository.pk for repository in repositories])
    Repository.objects.filter(pk__in=lock_rows(rows)).update(**_CLOSED)


@compiled_and_prepared
def _failing(repository_pk: int) -> QuerySet[Repository]:
    failing = Repository.objects.filter(pk=repository_pk).exclude(consecutive_failures=0, circuit_open_until=None)
    return failing.only("pk")
