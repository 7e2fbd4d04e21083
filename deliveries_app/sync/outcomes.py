"""Record how an attempt ended: update the watch, its runs, the repository's circuit and the app's cooldown.

Each function is one fenced transaction. If the watch belongs to another claim now, it raises `Superseded` and writes nothing.
"""

import logging
import random
from functools import partial
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Coalesce, Greatest, Now

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, AuditAction, Outcome, Status, root_causes
from deliveries_app.models.root_causes import CLEARED_FAILURE, RootCause, SyncFailure
from deliveries_app.progress import runs
from deliveries_app.scheduling import next_check
from deliveries_app.sync.circuit import record_git_failure
from deliveries_app.sync.lease import Lease
from docora.backoff import MAX_WAIT_SECONDS, backoff
from docora.db.clock import from_now
from docora.redis import counters
from repositories_app import services as repositories
from repositories_app.git.exceptions import GitError, TokenRequired

logger = logging.getLogger(__name__)

ENDPOINT_BASE_DELAY_SECONDS = 5.0
OTHERS_FIRST_SECONDS = 5.0


def succeeded(lease: Lease, fields: dict[str, Any], *, next_sync_in: float | None) -> None:
    """Record that everything planned is acknowledged, or that there was nothing to do.

    `fields` are the columns of the watch that describe the commit, the base and the tree. With `next_sync_in` (seconds)
    the watch stays due.
    """
    changes: dict[str, Any] = {
        "status": Status.SYNCED,
        "retry_count": 0,
        "crash_count": 0,
        "last_synced_at": Now(),
        "last_scanned_at": Now(),
        "next_check_at": next_check(fields.get("moved_at")),
        "files_failing": 0,
        "deletes_failing": 0,
        **CLEARED_FAILURE,
        **fields,
    }
    with transaction.atomic(savepoint=False):
        lease.finish(next_sync_in=next_sync_in, **changes)
        runs.end_runs(lease.watch.pk, lease.generation, Outcome.SUCCEEDED)


def no_commit_yet(lease: Lease) -> None:
    """Record that the repository can be read but has no commit, and that the app holds no file of it. Checks continue."""
    succeeded(lease, {"status": Status.PENDING, "last_synced_at": F("last_synced_at")}, next_sync_in=None)


def failed(
    lease: Lease,
    failure: SyncFailure,
    *,
    permanent: bool = False,
    min_delay: float = 0.0,
    check_in: float = 0.0,
    fields: dict[str, Any] | None = None,
) -> None:
    """Record a failed attempt that counts: retry after a backoff, or give up until the next rescan.

    After giving up, the count stays one below the limit, so each rescan is a single attempt. If a person asked for a retry
    during the attempt, do not give up, because that retry has not been tried yet. `min_delay` and `check_in` are the minimum
    seconds until the next attempt and until the next check of HEAD.
    """
    attempt = lease.watch.retry_count
    delay = backoff(attempt, base=settings.RETRY_BASE_DELAY_SECONDS, jitter=random.random())  # noqa: S311  no secret
    with transaction.atomic():
        exhausted = (permanent or attempt >= settings.MAX_RETRY_ATTEMPTS) and not lease.retry_was_requested()
        wait = max(settings.RESCAN_INTERVAL_SECONDS if exhausted else delay, min_delay)
        lease.finish(
            next_sync_in=wait,
            status=Status.FAILED if exhausted else Status.PENDING,
            crash_count=0,
            retry_count=settings.MAX_RETRY_ATTEMPTS - 1 if exhausted else F("retry_count"),
            last_scanned_at=Now(),
            next_check_at=Greatest(next_check((fields or {}).get("moved_at")), from_now(check_in)),
            **failure.columns(),
            **(fields or {}),
        )
        transaction.on_commit(partial(_log_failed, failure, attempt, wait), robust=True)
        if exhausted:
            runs.end_runs(lease.watch.pk, lease.generation, Outcome.FAILED, failure.message)


def git_failed(lease: Lease, error: GitError) -> None:
    """Record that git could not read the repository. A failure that concerns all watches also counts for the circuit.

    A host that is down is not the repository's failure: all watches of the host wait until it can be reached.
    """
    of_git = SyncFailure(str(error), error.cause.value, root_causes.of_git(error.cause))
    failure = root_causes.internal(str(error)) if error.is_local else of_git
    if error.no_connection:
        repositories.record_host_failure(lease.watch.repository, error)
        postponed(lease, lease.circuit_seconds, failure)
        return
    if isinstance(error, TokenRequired):
        repositories.record_privacy(lease.watch.repository, is_private=True)
    counts = error.for_every_watcher and _others_fail_too(lease.watch)
    open_for = record_git_failure(lease.watch.repository, error, found_by=lease.watch) if counts else 0.0
    failed(lease, failure, permanent=error.permanent, min_delay=max(open_for, error.cooldown), check_in=error.cooldown)


def _others_fail_too(watch: AppRepository) -> bool:
    """Return whether git also failed at the last attempt of each other watch of the repository that is not paused.

    An app may choose any branch, spell the URL differently, or have no token. A failure that this causes must not hold back
    the apps that can read the repository. If no app can, each watch fails at its next check.
    """
    others = AppRepository.objects.alive().unpaused().filter(repository=watch.repository_id).exclude(pk=watch.pk)
    return not others.exclude(root_cause__in=root_causes.GIT_CAUSES).exists()


def postponed(
    lease: Lease, seconds: float, failure: SyncFailure | None = None, fields: dict[str, Any] | None = None
) -> None:
    """Make the watch due again in `seconds` without counting the attempt, because the watch is not to blame."""
    with transaction.atomic():
        lease.finish(
            next_sync_in=seconds,
            status=Status.FAILED if lease.had_failed else Status.PENDING,
            retry_count=Greatest(F("retry_count") - 1, 0),  # a person may have set it to 0 meanwhile
            **(failure.columns() if failure else {}),
            **(fields or {}),
        )
        if failure:
            transaction.on_commit(partial(_log_failed, failure, lease.watch.retry_count, seconds), robust=True)


def start_cooldown(lease: Lease, seconds: float, failure: SyncFailure, fields: dict[str, Any] | None = None) -> None:
    """Send nothing for any of the app's watches for `seconds`, as the app has asked. Free the worker meanwhile."""
    seconds = min(seconds, MAX_WAIT_SECONDS)
    with transaction.atomic():  # the app's row before the watch's, as the claim locks them
        if _set_cooldown(lease, seconds):
            postponed(lease, seconds, failure, fields)


def endpoint_down(lease: Lease, failure: SyncFailure, *, counts: bool) -> None:
    """Put the app, whose endpoint is down, on hold for a backoff: nothing is sent for any of its watches.

    With `counts`, the attempt counts, because perhaps only this watch's files fail. Another watch then tries first.
    """
    failures = lease.watch.app.down_count + 1
    seconds = backoff(failures, base=ENDPOINT_BASE_DELAY_SECONDS, jitter=random.random())  # noqa: S311  no secret
    with transaction.atomic():
        # Several runs may find the same outage, which counts once.
        if not _set_cooldown(lease, seconds, down_count=Greatest(F("down_count"), failures)):
            return
        if counts:
            failed(lease, failure, min_delay=seconds + OTHERS_FIRST_SECONDS)
        else:
            postponed(lease, seconds, failure)


def _set_cooldown(lease: Lease, seconds: float, **changes: Any) -> bool:
    """Set the app's cooldown. Never shorten it, because another run may have set it meanwhile.

    If the app's base URL has changed, the attempt says nothing about the new endpoint: make the watch due at once, and
    return False.
    """
    until = from_now(seconds)
    latest = Greatest(until, Coalesce(F("cooldown_until"), until))
    app = lease.watch.app
    if App.objects.filter(pk=app.pk, base_url=app.base_url).update(cooldown_until=latest, **changes):
        return True
    postponed(lease, 0.0)
    return False


def endpoint_gone(lease: Lease) -> None:
    """Pause the app, which answered 410, until it is resumed."""
    message = (
        "The app returned HTTP 410 and was paused. It can be resumed once its endpoint accepts notifications again."
    )
    with transaction.atomic():
        if not pause_app(lease.watch.app, message):
            postponed(lease, 0.0)
            return
        postponed(lease, 0.0, SyncFailure(message, "http", RootCause.CLIENT_ERROR, 410))
        runs.end_runs(lease.watch.pk, lease.generation, Outcome.PAUSED, message)


def pause_app(app: App, message: str) -> bool:
    """Pause the app, which answered 410, and record that Docora did so. Return whether the app is paused now.

    Do nothing if it is already paused. Return False if its base URL has changed: the new endpoint may work.
    """
    same_endpoint = App.objects.filter(pk=app.pk, base_url=app.base_url)
    if same_endpoint.filter(paused=False).update(paused=True, paused_reason=message):
        audit.record(Actor.system(), AuditAction.APP_PAUSED, [app], f"Paused. {message}")
        return True
    return same_endpoint.exists()


def _log_failed(failure: SyncFailure, attempt: int, wait: float) -> None:
    fields = {"cause": failure.root.value, "error": failure.message, "attempt": attempt, "next_try_in": round(wait, 1)}
    logger.info("attempt_failed", extra=fields)
    counters.add({counters.field(counters.SYNC_FAILURES, failure.root.value): 1})
