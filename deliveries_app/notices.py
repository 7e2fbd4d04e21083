"""Notifications that are not about one file: `sync_failed` and `sync_completed`.

Each is a row from the moment it is due, sent by whoever claims the pair, under the same lease and the same slots as
files are: so it survives crashes, is tried again, and keeps its number (`engine.md` §5 and §10).
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from deliveries_app import causes, rows
from deliveries_app.causes import Trouble
from deliveries_app.exceptions import Paused
from deliveries_app.keyring import REFUSALS, Keyring, Keys, answers_of
from deliveries_app.lease import Lease, backoff
from deliveries_app.models import AppRepository, Notice, NoticeKind
from deliveries_app.payloads import (
    Envelope,
    RepositoryInfo,
    endpoint,
    notice_body,
    sync_completed_facts,
    sync_failed_facts,
    webhook_id,
)
from deliveries_app.sender import Destination
from deliveries_app.services import waking
from docora.http.client import HttpClient, Outcome, Request
from repositories_app import services as repositories
from repositories_app.exceptions import GitError
from repositories_app.models import Repository
from repositories_app.remote import wait_for
from repositories_app.repository_urls import owner_and_name

logger = logging.getLogger(__name__)

GIVE_UP_AFTER = timedelta(days=1)
_BASE_DELAY_SECONDS = 2.0


class NoticeRefused(Exception):
    """The files arrived, but the notice about it was not accepted."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.message)
        self.trouble = trouble


def info_of(pair: AppRepository) -> RepositoryInfo:
    """The `repository` object of the pair's notifications."""
    return RepositoryInfo(pair.repository.repository_id, pair.github_url, *owner_and_name(pair.github_url))


def tree_sha256(pair_pk: int) -> str:
    """SHA-256 over the lines `{sha}  {path}\\n` of every file that the app acknowledged, in byte order of the paths."""
    digest = hashlib.sha256()
    for path, sha in rows.held(pair_pk):
        digest.update(f"{sha}  {path}\n".encode())
    return digest.hexdigest()


def record_git_failure(repository: Repository, error: GitError) -> float:
    """Count a failure that concerns every watcher. If it opens the circuit, a `sync_failed` is due to each of them.
    Seconds until the circuit lets the next attempt through, 0 when it is closed.

    One transaction: a circuit that opened without its notices would stay silent for ever.
    """
    with transaction.atomic():
        circuit = repositories.record_failure(repository, error)
        if circuit.opened:
            _announce_failure(repository, error)
    return circuit.open_for


def _announce_failure(repository: Repository, error: GitError) -> None:
    watchers = AppRepository.objects.alive().filter(repository=repository)
    pairs = list(watchers.select_for_update(of=("self",)).select_related("repository").order_by("pk"))
    assert repository.circuit_open_until is not None
    notices = [
        _notice(
            pair,
            NoticeKind.SYNC_FAILED,
            sync_failed_facts(
                info_of(pair),
                reason=error.cause.value,
                message=str(error),
                consecutive_failures=repository.consecutive_failures,
                threshold=settings.CIRCUIT_BREAKER_THRESHOLD,
                cooldown_until=repository.circuit_open_until,
                retry_count=pair.retry_count,
            ),
        )
        for pair in pairs
    ]
    Notice.objects.bulk_create(notices)
    waking.wish(AppRepository.objects.filter(pk__in=[pair.pk for pair in pairs]))
    transaction.on_commit(waking.enqueue_due, robust=True)


def send_due(client: HttpClient, lease: Lease, envelope: Envelope, keyring: Keyring, alive: Callable[[], None]) -> None:
    """Send the pair's `sync_failed` notices whose time has come. One that is refused waits, longer every time, and is
    given up after a day; a file never waits for it."""
    due = Notice.objects.filter(pair=lease.pair, kind=NoticeKind.SYNC_FAILED, due_at__lte=lease.clock.now())
    for notice in due:
        alive()
        outcome = _send(client, lease, notice, lease.pair.app.base_url, envelope, keyring, alive)
        if outcome.ok or outcome.status == 410 or timezone.now() - notice.created_at > GIVE_UP_AFTER:
            logger.info("notice_settled", extra={"notice": notice.pk, "status": outcome.status})
            with transaction.atomic():
                lease.extend()
                notice.delete()
            continue
        asked = outcome.retry_after(timezone.now().timestamp()) if outcome.status in {429, 503} else None
        wait = max(backoff(notice.attempts + 1, base=_BASE_DELAY_SECONDS, jitter=0.0), min(asked or 0.0, 3600.0))
        Notice.objects.filter(pk=notice.pk).update(
            attempts=F("attempts") + 1,
            due_at=lease.clock.now() + timedelta(seconds=wait),
            last_error=_why(outcome)[:500],
        )


def send_sync_completed(
    client: HttpClient, lease: Lease, to: Destination, files: int, alive: Callable[[], None]
) -> None:
    """Tell the app with one hash what it should hold now; `NoticeRefused` when it does not answer 2xx.

    The row is kept until the run has ended well (`settle_completed`): the same statement, tried again, keeps its number.
    """
    facts = sync_completed_facts(to.repository, to.commit, files, tree_sha256(lease.pair.pk))
    fresh = _notice(lease.pair, NoticeKind.SYNC_COMPLETED, facts)
    waiting = Notice.objects.filter(pair=lease.pair, kind=NoticeKind.SYNC_COMPLETED)
    notice = waiting.filter(generation=lease.generation, facts=fresh.facts).first()
    if notice is None:
        waiting.delete()
        notice = fresh
        notice.save()
    outcome = _send(client, lease, notice, to.base_url, to.envelope, to.keyring, alive)
    if not outcome.ok:
        message = f"All files were acknowledged, but /sync_completed was not: {_why(outcome)}"
        cause = outcome.cause.value if outcome.cause else "http"
        root = causes.of_delivery(cause, outcome.status)
        raise NoticeRefused(
            Trouble(message, cause, root, outcome.status, answers_of(lease.pair.app, [outcome.body])[0])
        )


def settle_completed(pair: AppRepository) -> None:
    """The run has ended well; call it in the transaction that says so."""
    Notice.objects.filter(pair=pair, kind=NoticeKind.SYNC_COMPLETED).delete()


def _notice(pair: AppRepository, kind: NoticeKind, facts: Mapping[str, Any]) -> Notice:
    return Notice(pair=pair, kind=kind, facts=orjson.dumps(facts).decode(), generation=pair.generation)


def _send(
    client: HttpClient,
    lease: Lease,
    notice: Notice,
    base_url: str,
    envelope: Envelope,
    keyring: Keyring,
    alive: Callable[[], None],
) -> Outcome:
    """One attempt; its number is in the database before the first byte is sent. Whoever pauses syncing meanwhile waits
    for the answer: thrown away, it would have the same notice sent again."""

    def settling() -> None:
        with contextlib.suppress(Paused):
            alive()

    if notice.intent is None:
        notice.intent = lease.reserve_intents(1)
    with transaction.atomic():
        lease.extend()
        Notice.objects.filter(pk=notice.pk).update(intent=notice.intent)
    return post_signed(
        client,
        endpoint(base_url, notice.kind),
        orjson.loads(notice.facts),
        webhook_id(lease.pair.watch_id, notice.intent),
        notice.intent,
        envelope,
        keyring,
        settling,
    )


def post_signed(
    client: HttpClient,
    url: str,
    facts: Mapping[str, Any],
    message_id: str,
    sequence: int,
    envelope: Envelope,
    keyring: Keyring,
    alive: Callable[[], None] | None = None,
) -> Outcome:
    """Post a signed body and wait; once more with the other key when a key is being rotated and the first is refused."""

    def post(keys: Keys) -> Outcome:
        now = datetime.now(UTC)
        body = notice_body(facts, now)
        headers = envelope.headers(body, message_id, sequence, int(now.timestamp()), keys)
        outcome = wait_for(client, Request("POST", url, headers, body, repeatable=True), alive)
        if outcome.ok:
            keyring.accepted(keys)
        return outcome

    first = keyring.keys
    outcome = post(first)
    other = keyring.other(first) if outcome.status in REFUSALS else None
    return post(other) if other else outcome


def _why(outcome: Outcome) -> str:
    return outcome.message if outcome.cause else f"it answered {outcome.status}"
