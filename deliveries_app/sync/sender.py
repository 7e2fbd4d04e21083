"""Send the planned changes, `slots` at a time, and pass every outcome to the recorder (`engine.md` §7).

The phases are sent in order. Within a phase, the next block of changes is announced as soon as the previous one is under way,
while git unpacks the one after it. An exception from this module ends the run.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from deliveries_app.models.deliveries import PHASES, Kind
from deliveries_app.planning.paths import PathSet, folded
from deliveries_app.planning.plan import Change, Plan
from deliveries_app.planning.transforms import TransformFailed
from deliveries_app.sync.channel import Channel
from deliveries_app.sync.content import ChunkedFile, Contents, blocks
from deliveries_app.sync.endpoint_health import EndpointHealth, Health, failing_watches, record_up
from deliveries_app.sync.exceptions import EndpointDown, SliceOver
from deliveries_app.sync.failures import Sent, first_failed_at
from deliveries_app.sync.lease import HOLD_AFTER_TIMEOUT, TOO_FAR_AHEAD
from deliveries_app.sync.notification import BLOCKED, Failure, Notification
from deliveries_app.sync.pace import RECOVERS_AFTER, SUCCESSES_TO_SPEED_UP
from deliveries_app.sync.recorder import Recorder
from deliveries_app.sync.responses import DOUBT_AFTER, LONGEST_WAIT, SHORTEST_WAIT, Decision, ResponsePolicy
from deliveries_app.sync.time_slice import TimeSlice
from deliveries_app.webhooks.client import asked_to_wait
from deliveries_app.webhooks.keyring import REFUSALS, Keys
from deliveries_app.webhooks.payloads import Envelope, delete_body, file_body
from docora.http.client import Outcome, Request

MAX_WAITS = 5  # of one notification in one run
BYTES_IN_FLIGHT = 32_000_000


@dataclass
class _Transfer:
    """One notification that is queued or in flight."""

    notification: Notification
    file: ChunkedFile | None = None
    keys: Keys = ()  # sign with these, because the app has refused those that the keyring chose
    signed_with: Keys = ()
    seconds: float = 0.0  # duration of the chunks before this one
    began: float = 0.0  # the current request, by the monotonic clock


class Sender:
    """Sends a plan.

    A notification is announced, ready, in flight, and settled once its outcome has arrived: it is recorded, or ready again
    (its next chunk, the other key, after a wait). `_send_phase` repeats this until nothing is left.

    Once the `time_slice` is over, no further file is started, large files are finished, because a partly sent file would
    start over, and `SliceOver` is raised. If the endpoint does not answer, the run continues until it is known whether
    the endpoint works: a slice would be too short to see enough failures.
    """

    def __init__(
        self,
        channel: Channel,
        contents: Contents,
        recorder: Recorder,
        commit: str,
        envelope: Envelope,
        time_slice: TimeSlice,
    ) -> None:
        self._channel, self._client, self._lease = channel, channel.client, channel.lease
        self._contents, self._recorder = contents, recorder
        self._commit, self._envelope, self._time_slice = commit, envelope, time_slice
        self._health = EndpointHealth(channel)
        self._policy = ResponsePolicy()
        self._ready: deque[_Transfer] = deque()
        self._arrived: deque[tuple[Request, Outcome]] = deque()  # not settled yet
        self._bytes_in_flight = 0
        self._paths_in_flight: set[str] = set()  # folded
        self._large_files: set[ChunkedFile] = set()  # under way
        # Paths that others must not be equal to, above or below:
        self._unsettled_deletes = PathSet()
        self._retained = PathSet()
        # When the next request may start:
        self._is_ending = False  # the slice is over
        self._ping_is_due = False  # nothing is started before it
        self._pause_until = 0.0
        self._next_start = 0.0
        # When the pace is raised:
        self._accepted = 0  # since the pace last changed
        self._recovers_at = 0.0  # monotonic; when a success next raises the pace without a series

    def send(self, plan: Plan) -> None:
        """Send the whole plan. Return when every file was tried, or raise one of `sync.exceptions`."""
        for path in plan.retained:
            self._retained.add(path)
        app = self._lease.watch.app
        if app.down_count and (plan.files or app.send_sync_completed):
            self._act_on(self._health.ping())
        for kind in PHASES:
            self._send_phase(plan.phase(kind))
        self._recorder.commit(is_last=not app.send_sync_completed)
        if self._failed_like_others():
            self._check_endpoint()
            if self._policy.is_trying_one_by_one:  # no path is left to try
                raise self._down(is_certain=False)

    def drain(self, seconds: float, *, on_wait: Callable[[], None]) -> bool:
        """Start nothing new and wait for the requests in flight. Cancel those that are not settled within `seconds`.

        Pass the outcomes to the recorder, and put the paths of cancelled requests on hold. The caller commits them, unless it
        has been superseded. Return True if the app has answered everything, so that it can no longer be processing any path.
        """
        deadline = time.monotonic() + seconds
        clean = not self._recorder.has_unwritten_doubt
        self._withdraw_unsent()
        self._ready.clear()
        while (self._arrived or self._client.in_flight) and time.monotonic() < deadline:
            for request, outcome in self._outcomes(0.2):
                transfer = self._transfer_of(request)
                decision = self._policy.decide(transfer.notification.change, outcome, chunked=transfer.file is not None)
                if decision.failure and decision.failure.may_be_under_way:
                    clean = False
                # These stay in doubt and are sent again: a file that the app was too busy for, a delete that needs proof, and
                # a large file that lacks chunks.
                lacks_chunks = decision.delivered and transfer.file is not None and not transfer.file.is_last
                if not (decision.refused or decision.needs_proof or lacks_chunks):
                    self._record(transfer, decision, request, outcome)
            on_wait()
        for request in self._client.abort():
            transfer = self._transfer_of(request)
            clean = False
            message = "The sync stopped before the app responded."
            failure = Failure("timeout", message, hold_seconds=HOLD_AFTER_TIMEOUT)
            took = transfer.seconds + time.monotonic() - transfer.began
            self._recorder.fail(transfer.notification, failure, Sent.of(request, took))
        self.close()
        return clean

    def close(self) -> None:
        """Close all files. While their git processes run, the mirror can't be rebuilt or removed."""
        while self._large_files:
            self._large_files.pop().close()

    def _send_phase(self, changes: Iterator[Change]) -> None:
        waiting = blocks(changes)
        block = next(waiting, None)
        while block or self._ready or self._client.in_flight:
            if not self._client.in_flight:
                self._ask_endpoint()
            self._start()
            if block and not self._ready and not self._is_ending and not self._policy.is_in_doubt:
                self._announce(block)
                block = next(waiting, None)
                if block:
                    self._contents.prefetch(block)
            else:
                self._collect()
            self._keep_going()

    def _ask_endpoint(self) -> None:
        """Find out whether the endpoint works, or whether the app itself answers a delete, if that is in doubt."""
        if self._policy.is_in_doubt:
            self._check_endpoint()
        if self._ping_is_due and time.monotonic() >= self._not_before:
            self._ping_is_due = False
            self._policy.accepted_ping = self._health.ping() is Health.UP

    def _announce(self, block: list[Change]) -> None:
        """Read, announce and queue a block. Changes that may not be sent in this run are listed as failed."""
        sendable = [change for change in block if not self._is_blocked(change)]
        notifications = self._contents.read(sendable, self._tick, self._recorder.fail)
        adopted = [item for item in notifications if item.is_held]
        announced = [item for item in notifications if not item.is_held]
        self._recorder.commit(announced, adopted)
        self._ready.extend(_Transfer(item) for item in announced)

    def _is_blocked(self, change: Change) -> bool:
        """Return whether the change may not be sent in this run, and list it as failed. If it may be sent soon, wait."""
        failure = self._obstacle(change)
        hold = self._hold_seconds(change)
        if hold > LONGEST_WAIT:
            message = "The last request timed out. Docora waits before it sends this file again."
            failure = Failure("timeout", message, hold_seconds=hold)
        elif hold > 0:
            self._wait(hold)
        if failure is None:
            return False
        self._recorder.fail(change, failure)
        if change.kind == Kind.DELETE:
            self._unsettled_deletes.add(change.path)
        return True

    def _obstacle(self, change: Change) -> Failure | None:
        if change.failure:
            return Failure("transform", change.failure)
        if change.kind == Kind.DELETE:
            return None
        if self._unsettled_deletes.touches(change.path):
            return Failure(BLOCKED, "Waiting for a failed delete at, above or below this path.")
        if self._retained.touches(change.path):
            return Failure(BLOCKED, "Waiting for a file above or below this path whose transform failed.")
        return None

    def _hold_seconds(self, change: Change) -> float:
        """Return for how many seconds the path must not be sent, because its last request timed out."""
        hold = change.hold_until - self._lease.clock.now().timestamp() if change.hold_until else 0.0
        return hold if hold <= TOO_FAR_AHEAD else 0.0

    def _wait(self, seconds: float) -> None:
        self._pause_until = max(self._pause_until, time.monotonic() + seconds)

    def _start(self) -> None:
        """Start requests while there are free slots, room for their bytes, no pause and a valid lease."""
        if self._is_ending:
            self._ready = deque(transfer for transfer in self._ready if transfer.file)
        if self._policy.is_in_doubt or self._ping_is_due:
            return  # until the requests in flight have settled
        slots = 1 if self._policy.is_trying_one_by_one else self._lease.slots.count
        while self._ready and self._client.in_flight < slots and time.monotonic() >= self._not_before:
            if self._bytes_in_flight and self._bytes_in_flight + self._ready[0].notification.size > BYTES_IN_FLIGHT:
                return
            if folded(self._ready[0].notification.change.path) in self._paths_in_flight:
                return  # to the client, it may be the same file
            if not self._lease.can_send():
                self._recorder.commit()
            self._submit(self._ready.popleft())
            if self._lease.slots.gap:
                self._next_start = time.monotonic() + self._lease.slots.gap

    @property
    def _not_before(self) -> float:
        """When the next request may start, by the monotonic clock."""
        return max(self._pause_until, self._next_start)

    def _submit(self, transfer: _Transfer) -> None:
        """Send a file, or the current chunk of a large one."""
        item = transfer.notification
        if transfer.file is None and item.change.kind != Kind.DELETE and item.content is None:
            try:
                transfer.file = self._contents.chunks_of(item)
            except TransformFailed as error:
                self._recorder.fail(item, Failure("transform", str(error)))
                return
            self._large_files.add(transfer.file)
        request = self._signed_request(transfer)
        transfer.began = time.monotonic()
        self._bytes_in_flight += len(request.body)
        self._paths_in_flight.add(folded(item.change.path))
        self._client.submit(request)

    def _signed_request(self, transfer: _Transfer) -> Request:
        item, file = transfer.notification, transfer.file
        change = item.change
        repository, commit, now = self._channel.repository, self._commit, datetime.now(UTC)
        if change.kind == Kind.DELETE:
            body = delete_body(repository, change.path, item.sha, commit, now)
        else:
            content = file.chunk if file else item.content
            assert content is not None
            body = file_body(
                repository, change.path, item.sha, item.size, content, commit, now, change.previous_sha
            )  # fmt: skip
        message_id = self._channel.message_id(item.sequence, file.chunk if file else None)
        transfer.signed_with = transfer.keys or self._channel.keyring.keys
        seconds = int(now.timestamp())
        headers = self._envelope.headers(body, message_id, item.sequence, seconds, transfer.signed_with)
        return Request(
            "POST",
            self._channel.url(change.kind),
            headers,
            body,
            repeatable=file is None,  # a chunk that was sent twice would be counted twice
            # The app may close its connections without announcing it. Only a new one is certainly open.
            fresh=file is not None and change.attempts > 0,
            can_send=self._lease.can_send,
            context=transfer,
        )

    def _transfer_of(self, request: Request) -> _Transfer:
        """Return the transfer of a request that has ended or was withdrawn. It no longer counts as in flight."""
        transfer = request.context
        assert isinstance(transfer, _Transfer)
        self._bytes_in_flight -= len(request.body)
        self._paths_in_flight.discard(folded(transfer.notification.change.path))
        return transfer

    def _withdraw_unsent(self) -> None:
        """Withdraw the requests that the client has not begun to send."""
        self._ready.extendleft(self._transfer_of(request) for request in reversed(self._client.withdraw()))

    def _collect(self) -> None:
        pause = self._not_before - time.monotonic() if self._ready else 0.0
        self._settle_arrived(min(0.5, pause) if pause > 0 else 0.5)
        if pause > 0 and not self._client.in_flight:
            time.sleep(min(0.5, pause))

    def _settle_arrived(self, seconds: float) -> None:
        for request, outcome in self._outcomes(seconds):
            self._settle(self._transfer_of(request), request, outcome)

    def _outcomes(self, seconds: float) -> Iterator[tuple[Request, Outcome]]:
        """Wait up to `seconds` for the next outcomes, and yield them. After an exception, `drain` gets the rest."""
        self._arrived.extend(self._client.poll(seconds))
        while self._arrived:
            yield self._arrived.popleft()

    def _settle(self, transfer: _Transfer, request: Request, outcome: Outcome) -> None:
        """Act on an outcome: send the next chunk, send the request again, or pass the result to the recorder."""
        if not outcome.reached and not self._lease.can_send():  # not sent, because the lease was too old
            self._ready.appendleft(transfer)
            return
        self._recorder.count_request(outcome.ok, outcome.elapsed)
        if self._tries_other_key(transfer, outcome):
            return
        item = transfer.notification
        pausing = time.monotonic() < self._pause_until
        decision = self._policy.decide(item.change, outcome, chunked=transfer.file is not None, pausing=pausing)
        if decision.cooldown and asked_to_wait(outcome) is None and self._accepts_others(item.change):
            decision = replace(decision, wait=LONGEST_WAIT, cooldown=None)
        is_repeated = item.change.sequence is not None  # otherwise an earlier failure was that of another notification
        if decision.needs_proof and not (is_repeated and self._accepts_others(item.change)):
            self._ping_is_due = True
            self._wait(SHORTEST_WAIT)  # an app that limits its rate would refuse the ping
            self._ready.appendleft(transfer)
            return
        if decision.delivered:
            self._speed_up()
        elif decision.refused and not pausing:
            self._slow_down()
        if decision.delivered and transfer.file and not transfer.file.is_last:
            self._continue_file(transfer, transfer.file, outcome)
            self._policy.settle(decision, self._lease.clock)
        elif decision.wait is not None and item.waits < MAX_WAITS and decision.wait <= LONGEST_WAIT:
            self._send_again(transfer, decision)
        else:
            self._record(transfer, decision, request, outcome)
            if decision.delivered:
                record_up(self._lease.watch.app)
            self._close(transfer)
            self._policy.settle(decision, self._lease.clock)

    def _continue_file(self, transfer: _Transfer, file: ChunkedFile, outcome: Outcome) -> None:
        """Queue the next chunk."""
        file.advance()
        transfer.seconds += outcome.elapsed
        transfer.notification.waits = 0  # each wait reduces the app's pace, so the file makes progress
        self._ready.appendleft(transfer)

    def _send_again(self, transfer: _Transfer, decision: Decision) -> None:
        """Queue the request again, after a wait. If the app may have counted the chunk, the file starts over."""
        assert decision.wait is not None
        transfer.notification.waits += 1
        self._wait(decision.wait)
        if decision.restart:
            self._close(transfer)
            transfer.file, transfer.seconds = None, 0.0
        self._ready.appendleft(transfer)

    def _record(self, transfer: _Transfer, decision: Decision, request: Request, outcome: Outcome) -> None:
        item, seconds = transfer.notification, transfer.seconds + outcome.elapsed
        if decision.delivered:
            self._recorder.acknowledge(item, outcome.status or 0, seconds)
        elif decision.failure:
            self._recorder.fail(item, decision.failure, Sent.of(request, seconds))
            if item.change.kind == Kind.DELETE:
                self._unsettled_deletes.add(item.change.path)

    def _accepts_others(self, change: Change) -> bool:
        """Return whether the endpoint has acknowledged a file since this one failed for the first time, in an earlier attempt.

        Then it is not too busy for every file, and not every path is unknown at its base URL, so its answers to this file
        count.
        """
        failed_at = first_failed_at(self._lease.watch, change) if change.attempts else None
        if failed_at is None:
            return False
        self._recorder.commit()
        return self._health.has_acknowledged_since(failed_at)

    def _failed_like_others(self) -> bool:
        """Return whether notifications have failed as if the endpoint were down, in this run and in enough others.

        Each run alone may have too few paths to tell. After a ping that proved nothing, any number is enough.
        """
        if self._policy.failing_since is None:
            return False
        if self._policy.is_in_doubt or self._policy.is_trying_one_by_one:
            return True
        app = self._lease.watch.app
        return failing_watches(app, except_pk=self._lease.watch.pk) + 1 >= DOUBT_AFTER

    def _check_endpoint(self) -> None:
        """Find out whether the endpoint works. Raises `EndpointDown` if it does not."""
        if self._policy.is_trying_one_by_one:
            raise self._down(is_certain=False)
        assert self._policy.failing_since is not None
        self._recorder.commit()  # a ping may take half a minute
        self._act_on(self._health.ask(self._policy.failing_since))

    def _act_on(self, health: Health) -> None:
        if health is Health.UP:
            self._policy.trust()
            record_up(self._lease.watch.app)
        elif health is Health.DOWN:
            raise self._down(is_certain=True)
        else:
            self._policy.try_one_by_one()

    def _down(self, *, is_certain: bool) -> EndpointDown:
        return EndpointDown(is_certain=is_certain, answer=self._health.answer)

    def _slow_down(self) -> None:
        self._policy.refused()
        self._lease.slots.slow_down()
        self._accepted = 0

    def _speed_up(self) -> None:
        """Raise the pace after a series of successes, or if the app has refused nothing for a while.

        Not during a large file: a 503 makes it start over.
        """
        self._accepted += 1
        if self._large_files:
            return
        if self._accepted >= SUCCESSES_TO_SPEED_UP:
            self._accepted = 0
            self._lease.slots.speed_up()
        elif time.monotonic() >= self._recovers_at:
            self._recovers_at = time.monotonic() + RECOVERS_AFTER
            self._lease.slots.speed_up(RECOVERS_AFTER)

    def _tries_other_key(self, transfer: _Transfer, outcome: Outcome) -> bool:
        """Queue the same request again with the other key if the app refused this one. Remember a key that was accepted."""
        if outcome.ok:
            self._channel.keyring.accepted(transfer.signed_with)
            transfer.keys = ()  # the next chunk is signed with what was accepted
        if outcome.status not in REFUSALS or transfer.keys:
            return False
        other = self._channel.keyring.other(transfer.signed_with)
        if other is None:
            return False
        transfer.keys = other
        self._ready.appendleft(transfer)
        return True

    def _tick(self) -> None:
        """Keep the run going while a block is read. Responses that are not read in time would count as timeouts."""
        if self._client.in_flight:
            self._settle_arrived(0.0)
        self._keep_going()

    def _keep_going(self) -> None:
        self._channel.alive()
        if self._recorder.due:
            self._recorder.commit()
        if not self._is_ending:
            self._is_ending = self._policy.endpoint_works and self._time_slice.is_over()
        if self._is_ending and not self._large_files:
            raise SliceOver

    def _close(self, transfer: _Transfer) -> None:
        if transfer.file:
            transfer.file.close()
            self._large_files.discard(transfer.file)
