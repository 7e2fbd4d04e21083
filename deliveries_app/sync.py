"""Syncing one pair, in six steps: claim, mirror, plan, announce and send, record, finish.

The rules are in `engine.md`; what each module does of them: `lease` owns the pair, `repositories_app.mirror` reads git
at one pinned commit, `plan` decides, `sender` talks to the app, `recorder` writes, `endings` says what comes next.
"""

import logging
from typing import Any

import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError, transaction
from django.db.models.functions import Now

from deliveries_app import causes, endings, rows, runs
from deliveries_app.causes import RootCause, Trouble
from deliveries_app.exceptions import EndpointDown, EndpointGone, Paused, PlanRefused, RateLimited, Superseded
from deliveries_app.keyring import Keyring, answers_of
from deliveries_app.lease import Lease, claim
from deliveries_app.models import AppRepository, DeliveryFailure, FailureKind, Reason, SyncRun, new_run_id
from deliveries_app.notices import NoticeRefused, info_of, send_due, send_sync_completed, settle_completed
from deliveries_app.payloads import Envelope
from deliveries_app.planning import Planned, plan_to
from deliveries_app.recorder import Recorder, settle_lists
from deliveries_app.sender import Destination, Sender
from deliveries_app.services import circuits
from docora.crypto import DecryptionError, require_readable
from docora.worker import stopping
from repositories_app import git_errors, remote
from repositories_app import services as repositories
from repositories_app.exceptions import Cause, GitError, Interrupted
from repositories_app.mirror import Mirror
from repositories_app.remote import Head

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 35.0  # longer than any request may take
HAND_OVER_SECONDS = 5.0


def sync(pair_pk: int) -> bool:
    """Sync the pair if it is due and free. True when there was something to claim."""
    lease = claim(pair_pk)
    if lease is None:
        return False
    attempt = Attempt(lease)
    with structlog.contextvars.bound_contextvars(pair=pair_pk, claim=lease.claim, run_id=attempt.run_id):
        try:
            attempt.run()
        except Superseded:
            logger.info("superseded")
    return True


class Attempt:
    """One claim on one pair, from its first request to its last record."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.pair: AppRepository = lease.pair
        self.terms = rows.terms_of(self.pair)
        self.mirror: Mirror = repositories.mirror_of(self.pair.repository)
        self.keyring = Keyring(self.pair.app)
        self.sync_run: SyncRun | None = None
        self.run_id = new_run_id()  # until there is a request that it is for, and of the run that it opens otherwise
        self.sender: Sender | None = None

    def run(self) -> None:
        """Do it, and end it one way or another; only `Superseded` and lost databases come out."""
        with remote.new_client(max_connections=self.pair.app.max_in_flight) as self.client:
            try:
                self._run_and_end()
            except Superseded:
                self._leave_to_the_new_claim()
                raise

    def _run_and_end(self) -> None:
        try:
            self._run()
        except Interrupted:
            self._drain(HAND_OVER_SECONDS)
            endings.postponed(self.lease, 0.0)
            logger.info("handed_over")
        except Paused:  # the run stays open, and goes on when what was paused is resumed
            self._drain(DRAIN_SECONDS)
            endings.postponed(self.lease, 0.0)
            logger.info("sync_paused")
        except GitError as error:
            self._drain(DRAIN_SECONDS)
            endings.git_failed(self.lease, error)
        except PlanRefused as error:
            self._close_circuit()  # the repository can be read
            endings.failed(self.lease, Trouble(str(error), error.cause, RootCause.RULES), permanent=True)
        except NoticeRefused as error:
            endings.failed(self.lease, error.trouble)
        except RateLimited as error:
            self._drain(DRAIN_SECONDS)
            endings.endpoint_rests(self.lease, error.seconds, self._trouble(str(error)), down=False)
        except EndpointDown:
            self._drain(DRAIN_SECONDS)
            trouble = self._trouble(f"The app's endpoint is down: {self.recorder.last_words}")
            endings.endpoint_rests(self.lease, 0.0, trouble, down=True)
        except EndpointGone:
            self._drain(DRAIN_SECONDS)
            endings.endpoint_gone(self.lease)
        except DecryptionError as error:
            self._drain(DRAIN_SECONDS)
            endings.failed(self.lease, causes.internal(str(error)), permanent=True)
        except OSError as error:  # a full disk, most of all
            logger.warning("machine_failed", extra={"cause": str(error)})
            self._drain(DRAIN_SECONDS)
            endings.failed(self.lease, causes.of_machine(error))
        except (Superseded, DatabaseError, InterfaceError):
            raise
        except Exception:
            logger.exception("sync_failed_unexpectedly")
            self._drain(DRAIN_SECONDS)
            endings.failed(self.lease, causes.internal("An internal error stopped the sync; the log has the cause."))

    def _run(self) -> None:
        self._work_for_newest_request()
        asked = runs.facts_of(self.sync_run) if self.sync_run else {}
        logger.info("claimed", extra={"attempt": self.pair.retry_count, **asked})
        if self.pair.retry_count > settings.MAX_RETRY_ATTEMPTS:
            words = "Every attempt ended with the worker gone: look for its memory and its log."
            endings.failed(self.lease, Trouble(words, "worker", RootCause.INTERNAL), permanent=True)
            return
        require_readable(self.pair.github_token, *self.keyring.keys)
        self._send_notices()
        wait = self._circuit_seconds(self.sync_run)
        if wait:
            endings.postponed(self.lease, wait)
            logger.info("circuit_open", extra={"next_try_in": round(wait, 1)})
            return
        head = remote.ls_head(self.client, self.pair.github_url, self.pair.github_token, self._alive)
        try:
            self._sync_to(head)
        except GitError as error:
            if error.cause is not Cause.CORRUPT:
                raise
            logger.warning("mirror_made_anew", extra={"cause": str(error)})
            self._drain(DRAIN_SECONDS)
            self.mirror.remove(self._alive)
            self._sync_with_new_mirror(head)
        self.mirror.repack_if_many(lambda: None)

    def _sync_with_new_mirror(self, head: Head) -> None:
        try:
            self._sync_to(head)
        except GitError as error:
            if error.cause is not Cause.CORRUPT:
                raise
            raise git_errors.still_damaged(error) from None

    def _send_notices(self) -> None:
        reason = self.sync_run.reason if self.sync_run else Reason.CHANGE
        envelope = Envelope(self.pair.app.app_id, self.run_id, reason)
        send_due(self.client, self.lease, envelope, self.keyring, self._alive)

    def _sync_to(self, head: Head) -> None:
        with self.mirror.in_use(self._alive):
            commit = self.mirror.fetch(
                self.pair.github_url,
                self.pair.github_token,
                head.commit,
                self.pair.watch_id,
                timeout=settings.FETCH_TIMEOUT_SECONDS,
                tick=self._alive,
            )
            logger.info("fetched", extra={"commit": commit})
            planned = plan_to(Head(commit, head.branch), self.pair, self.terms, self.mirror, self._alive)
            plan = planned.plan
            logger.info("planned", extra={"files": plan.files, "bytes": plan.bytes, "left_out": plan.left_out.total()})
            try:
                # Not before the plan: a tree that cannot be read is the repository's failure as well. A damage may lie in
                # a content, too: then the end closes it.
                if self.pair.repository.last_error_cause != Cause.CORRUPT:
                    self._close_circuit()
                # Without a base the last run did not come to its end: an app that wants the notice still waits for it.
                owes_notice = self.pair.app.send_sync_completed and not self.pair.base_commit
                if plan.files or self.sync_run or owes_notice:
                    self._deliver(planned)
                else:
                    self._finish(planned, None)
            finally:
                plan.close()

    def _deliver(self, planned: Planned) -> None:
        plan = planned.plan
        with transaction.atomic():
            self.lease.extend()
            # Asked again: a retry may have taken the run over while git was read, and then this attempt is for it.
            self._work_for_newest_request()
            run = self.sync_run = self.sync_run or self._new_run()
            runs.set_totals(run, files=plan.files, size=plan.bytes, left_out=plan.left_out, commit=planned.head.commit)
        runs.seed(run)
        listed = DeliveryFailure.objects.filter(pair=self.pair, kind=FailureKind.FAILED)
        unequal = {"base_commit": "", "base_rules": "", **rows.tree_facts(self.pair.pk, plan)}
        recorder = Recorder(self.lease, run, had_failures=listed.exists(), on_first=unequal)
        self.recorder = recorder
        destination = self._destination(planned.head, run)
        with self.mirror.blobs() as reader:
            self.sender = Sender(
                self.client, self.mirror, reader, self.lease, recorder, destination, self.terms, self._alive
            )
            logger.info("sending", extra=runs.facts_of(run))
            self.sender.send(plan)
            logger.info("sent", extra={"acknowledged": run.files_done, "failed": recorder.failed_count})
            if self.pair.app.send_sync_completed and not recorder.failed_count:
                send_sync_completed(self.client, self.lease, destination, plan.tree_files, self._alive)
            self._finish(planned, recorder)

    def _finish(self, planned: Planned, recorder: Recorder | None) -> None:
        commit = planned.head.commit
        facts: dict[str, Any] = {
            "last_commit": commit,
            "branch": planned.head.branch,
            "base_commit": commit,
            "base_rules": self.terms.fingerprint,
            **rows.tree_facts(self.pair.pk, planned.plan),
        }
        if self.pair.last_commit not in ("", commit):
            facts["moved_at"] = Now()
        self.mirror.keep_base(self.pair.watch_id, commit)
        self._close_circuit()
        now = self.lease.clock.now()
        with transaction.atomic():
            self._end(facts, recorder)
            if self.sync_run:
                runs.set_left_out(self.sync_run, facts["left_out"])
            settle_completed(self.pair)
            started = recorder.started if recorder else now
            settle_lists(self.pair, planned.plan.skipped, among=planned.among, started=started, now=now)

    def _end(self, facts: dict[str, Any], recorder: Recorder | None) -> None:
        if recorder is None or not recorder.failed_count:
            endings.succeeded(self.lease, facts)
            return
        count = recorder.failed_count
        message = f"{count:,} {'file was' if count == 1 else 'files were'} not accepted. {recorder.last_words}"
        endings.failed(
            self.lease, self._trouble(message), rest=recorder.earliest_retry, facts=facts | {"files_failing": count}
        )

    def _trouble(self, message: str) -> Trouble:
        """What the run's last failure says about why it did not end well."""
        last = self.recorder.last_failure
        assert last is not None
        root = causes.of_delivery(last.cause, last.status)
        return Trouble(message, last.cause, root, last.status, answers_of(self.pair.app, [last.body])[0])

    def _new_run(self) -> SyncRun:
        """A run that nobody asked for: a change was found, or what failed earlier is tried again."""
        reason = Reason.RETRY if self.pair.retry_count > 1 else Reason.CHANGE
        run = runs.open_run(self.pair, reason, requested_by="sweep")
        run.run_id = self.run_id
        run.save()
        return run

    def _work_for_newest_request(self) -> None:
        """The run that is asked for, if any, is this attempt's from now on, and what is logged says so."""
        open_runs = runs.open_runs(self.pair.pk, self.lease.generation)
        self.sync_run = open_runs[0] if open_runs else None
        if self.sync_run:
            self.run_id = self.sync_run.run_id
            structlog.contextvars.bind_contextvars(run_id=self.run_id)

    def _destination(self, head: Head, run: SyncRun) -> Destination:
        envelope = Envelope(self.pair.app.app_id, run.run_id, run.reason)
        return Destination(
            self.pair.app.base_url, info_of(self.pair), head.commit, self.pair.watch_id, envelope, self.keyring
        )

    def _circuit_seconds(self, run: SyncRun | None) -> float:
        """How long the repository's open circuit holds this pair back; a person's or an app's request is the probe.

        Only its first attempt: notices that are refused wake the pair again and again.
        """
        until = self.pair.repository.circuit_open_until
        asked = run is not None and run.reason != Reason.CHANGE
        if until is None or (asked and self.pair.retry_count == 1):
            return 0.0
        return max(0.0, (until - self.lease.clock.now()).total_seconds())

    def _close_circuit(self) -> None:
        circuits.close_circuit(self.pair.repository, but=self.pair)

    def _alive(self) -> None:
        if stopping():
            raise Interrupted
        self._extend_if_due()
        self.lease.rebalance(self.client.in_flight)

    def _drain(self, seconds: float) -> None:
        """Let what is under way settle, and record it."""
        if self.sender is None:
            return
        self.sender.drain(seconds, on_wait=self._extend_if_due)
        self.recorder.commit()

    def _extend_if_due(self) -> None:
        if self.lease.extension_is_due:
            self.lease.extend()

    def _leave_to_the_new_claim(self) -> None:
        """Record nothing more. The lease goes only when no request can still be processed at the client."""

        def hold_on() -> None:
            if self.lease.extension_is_due:
                self.lease.hold_on()

        if self.sender is None or self.sender.drain(DRAIN_SECONDS, record=False, on_wait=hold_on):
            self.lease.release()
        else:
            self.lease.hold_on()
