"""Open and close the circuit of a repository that git cannot read, and notify its watchers."""

from datetime import datetime

from django.conf import settings
from django.db import transaction
from django.db.models import Q

from deliveries_app import scheduling
from deliveries_app.models import AppRepository, Notice, NoticeKind
from deliveries_app.models.root_causes import RootCause
from deliveries_app.sync.events import new_notice
from deliveries_app.webhooks.client import info_of
from deliveries_app.webhooks.payloads import sync_failed_fields
from repositories_app import services as repositories
from repositories_app.git.exceptions import GitError
from repositories_app.models import Repository


def record_git_failure(repository: Repository, error: GitError, *, found_by: AppRepository | None = None) -> float:
    """Count a failure that concerns all watches. If it opens the circuit, create `sync_failed` notices.

    `found_by` read the repository and found the failure. Apps must not learn what only others can read, so a watch that the
    host refuses or that has never read the repository gets no notice, unless it failed with the same error. If the host is
    down (`found_by` is None), a watch that has never read the repository gets one, too.

    Return the seconds until the circuit lets the next attempt through, or 0 if it is closed. This is one transaction: if the
    circuit opened without the notices, nothing would create them later.
    """
    with transaction.atomic():
        if repositories.record_failure(repository, error):
            _announce_failure(repository, error, found_by)
    is_open = repository.consecutive_failures >= settings.CIRCUIT_BREAKER_THRESHOLD
    return settings.CIRCUIT_BREAKER_COOLDOWN_SECONDS if is_open else 0.0


def _announce_failure(repository: Repository, error: GitError, found_by: AppRepository | None) -> None:
    may_know = ~Q(root_cause__in=[RootCause.GIT_AUTH, RootCause.GIT_NOT_FOUND])
    if found_by:  # an outage of the host says nothing about the repository
        may_know &= ~Q(last_commit="", seen_commit="")
        may_know |= Q(pk=found_by.pk) | Q(last_error=str(error))
    watches_to_notify = AppRepository.objects.alive().filter(may_know, repository=repository)
    pks = scheduling.request_sync(watches_to_notify)
    watches = AppRepository.objects.filter(pk__in=pks).select_related("repository").order_by("pk")
    assert repository.circuit_open_until is not None
    notices = [
        new_notice(
            watch,
            NoticeKind.SYNC_FAILED,
            sync_failed_fields(
                info_of(watch),
                reason=error.cause.value,
                message=str(error),
                consecutive_failures=repository.consecutive_failures,
                threshold=settings.CIRCUIT_BREAKER_THRESHOLD,
                cooldown_until=repository.circuit_open_until,
                retry_count=watch.retry_count,
            ),
        )
        for watch in watches
    ]
    Notice.objects.bulk_create(notices)
    transaction.on_commit(scheduling.enqueue_due, robust=True)


def close_circuit(repository: Repository, *, but: AppRepository | None = None, read_at: datetime | None = None) -> None:
    """Close the circuit of a repository that can be read. Make its watches due now, except `but`, which has just read it.

    Do nothing if the repository has failed since `read_at`: an earlier read proves nothing about it.
    """
    if not repositories.is_failing(repository):
        return
    with transaction.atomic():
        failing = repositories.lock(repository.pk)  # again: it may have failed meanwhile
        if failing is None or (read_at and failing.last_failure_at and failing.last_failure_at > read_at):
            return
        repositories.try_hosts_now([failing])  # it has answered
        if repositories.close_circuit(failing):
            watches = AppRepository.objects.alive().filter(repository=repository)
            scheduling.request_sync(watches.exclude(pk=but.pk) if but else watches)
            transaction.on_commit(scheduling.enqueue_due, robust=True)
