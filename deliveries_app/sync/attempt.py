"""Syncing one watch, in six steps: claim, mirror, plan, announce and send, record, finish.

`claim` takes the watch, `repositories_app.mirror.mirror` reads git at one pinned commit, `planning` decides what to
send, `sender` sends it, `recorder` writes the results, and `outcomes` ends the attempt. `engine.md` has the rules.
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError, transaction
from django.db.models import F
from django.db.models.functions import Least, Now

from deliveries_app.models import Reason, SyncRun, new_run_id, root_causes
from deliveries_app.models.root_causes import RootCause, SyncFailure
from deliveries_app.models.runs import SWEEP
from deliveries_app.planning import delivery_rows, quota
from deliveries_app.planning.eligibility import REMARKS
from deliveries_app.planning.plan import Plan, PlanRefused
from deliveries_app.planning.planner import plan_to
from deliveries_app.progress import runs
from deliveries_app.sync import circuit, failures, outcomes
from deliveries_app.sync.channel import Channel
from deliveries_app.sync.claim import claim
from deliveries_app.sync.content import Contents
from deliveries_app.sync.dead_processes import doubt_from_now
from deliveries_app.sync.drift import run_check
from deliveries_app.sync.events import NoticeRefused, send_due, send_sync_completed, settle_completed
from deliveries_app.sync.exceptions import EndpointDown, EndpointGone, Paused, SliceOver, Superseded
from deliveries_app.sync.lease import HOLD_AFTER_TIMEOUT, Lease
from deliveries_app.sync.notification import Failure
from deliveries_app.sync.recorder import Recorder
from deliveries_app.sync.responses import RateLimited
from deliveries_app.sync.sender import Sender
from deliveries_app.sync.time_slice import TimeSlice
from docora.db.clock import from_now
from docora.db.connection import CONNECTION_ERRORS, close_broken_connections, is_full
from docora.http.client import HttpClient
from docora.process import stopping
from docora.security.crypto import DecryptionError, require_readable
from docora.text import counted, format_seconds
from repositories_app import github
from repositories_app import services as repositories
from repositories_app.git import errors as git_errors
from repositories_app.git import remote
from repositories_app.git.exceptions import Cause, GitError, Interrupted, MirrorBusy, NoCommit
from repositories_app.git.protocol import Head
from repositories_app.git.refs import is_tag
from repositories_app.mirror.blobs import BlobReader

logger = logging.getLogger(__name__)

MANY_FILES = 100
"""A run with more files takes its share of the app's slots before it sends. For a smaller run, that is not worth it."""
MIRROR_WAIT_SECONDS = 2.0
"""How long a run waits while another one fetches the same repository. Then it releases its watch."""
BUSY_SECONDS = 2.0, 30.0
BUSY_SHARE = 10
"""The watch is due again after a tenth of the time for which the other run has been fetching, within `BUSY_SECONDS`."""
LAG_SECONDS = 5.0, 30.0
"""How soon a watch is due again if its host named one commit and served another.

The first value applies if the served commit is new, the second if it is that of the last sync.
"""
LOST_DATABASE_SECONDS = 2.0
"""How soon a watch is due again after its run has lost its database connection."""
DRAIN_SECONDS = 35.0  # longer than any request may take
HAND_OVER_SECONDS = 5.0
_FORESEEN = (
    Interrupted, SliceOver, Paused, MirrorBusy, GitError, PlanRefused, NoticeRefused, RateLimited, EndpointDown, EndpointGone,
    DecryptionError,
)  # fmt: skip
"""What `_record_end` handles."""


def sync(watch_pk: int, client: HttpClient, *, alone: bool) -> bool:
    """Sync the watch if it is due and free. Return True if it may be due again at once; then call this again.

    Nothing else may be in flight in `client`. `alone`: this process syncs no other watch at the same time.
    """
    lease = claim(watch_pk, alone=alone)
    if lease is None:
        return False
    attempt = Attempt(lease, client)
    # `claim` and not `fencing_token`: values with such a name are redacted.
    with structlog.contextvars.bound_contextvars(watch=watch_pk, claim=lease.fencing_token, run_id=attempt.run_id):
        try:
            attempt.run()
        except Superseded:
            logger.info("superseded")
            return True
    return lease.is_due_again and not attempt.made_way


class Attempt:
    """One claim on one watch, from its first request to its last record.

    `run` makes the attempt: `_run` reads HEAD, `_sync_to` fetches and plans, `_deliver` sends, `_finish` records success.
    An exception ends it early, and `_record_end` decides what that means, unless it is an error of the machine or of the code.
    """

    def __init__(self, lease: Lease, client: HttpClient) -> None:
        self.lease = lease
        self.channel = Channel(client, lease, self._alive)
        self.watch = lease.watch
        self.delivery_rules = delivery_rows.delivery_rules_of(self.watch)
        self.mirror = repositories.mirror_of(self.watch.repository)
        self.sync_run: SyncRun | None = None
        self.run_id = new_run_id()  # replaced by the id of the run that was requested, if there is one
        self.sender: Sender | None = None
        self.made_way = False
        self.time_slice = TimeSlice(lease)
        self._read_at = lease.clock.now()

    def run(self) -> None:
        """Make the attempt and record how it ended. Raises only `Superseded` and database errors."""
        try:
            self._run_and_record_end()
        except Superseded:
            self._stop_superseded()
            raise
        except CONNECTION_ERRORS as error:
            self.channel.client.reset()  # nothing may be in flight once the watch is released
            self._release_without_database(_of_database(error))
            raise
        finally:
            if self.sender is not None:
                self.sender.close()
            self.channel.client.reset()
            # Both refer to this attempt, which would stay in memory until Python's next collection.
            del self.channel, self.sender

    def _run_and_record_end(self) -> None:
        try:
            self._run()
        except (Superseded, DatabaseError, InterfaceError):
            raise
        except _FORESEEN as error:
            self._drain(HAND_OVER_SECONDS if isinstance(error, Interrupted) else DRAIN_SECONDS)
            self._record_end(error)
        except Exception as error:
            failure = _log_unforeseen(error)  # before the drain, which may raise `Superseded`
            self._drain(DRAIN_SECONDS)
            outcomes.failed(self.lease, failure)

    def _run(self) -> None:
        self._adopt_newest_run()
        asked = {}
        if self.sync_run:
            runs.show_attempt(self.sync_run)
            asked = runs.log_fields(self.sync_run)
        logger.info("claimed", extra={"attempt": self.watch.retry_count, **asked})
        if self.watch.retry_count > settings.MAX_RETRY_ATTEMPTS:
            message = "The worker died during every attempt. Check its memory and its log."
            outcomes.failed(self.lease, root_causes.internal(message), permanent=True)
            return
        require_readable(self.watch.github_token, *self.channel.keyring.keys)
        reason = self.sync_run.reason if self.sync_run else Reason.CHANGE
        send_due(self.channel, self.channel.envelope(self.run_id, reason))
        wait = self._circuit_seconds()
        if wait:
            self._postpone(wait)
            logger.info("circuit_open", extra={"next_try_in": round(wait, 1)})
            return
        head = self._read_head()
        if head is None:
            self._close_circuit()
            outcomes.no_commit_yet(self.lease)
            logger.info("no_commit_yet")
            return
        self._sync_and_repair_mirror(head)
        self.mirror.repack_if_many(self.watch.repository.watches.watch_ids)

    def _adopt_newest_run(self) -> None:
        """Adopt the newest requested run, if there is one, and log its id from now on."""
        open_runs = runs.open_runs(self.watch.pk, self.lease.generation)
        self._adopt(open_runs[0] if open_runs else None)

    def _adopt(self, run: SyncRun | None) -> None:
        self.sync_run = run
        if run:
            self.run_id = run.run_id
            structlog.contextvars.bind_contextvars(run_id=self.run_id)

    def _circuit_seconds(self) -> float:
        """Return for how many seconds the repository's open circuit holds this watch back.

        The first attempt of a person's or an app's request is let through as a probe. Later ones are not, because refused
        notices wake the watch again and again.
        """
        asked = self.sync_run is not None and self.sync_run.reason != Reason.CHANGE
        if asked and self.watch.retry_count == 1:
            return 0.0
        return self.lease.circuit_seconds

    def _read_head(self) -> Head | None:
        """Ask the host for HEAD. Return None if the repository has no commit yet and the app holds no file of it."""
        watch = self.watch
        try:
            head = self._read_with_token(
                lambda token: remote.ls_head(
                    self.channel.client, watch.github_url, token, self._alive, commit=watch.last_commit, ref=watch.ref
                )
            )
        except NoCommit:
            if watch.last_commit or watch.deliveries.exists():
                raise
            return None
        self.lease.seen_commit = head.commit
        if watch.repository.is_private and not (watch.github_token or watch.github_app):
            repositories.record_privacy(watch.repository, is_private=False)  # it has just been read without a token
        return head

    def _read_with_token[T](self, call: Callable[[str], T]) -> T:
        """Return `call(token)` for the token that reads the repository: the watch's own, or one of the app's GitHub App."""
        watch = self.watch
        result = github.read(watch.github_app, watch.github_url, watch.github_token, call, self._alive)
        self._read_at = self.lease.clock.now()
        return result

    def _sync_and_repair_mirror(self, head: Head) -> None:
        """Sync to `head`. If the mirror is damaged, fetch it again and start over (`engine.md` §8)."""
        try:
            self._sync_to(head, self.channel.client)
        except GitError as error:
            if error.cause is not Cause.CORRUPT:
                raise
            self._drain(DRAIN_SECONDS)
            if self.mirror.drop_unreadable(self.watch.watch_id, head.commit, self._alive):
                raise git_errors.still_damaged(error) from None
            logger.warning("mirror_rebuilt", extra={"cause": str(error)})
            failures.disown(self.lease)
            self.mirror.remove(self._alive, max_wait=MIRROR_WAIT_SECONDS)
            self._sync_with_new_mirror(head)

    def _sync_with_new_mirror(self, head: Head) -> None:
        try:
            self._sync_to(head, None)  # with `git fetch`, which checks every object
        except GitError as error:
            if error.cause is not Cause.CORRUPT:
                raise
            self.mirror.note_unreadable(head.commit)
            raise git_errors.still_damaged(error) from None

    def _sync_to(self, head: Head, client: HttpClient | None) -> None:
        """Fetch and plan, then send what the plan contains. Without a `client`, git fetches."""
        with self.mirror.in_use(self._alive, max_wait=MIRROR_WAIT_SECONDS), self.mirror.blobs() as reader:
            head = self._fetch(head, client)
            # A tag may name anything. That isn't damage, for which the mirror would be rebuilt.
            if is_tag(head.name) and head.commit != self.watch.base_commit and not reader.is_commit(head.commit):
                raise git_errors.not_a_commit(head.name)
            is_same_target = self.watch.target == self._target(head.commit)
            if self.lease.doubt_seconds and not is_same_target:
                self._wait_until_processed()
                return
            plan = plan_to(head, self.watch, self.delivery_rules, reader, self._alive)
            logger.info("planned", extra={"files": plan.files, "bytes": plan.size, "left_out": plan.left_out.total()})
            with contextlib.closing(plan):
                if self.lease.doubt_seconds and plan.repeats_deletes:
                    self._wait_until_processed()
                    return
                # Only after planning, because an unreadable tree is the repository's failure too. After damage, which may
                # also be in a file's content, only the end of the run closes it.
                repository = self.watch.repository
                if repository.consecutive_failures and repository.last_error_cause != Cause.CORRUPT:
                    self._close_circuit()
                if plan.files or self.sync_run or self._owes_notice(head.commit):
                    self._deliver(head, plan, reader, is_same_target=is_same_target)
                    return
                if self.lease.had_check:  # nothing is in doubt
                    run_check(self.channel, head.commit, self.run_id)
                self._finish(head, plan, None)

    def _fetch(self, head: Head, client: HttpClient | None) -> Head:
        """Fetch the commit into the mirror. Return `head` with the commit that the host served."""
        began_at = time.monotonic()
        commit = self._read_with_token(
            lambda token: self.mirror.fetch(
                self.watch.github_url,
                token,
                head.commit,
                self.watch.watch_id,
                timeout=settings.FETCH_TIMEOUT_SECONDS,
                tick=self._alive,
                name=head.name,
                client=client,
                max_wait=MIRROR_WAIT_SECONDS,
            )
        )
        self.time_slice.fetch_seconds = time.monotonic() - began_at
        logger.info("fetched", extra={"commit": commit})
        return replace(head, commit=commit)

    def _target(self, commit: str) -> str:
        """Return a hash of everything that decides what is sent. The same hash means the same notification for each path."""
        text = f"{commit}|{self.lease.generation}|{self.delivery_rules.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _wait_until_processed(self) -> None:
        """Postpone the attempt until the app can no longer be processing requests that it has not answered."""
        wait = self.lease.doubt_seconds
        self._postpone(wait)
        logger.info("waits_until_processed", extra={"next_try_in": round(wait, 1)})

    def _owes_notice(self, commit: str) -> bool:
        """Return whether the app wants `sync_completed` and has not got it for this commit, even if no file differs.

        Without a base, or if files failed, the last run did not send its notice.
        """
        is_complete = self.watch.base_commit and not self.watch.files_failing
        is_notified = is_complete and self.watch.last_commit == commit
        return self.watch.app.send_sync_completed and not is_notified

    def _deliver(self, head: Head, plan: Plan, reader: BlobReader, *, is_same_target: bool) -> None:
        """Send the plan in the requested run or a new one, and end the attempt. `is_same_target`: as in the last attempt."""
        commit = head.commit
        remarks = [(cause, count) for cause, count in self.watch.left_out.items() if cause in REMARKS]
        unequal = {"base_commit": "", "base_rules": "", **delivery_rows.tree_fields(plan, remarks)}
        with transaction.atomic():
            reserved = unequal if quota.require_room(self.watch, plan) else {}
            # With the same target, a process that died may have tried these files already.
            series = {} if is_same_target else self._new_series(plan)
            self.lease.extend(target=self._target(commit), **reserved, **series)
            self._give_attempt_back()  # it was counted before the mirror was rebuilt
            # Look again: a retry may have replaced the run while git was read. This attempt is then for the retry.
            self._adopt_newest_run()
            if self.sync_run is None and is_same_target:
                self._adopt(runs.reopen_retry(self.watch, commit))
            run = self.sync_run = self.sync_run or self._new_run()
            runs.set_totals(run, files=plan.files, size=plan.size, left_out=plan.left_out, commit=commit)
        self.recorder = Recorder(self.lease, run, on_first=unequal)
        envelope = self.channel.envelope(run.run_id, run.reason)
        contents = Contents(self.mirror, reader, self.delivery_rules)
        self.sender = Sender(self.channel, contents, self.recorder, commit, envelope, self.time_slice)
        self.time_slice.start_sending()
        logger.info("sending", extra=runs.log_fields(run))
        if plan.files > MANY_FILES:
            self.lease.slots.rebalance(0, at_once=True)
        self.sender.send(plan)
        self.sync_run, failed = self.recorder.run, self.recorder.failed_count
        logger.info("sent", extra={"acknowledged": self.sync_run.files_done, "failed": failed})
        if self.watch.app.send_sync_completed and not failed:
            send_sync_completed(self.channel, commit, envelope, plan.tree_files)
        self._finish(head, plan, self.recorder)

    def _new_series(self, plan: Plan) -> dict[str, Any]:
        """Return the watch's columns that begin a new series of attempts, if the plan has files that were not tried before.

        Otherwise a file that always fails would use up the attempts of newer files.
        """
        if not plan.has_untried:
            return {}
        self.watch.retry_count = 1
        return {"retry_count": Least(F("retry_count"), 1)}  # a person may have set it to 0 meanwhile

    def _new_run(self) -> SyncRun:
        """Return an unsaved run for the first commit, for a change, or for a retry of failed files.

        An imported watch has records but no commit yet. The app has its files, so this is not an initial sync.
        """
        if self.watch.retry_count > 1 or self.watch.is_failing:
            reason = Reason.RETRY
        elif self.watch.last_commit or self.watch.deliveries.exists():
            reason = Reason.CHANGE
        else:
            reason = Reason.INITIAL
        run = runs.open_run(self.watch, reason, requested_by=SWEEP)
        run.run_id = self.run_id
        return run

    def _finish(self, head: Head, plan: Plan, recorder: Recorder | None) -> None:
        """Record an attempt that tried its whole plan. `recorder` is None if there was nothing to send."""
        commit = head.commit
        fields: dict[str, Any] = {
            "last_commit": commit,
            "branch": head.branch,
            "base_commit": commit,
            "base_rules": self.delivery_rules.fingerprint,
            **delivery_rows.tree_fields(plan, delivery_rows.count_remarks(self.watch.pk)),
        }
        if self.watch.last_commit not in ("", commit):
            fields["moved_at"] = Now()
        self.mirror.keep_base(self.watch.watch_id, commit)
        self._close_circuit()
        failed_count = recorder.failed_count if recorder else 0
        with transaction.atomic():
            if recorder and failed_count:
                self._record_failed_files(recorder, fields)
            else:
                again = self._lag_seconds(commit)
                check_waits = self.sync_run is not None and self.lease.had_check  # until there is nothing to send
                outcomes.succeeded(self.lease, fields, next_sync_in=0.0 if check_waits else again)
            if self.sync_run:
                runs.set_left_out(self.sync_run, fields["left_out"])
            settle_completed(self.lease)
            if self.lease.had_listed or plan.skipped or failed_count:
                failures.settle_lists(self.watch, plan.skipped, among=plan.paths, now=self.lease.clock.now())

    def _record_failed_files(self, recorder: Recorder, fields: dict[str, Any]) -> None:
        count = recorder.failed_count
        latest = "The latest error: " if recorder.failures_differ else ""
        message = f"{counted(count, 'file')} couldn't be delivered. {latest}{recorder.last_message}"
        outcomes.failed(
            self.lease,
            recorder.sync_failure(message),
            min_delay=recorder.longest_hold,
            fields=fields | {"files_failing": count, "deletes_failing": recorder.failed_deletes},
        )

    def _lag_seconds(self, commit: str) -> float | None:
        """Return the seconds until the next sync if the host has named one commit and served another, otherwise None."""
        if commit == self.lease.seen_commit:
            return None
        logger.info("host_lags", extra={"commit": commit})
        return LAG_SECONDS[commit == self.watch.last_commit]

    def _close_circuit(self) -> None:
        circuit.close_circuit(self.watch.repository, but=self.watch, read_at=self._read_at)

    def _record_end(self, error: Exception) -> None:
        """Record what ended the attempt before it had tried its whole plan. Nothing is in flight."""
        match error:
            case Interrupted():
                self._postpone(0.0)
                logger.info("handed_over")
            case SliceOver():
                self._postpone(0.0)
                self.made_way = True
                logger.info("made_way")
            case Paused():  # the run stays open and continues after the pause
                self._postpone(0.0)
                logger.info("sync_paused")
            case MirrorBusy():
                shortest, longest = BUSY_SECONDS
                self._postpone(max(shortest, min(error.held_for / BUSY_SHARE, longest)))
                logger.info("mirror_busy")
            case GitError():
                if error.no_connection:
                    self._give_attempt_back()
                outcomes.git_failed(self.lease, error)
            case PlanRefused():
                self._close_circuit()  # the repository can be read
                root = RootCause.QUOTA if error.cause == quota.CAUSE else RootCause.RULES
                outcomes.failed(self.lease, SyncFailure(str(error), error.cause, root), permanent=True)
            case NoticeRefused():
                self._record_refused_notice(error)
            case RateLimited():
                self._give_attempt_back()
                message = f"{error.failure.message} Sending was put on hold for {format_seconds(error.seconds)}."
                outcomes.start_cooldown(self.lease, error.seconds, error.failure.of_sync(self.watch.app, message))
            case EndpointDown():
                if error.is_certain:
                    self._give_attempt_back()
                outcomes.endpoint_down(self.lease, self._endpoint_failure(error), counts=not error.is_certain)
            case EndpointGone():
                outcomes.endpoint_gone(self.lease)
            case DecryptionError():
                outcomes.failed(self.lease, root_causes.internal(str(error)), permanent=True)

    def _record_refused_notice(self, error: NoticeRefused) -> None:
        # Without a base, the next attempt sends the notice, which is still due.
        fields: dict[str, Any] = {"files_failing": 0, "deletes_failing": 0, "base_commit": "", "base_rules": ""}
        if error.failure.may_be_under_way:
            fields["doubt_until"] = from_now(HOLD_AFTER_TIMEOUT)
        message = f"All files were acknowledged, but /sync_completed failed. {error.failure.message}"
        failure = error.failure.of_sync(self.watch.app, message)
        if error.wait is None:
            outcomes.failed(self.lease, failure, fields=fields)
        else:
            self._give_attempt_back()
            outcomes.start_cooldown(self.lease, error.wait, failure, fields=fields)

    def _endpoint_failure(self, error: EndpointDown) -> SyncFailure:
        if self.recorder.last_failure:
            return self.recorder.sync_failure(f"The app's endpoint is down. {self.recorder.last_message}")
        assert error.answer is not None  # nothing was sent but a ping
        failure = Failure.of(error.answer)
        message = f"The app's endpoint is down. {failure.message}"
        return SyncFailure(message, failure.cause, failure.root, failure.status)

    def _drain(self, seconds: float) -> None:
        """Wait for the requests in flight and record their results."""
        if self.sender is None:
            return
        self.sender.drain(seconds, on_wait=self._extend_if_due)
        self.recorder.commit()
        self.sync_run = self.recorder.run

    def _postpone(self, seconds: float) -> None:
        """Release the watch, which is due again in `seconds`, without counting the attempt, even if it has sent files."""
        self._give_attempt_back()
        outcomes.postponed(self.lease, seconds)

    def _give_attempt_back(self) -> None:
        """Uncount the attempt in its run, if it has begun to send. Call this before an outcome that does not count it."""
        if self.sender and self.sync_run:
            runs.give_attempt_back(self.sync_run)

    def _alive(self) -> None:
        """Extend the lease and take the share of the slots when due. Raises if the attempt has to stop."""
        if stopping():
            raise Interrupted
        self._extend_if_due()
        self.lease.slots.rebalance(self.channel.client.in_flight)

    def _extend_if_due(self) -> None:
        if self.lease.extension_is_due:
            self.lease.extend()

    def _stop_superseded(self) -> None:
        """Record nothing more. Release the lease once the client can no longer be processing a request."""

        def keep_alive() -> None:
            if self.lease.extension_is_due:
                self.lease.keep_alive()

        is_clean = self.sender is None or self.sender.drain(DRAIN_SECONDS, on_wait=keep_alive)
        self.lease.release(in_doubt=not is_clean)

    def _release_without_database(self, failure: SyncFailure) -> None:
        """Release the watch over a new database connection. The attempt doesn't count.

        If there is none before the lease ends, the watch is treated as if this process had died.
        """
        while True:
            close_broken_connections()
            try:
                with transaction.atomic():
                    outcomes.postponed(self.lease, LOST_DATABASE_SECONDS, failure, doubt_from_now(self.watch))
                    self._give_attempt_back()
                return
            except Superseded:
                return
            except CONNECTION_ERRORS:
                if stopping() or self.lease.has_expired:
                    return
                time.sleep(1.0)


def _of_database(error: Exception) -> SyncFailure:
    """Return the failure of a run whose database connection was lost, or whose records have no space left."""
    if is_full(error):
        message = "The database's disk is full. Free up space on it. The sync continues once there is space."
        return root_causes.internal(message)
    return root_causes.internal("The connection to the database was lost. The sync continues automatically.")


def _log_unforeseen(error: Exception) -> SyncFailure:
    """Log an error of the machine or of Docora's code, and return the failure."""
    if isinstance(error, OSError):  # such as a full disk
        logger.warning("machine_failed", extra={"cause": str(error)})
        return root_causes.of_os_error(error)
    logger.error("sync_failed_unexpectedly", exc_info=error)
    return root_causes.internal("An internal error stopped the sync. Check the worker's log.")
