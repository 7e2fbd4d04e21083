"""The check for differences: ask the app what it holds, and compare that with what it has acknowledged (`engine.md` §13).

The check runs in an attempt that found nothing to send. So nothing is in doubt, and no sync waits for the check.
"""

import logging
import time

from django.db import DatabaseError, InterfaceError, transaction
from django.db.models import F
from django.db.models.functions import Now

from deliveries_app.models import AppRepository, DriftCheck, DriftFile, DriftState
from deliveries_app.models.drift import DriftCheckQuerySet
from deliveries_app.planning import delivery_rows
from deliveries_app.sync.channel import Channel
from deliveries_app.sync.endpoint_health import record_up
from deliveries_app.sync.events import held_tree
from deliveries_app.sync.exceptions import Paused, Superseded
from deliveries_app.sync.responses import SHORTEST_WAIT
from deliveries_app.webhooks.client import asked_to_wait, describe_outcome
from deliveries_app.webhooks.payloads import VERIFY_REASON, Envelope, verify_fields
from deliveries_app.webhooks.verify import MAX_ANSWER_BYTES, MAX_ENTRIES, Comparison, Page, Unusable, read_page
from docora.backoff import backoff
from docora.db.clock import boot_seconds
from docora.http.client import Outcome
from docora.text import format_seconds
from repositories_app.git.exceptions import Interrupted

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # starts of a check whose worker then died
MAX_WAITS = 5  # for each page, if the app is too busy
LONGEST_WAIT = 5.0  # seconds
MAX_SECONDS = 600.0  # for the app to list its files
_SHORTER = 8  # after a page that was too large, the limit is divided by this
_ASK_SECONDS = 1.0  # between two tests of whether the check may continue


class _Ended(Exception):
    """The check ends without a comparison."""

    def __init__(self, state: DriftState, message: str) -> None:
        super().__init__(message)
        self.state, self.message = state, message


class _MadeWay(Exception):
    """A sync was requested meanwhile, another watch of the app needs the slot, or the check was cancelled."""


def run_check(channel: Channel, commit: str, run_id: str) -> None:
    """Run the watch's open check, if there is one.

    The check makes way for a sync that is requested meanwhile, also for one of another watch if the app has no slot left. Then,
    and if the attempt ends early, it is queued again.
    """
    check = DriftCheck.objects.open().filter(watch=channel.lease.watch).first()
    if check is None:
        return
    running = _Check(channel, check, commit, channel.envelope(run_id, VERIFY_REASON))
    try:
        running.run()
    except _MadeWay:
        running.give_back()
        logger.info("drift_check_made_way", extra={"check": check.pk})
    except (Superseded, Paused, Interrupted, DatabaseError, InterfaceError):
        running.give_back()
        raise
    except Exception:  # a check must not fail the sync
        logger.exception("drift_check_failed_unexpectedly")
        running.end(DriftState.NOT_CHECKED, "An internal error stopped the check. Check the worker's log.")


class _Check:
    def __init__(self, channel: Channel, check: DriftCheck, commit: str, envelope: Envelope) -> None:
        self._channel, self._check, self._commit, self._envelope = channel, check, commit, envelope
        self._lease = channel.lease
        self._limit = MAX_ENTRIES
        self._asked_at = boot_seconds()
        self._not_before = 0.0  # monotonic

    def run(self) -> None:
        try:
            self._begin()
            comparison = self._compare()
        except _Ended as ended:
            self.end(ended.state, ended.message)
        else:
            state = DriftState.DIFFERS if comparison.differences else DriftState.EQUAL
            self.end(state, "", comparison)

    def give_back(self) -> None:
        """Queue the check again, unless it has ended or another claim runs it now."""
        self._own_check().update(state=DriftState.QUEUED, attempts=F("attempts") - 1)

    def _own_check(self) -> DriftCheckQuerySet:
        open_checks = DriftCheck.objects.open()
        return open_checks.filter(pk=self._check.pk, state=DriftState.CHECKING, fencing_token=self._lease.fencing_token)

    def _begin(self) -> None:
        with transaction.atomic():
            self._lease.extend()
            begun = DriftCheck.objects.open().filter(pk=self._check.pk)
            if not begun.update(
                state=DriftState.CHECKING,
                attempts=F("attempts") + 1,
                fencing_token=self._lease.fencing_token,
                started_at=Now(),
                commit_sha=self._commit,
            ):
                raise _MadeWay
        if self._check.attempts >= MAX_ATTEMPTS:
            message = f"The worker died {MAX_ATTEMPTS} times during the check. Check its memory and its log."
            raise _Ended(DriftState.NOT_CHECKED, message)
        if not self._lease.watch.app.answers_verify:
            raise _Ended(DriftState.UNSUPPORTED, "Checks for differences are turned off for this app.")
        logger.info("drift_check_started", extra={"check": self._check.pk})

    def _compare(self) -> Comparison:
        watch_pk = self._lease.watch.pk
        held = held_tree(watch_pk, self._alive)
        page = self._ask(held.sha256, "")
        if page.is_equal:
            return Comparison(iter(()), compared=held.files)
        comparison = Comparison(delivery_rows.acknowledged_files(watch_pk, self._alive))
        ends_at = time.monotonic() + MAX_SECONDS
        while True:
            comparison.add(page.files)
            if page.after is None:
                break
            if time.monotonic() > ends_at:
                message = f"The app had not listed all its files after {format_seconds(MAX_SECONDS)}."
                raise _Ended(DriftState.NOT_CHECKED, message)
            page = self._ask(held.sha256, page.after)
        comparison.finish()
        return comparison

    def _ask(self, digest: str, after: str) -> Page:
        """Return the page after this path. Ask for a smaller page if the answer is too large, and wait for a busy app."""
        waits = 0
        while True:
            self._wait()
            outcome = self._post(digest, after)
            self._not_before = time.monotonic() + self._lease.slots.gap
            if outcome.cause is not None and not outcome.reached and not self._lease.can_send():
                continue  # the request was not sent, because the lease was too old
            if outcome.ok and outcome.truncated and self._limit >= _SHORTER:
                self._limit //= _SHORTER
                continue
            if self._is_busy(outcome) and waits < MAX_WAITS:
                asked = asked_to_wait(outcome)
                waits += 1
                wait = backoff(waits, base=1.0 if asked is None else SHORTEST_WAIT, jitter=0.0)
                self._not_before = time.monotonic() + min(max(wait, asked or 0.0), LONGEST_WAIT)
                continue
            return self._page_of(outcome, digest, after)

    def _post(self, digest: str, after: str) -> Outcome:
        number = self._lease.reserve_sequences(1)
        with transaction.atomic():
            self._lease.extend()
        fields = verify_fields(self._channel.repository, self._commit, digest, after, self._limit)
        return self._channel.post(
            "verify", fields, number, self._envelope, alive=self._alive, max_body=MAX_ANSWER_BYTES
        )

    def _page_of(self, outcome: Outcome, digest: str, after: str) -> Page:
        """Return the page in the answer. Raises `_Ended` if there is none."""
        status = outcome.status
        if status is None or (status >= 500 and status != 501) or self._is_busy(outcome):
            raise _Ended(DriftState.NOT_CHECKED, describe_outcome(outcome))
        if not outcome.ok:
            raise _Ended(DriftState.UNSUPPORTED, describe_outcome(outcome))
        record_up(self._lease.watch.app)
        if outcome.truncated:
            raise _Ended(DriftState.UNSUPPORTED, "The answer is larger than 1 MiB.")
        try:
            return read_page(outcome.body, tree_sha256=digest, after=after, limit=self._limit)
        except Unusable as error:
            raise _Ended(DriftState.UNSUPPORTED, str(error)) from None

    @staticmethod
    def _is_busy(outcome: Outcome) -> bool:
        return outcome.status == 429 or asked_to_wait(outcome) is not None

    def _wait(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
            self._alive()
        self._alive()

    def _alive(self) -> None:
        """Extend the lease when due. Once a second, raise `_MadeWay` unless the check may continue."""
        self._channel.alive()
        if boot_seconds() < self._asked_at + _ASK_SECONDS:
            return
        self._asked_at = boot_seconds()
        watches = AppRepository.objects.filter(
            pk=self._lease.watch.pk, request_count=F("claimed_request_count"), generation=self._lease.generation
        )
        if not self._own_check().filter(watch__in=watches.values("pk")).exists():
            raise _MadeWay
        # Not for one that may itself only be due for a check: both would start over again and again.
        if self._lease.slots.watches_without_slot().exclude(drift_checks__in=DriftCheck.objects.open()).exists():
            raise _MadeWay

    def end(self, state: DriftState, message: str, comparison: Comparison | None = None) -> None:
        """Record how the check ended. Raises `Superseded` and records nothing if the watch belongs to another claim."""
        counts = {
            "compared": comparison.compared,
            "missing": comparison.missing,
            "different": comparison.different,
            "extra": comparison.extra,
            "listed": len(comparison.listed),
        } if comparison else {}  # fmt: skip
        with transaction.atomic():
            self._lease.extend()
            if not self._own_check().update(state=state, message=message[:500], ended_at=Now(), **counts):
                return  # cancelled
            if comparison:
                DriftFile.objects.bulk_create(
                    [DriftFile(check_of=self._check, **row._asdict()) for row in comparison.listed], batch_size=1000
                )
        logger.info("drift_checked", extra={"check": self._check.pk, "state": state.value, **counts})
