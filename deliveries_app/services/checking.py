"""The regular check: has HEAD moved? One small request per pair, hundreds at a time, nothing written unless it has.

Runs in the sweep process, never in the queue. Each pair is asked for with its own token and compared with its own base:
another app's right to read never answers for it. Pairs that are due by their own time anyway are not asked for.
"""

import logging
from collections.abc import Callable

from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from deliveries_app.models import AppRepository
from deliveries_app.rescans import next_check
from deliveries_app.rows import terms_of
from deliveries_app.services import waking
from docora import counters
from docora.crypto import Undecryptable
from docora.http.client import HttpClient
from repositories_app.exceptions import GitError
from repositories_app.remote import ls_heads

logger = logging.getLogger(__name__)

SLICE = 500


def check_due(client: HttpClient, meanwhile: Callable[[], None] = lambda: None) -> int:
    """Check every pair whose time has come; wakes a sync for those that moved or cannot be read. How many were asked.

    `meanwhile` is called again and again while the hosts are waited for."""
    asked = 0
    while pairs := _take_slice():
        asked += len(pairs)
        lost = {pair.pk for pair in pairs if isinstance(pair.github_token, Undecryptable)}
        wanting = list(lost)
        questions = ((pair, pair.github_url, pair.github_token) for pair in pairs if pair.pk not in lost)
        for pair, answer in ls_heads(client, questions, meanwhile):
            if isinstance(answer, GitError):
                logger.info("check_failed", extra={"pair": pair.pk, "cause": answer.cause.value})
            elif (answer.commit, answer.branch, terms_of(pair).fingerprint) == (
                pair.base_commit,
                pair.branch,
                pair.base_rules,
            ):
                continue
            wanting.append(pair.pk)  # an error is told, counted and tried again by the sync itself
        AppRepository.objects.filter(pk__in=[pair.pk for pair in pairs]).update(last_scanned_at=Now())
        counters.add({counters.CHECKS: len(pairs) - len(lost)})
        if wanting:
            waking.wish(AppRepository.objects.alive().filter(pk__in=wanting))
        if len(pairs) < SLICE:
            break
    return asked


def _take_slice() -> list[AppRepository]:
    """Pairs to check now, taken by moving their next check: two sweeps at once never take the same one."""
    closed = Q(repository__circuit_open_until=None) | Q(repository__circuit_open_until__lte=Now())
    with transaction.atomic():
        pairs = list(
            AppRepository.objects.alive()
            .free()
            .unpaused()
            .filter(closed, next_check_at__lte=Now(), next_sync_at=None)
            .select_for_update(skip_locked=True, of=("self",))
            .select_related("repository")
            .order_by("next_check_at")[:SLICE]
        )
        AppRepository.objects.filter(pk__in=[pair.pk for pair in pairs]).update(next_check_at=next_check())
    return pairs
