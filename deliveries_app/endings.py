"""How an attempt ends: what becomes of the pair, its runs, the repository's circuit and the app's rest.

Each function is one fenced transaction: it either finds the pair still ours and writes everything, or raises
`Superseded` and writes nothing.
"""

import logging
import random
from functools import partial
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Greatest, Now

from deliveries_app import causes, runs
from deliveries_app.causes import NO_TROUBLE, RootCause, Trouble
from deliveries_app.clock import from_now
from deliveries_app.lease import Lease, backoff
from deliveries_app.models import App, Outcome, Status
from deliveries_app.notices import record_git_failure
from deliveries_app.rescans import next_check
from docora import counters
from repositories_app.exceptions import GitError

logger = logging.getLogger(__name__)

ENDPOINT_BASE_DELAY_SECONDS = 5.0
_LONGEST_REST = 3600.0


def succeeded(lease: Lease, facts: dict[str, Any]) -> None:
    """Everything planned is acknowledged (or nothing was to do). `facts`: commit, base and tree columns."""
    with transaction.atomic():
        lease.finish(
            next_sync_in=None,
            status=Status.SYNCED,
            retry_count=0,
            last_synced_at=Now(),
            last_scanned_at=Now(),
            next_check_at=next_check(facts.get("moved_at")),
            files_failing=0,
            **NO_TROUBLE,
            **facts,
        )
        runs.end_runs(lease.pair.pk, lease.generation, Outcome.SUCCEEDED)


def failed(
    lease: Lease,
    trouble: Trouble,
    *,
    permanent: bool = False,
    rest: float = 0.0,
    facts: dict[str, Any] | None = None,
) -> None:
    """An attempt that counts: try again after a pause that doubles, or give up until the next rescan.

    The count stays one below the limit when it gives up: each rescan is one more attempt, no longer series. It never
    gives up on what a person asked for while it was at it: that is still to be tried.
    """
    attempt = lease.pair.retry_count
    delay = backoff(attempt, base=settings.RETRY_BASE_DELAY_SECONDS, jitter=random.random())  # noqa: S311  no secret
    with transaction.atomic():
        exhausted = (permanent or attempt >= settings.MAX_RETRY_ATTEMPTS) and not lease.asked_meanwhile()
        wait = max(settings.RESCAN_INTERVAL_SECONDS if exhausted else delay, rest)
        lease.finish(
            next_sync_in=wait,
            status=Status.FAILED if exhausted else Status.PENDING,
            retry_count=settings.MAX_RETRY_ATTEMPTS - 1 if exhausted else F("retry_count"),
            last_scanned_at=Now(),
            next_check_at=next_check((facts or {}).get("moved_at")),
            **trouble.columns(),
            **(facts or {}),
        )
        transaction.on_commit(partial(_tell_failed, trouble, attempt, wait), robust=True)
        if exhausted:
            runs.end_runs(lease.pair.pk, lease.generation, Outcome.FAILED, trouble.message)


def git_failed(lease: Lease, error: GitError) -> None:
    """Reading the repository failed; what concerns every watcher counts for the circuit too."""
    open_for = record_git_failure(lease.pair.repository, error) if error.for_every_watcher else 0.0
    trouble = Trouble(str(error), error.cause.value, causes.of_git(error.cause))
    failed(lease, trouble, permanent=error.permanent, rest=max(open_for, error.rest))


def postponed(lease: Lease, seconds: float, trouble: Trouble | None = None) -> None:
    """Not this pair's fault: due again in so many seconds, and the attempt is given back."""
    with transaction.atomic():
        lease.finish(
            next_sync_in=seconds,
            status=Status.FAILED if lease.had_failed else Status.PENDING,
            retry_count=Greatest(F("retry_count") - 1, 0),  # a person may have set it to 0 meanwhile
            **(trouble.columns() if trouble else {}),
        )
        if trouble:
            transaction.on_commit(partial(_tell_failed, trouble, lease.pair.retry_count, seconds), robust=True)


def endpoint_rests(lease: Lease, seconds: float, trouble: Trouble, *, down: bool) -> None:
    """The app asked for a rest or is down: none of its pairs is sent to earlier, so that no worker sits and waits."""
    if down:
        seconds = backoff(lease.pair.app.down_count + 1, base=ENDPOINT_BASE_DELAY_SECONDS, jitter=random.random())  # noqa: S311
    seconds = min(seconds, _LONGEST_REST)
    with transaction.atomic():  # the app's row before the pair's, as the claim locks them
        App.objects.filter(pk=lease.pair.app_id).update(
            not_before=Greatest(from_now(seconds), F("not_before")) if lease.pair.app.not_before else from_now(seconds),
            down_count=F("down_count") + (1 if down else 0),
        )
        postponed(lease, seconds, trouble)


def endpoint_gone(lease: Lease) -> None:
    """The app wants no more notifications: paused until an administrator resumes it."""
    message = "The app answered 410 Gone and was paused. Resume it once its endpoint takes notifications again."
    with transaction.atomic():
        App.objects.filter(pk=lease.pair.app_id).update(paused=True, paused_reason=message)
        postponed(lease, 0.0, Trouble(message, "http", RootCause.CLIENT_ERROR, 410))
        runs.end_runs(lease.pair.pk, lease.generation, Outcome.PAUSED, message)


def _tell_failed(trouble: Trouble, attempt: int, wait: float) -> None:
    facts = {"cause": trouble.root.value, "error": trouble.message, "attempt": attempt, "next_try_in": round(wait, 1)}
    logger.info("attempt_failed", extra=facts)
    counters.add({counters.field(counters.SYNC_FAILURES, trouble.root.value): 1})
