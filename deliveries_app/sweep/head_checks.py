"""Check whether HEAD has moved: one small request per watch, hundreds at a time.

This runs in the sweep process, never in the queue. Each check uses the watch's own token and compares with the watch's own
base, so one app never profits from another app's access. Watches that are due anyway are not checked.
"""

import logging
from collections.abc import Callable

from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from deliveries_app import scheduling
from deliveries_app.models import AppRepository
from deliveries_app.planning.delivery_rows import delivery_rules_of
from deliveries_app.scheduling import next_check
from docora.http.client import HttpClient
from docora.redis import counters
from docora.security.crypto import Undecryptable
from repositories_app.git.exceptions import GitError, NoCommit
from repositories_app.git.remote import Question, ls_heads

logger = logging.getLogger(__name__)

SLICE = 500


def check_due(client: HttpClient, meanwhile: Callable[[], None] = lambda: None) -> int:
    """Check every watch that is due for a check, and request a sync for those that moved or cannot be read.

    Call `meanwhile` repeatedly while waiting for the git hosts. Return the number of checked watches.
    """
    checked = 0
    while watches := _take_slice():
        checked += len(watches)
        undecryptable = {watch.pk for watch in watches if isinstance(watch.github_token, Undecryptable)}
        to_sync = list(undecryptable)
        questions = (
            Question(watch, watch.github_url, watch.github_token, watch.last_commit)
            for watch in watches
            if watch.pk not in undecryptable
        )
        for watch, answer in ls_heads(client, questions, meanwhile):
            if isinstance(answer, NoCommit) and watch.waits_for_first_commit:
                continue
            if isinstance(answer, GitError):
                logger.info("check_failed", extra={"watch": watch.pk, "cause": answer.cause.value})
            elif (answer.commit, answer.branch, delivery_rules_of(watch).fingerprint) == (
                watch.base_commit,
                watch.branch,
                watch.base_rules,
            ):
                continue
            to_sync.append(watch.pk)  # the sync itself reports, counts and retries an error
        AppRepository.objects.filter(pk__in=[watch.pk for watch in watches]).update(last_scanned_at=Now())
        counters.add({counters.CHECKS: len(watches) - len(undecryptable)})
        if to_sync:
            scheduling.request_sync(AppRepository.objects.alive().filter(pk__in=to_sync))
        if len(watches) < SLICE:
            break
    return checked


def _take_slice() -> list[AppRepository]:
    """Take watches to check now by moving their next check, so that two sweeps never take the same one."""
    closed = Q(repository__circuit_open_until=None) | Q(repository__circuit_open_until__lte=Now())
    with transaction.atomic():
        watches = list(
            AppRepository.objects.alive()
            .free()
            .unpaused()
            .filter(closed, next_check_at__lte=Now(), next_sync_at=None)
            .select_for_update(skip_locked=True, of=("self",))
            .select_related("repository")
            .order_by("next_check_at")[:SLICE]
        )
        AppRepository.objects.filter(pk__in=[watch.pk for watch in watches]).update(next_check_at=next_check())
    return watches
