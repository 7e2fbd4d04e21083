"""Decide what a response of the app means for the notification and for the run (`engine.md` §7)."""

from dataclasses import dataclass
from datetime import datetime

from deliveries_app.models.deliveries import Kind
from deliveries_app.planning.plan import Change
from deliveries_app.sync.exceptions import EndpointGone
from deliveries_app.sync.notification import Failure
from deliveries_app.webhooks.client import asked_to_wait
from docora.backoff import MAX_WAIT_SECONDS
from docora.db.clock import DatabaseClock
from docora.http.client import Outcome
from docora.http.messages import GATEWAY_ERRORS

DOUBT_AFTER = 10  # consecutive failures, on different paths, as if the endpoint did not work
CONTROL_PATHS = 3  # paths that are tried one by one if nothing else proves that the endpoint works
GONE_AFTER = 3  # files answered with 410
RETRY_UNREACHED = 1.0  # seconds
SHORTEST_WAIT = 0.1  # seconds before a request that the app refused is sent again: apps round `Retry-After` down to 0
LONGEST_WAIT = 5.0  # seconds that a run waits before it ends instead


class RateLimited(Exception):
    """The app is too busy: it answered with `failure`, and Docora has to wait `seconds`, which is longer than a run may."""

    def __init__(self, failure: Failure, seconds: float) -> None:
        super().__init__(seconds)
        self.failure, self.seconds = failure, seconds


@dataclass(frozen=True, slots=True)
class Decision:
    """Either `delivered`, or `wait` this many seconds and send the same request again, or a `failure`.

    With both `wait` and `failure`, the failure counts once the run can wait no longer.
    """

    delivered: bool = False
    wait: float | None = None
    failure: Failure | None = None
    endpoint_failed: bool = False
    gone: bool = False
    cooldown: float | None = None
    """Seconds to wait, if they are more than a run may wait. The run ends."""
    refused: bool = False
    """The app is too busy: 429 or 503."""
    restart: bool = False
    """The refused chunk may have been counted, so its file starts over."""
    needs_proof: bool = False
    """It counts as delivered only if the app itself has answered, not another server. That is not known yet."""


@dataclass
class ResponsePolicy:
    """Decides about the outcomes of one run, and detects when the endpoint may not work."""

    _failed_in_a_row: int = 0
    _gone: int = 0
    _limit: int = DOUBT_AFTER
    _refusals: int = 0  # pauses since the last success
    failing_since: datetime | None = None
    """When the first of the consecutive failures was settled, by the database's clock."""
    endpoint_works: bool = False
    """Whether the last outcome was an answer of the app itself, or the endpoint has proved to work since."""
    accepted_ping: bool | None = None
    """Whether the app accepted a ping after a 404 or 410 to a delete. None: no ping was sent."""

    @property
    def is_in_doubt(self) -> bool:
        return self._failed_in_a_row >= self._limit

    @property
    def is_trying_one_by_one(self) -> bool:
        return self._limit == CONTROL_PATHS

    def trust(self) -> None:
        """Record that the endpoint works: the failures were those of the files."""
        self._failed_in_a_row, self._limit, self.failing_since, self.endpoint_works = 0, DOUBT_AFTER, None, True

    def refused(self) -> None:
        """Count a refusal that starts a pause. Requests refused during the pause are not counted."""
        self._refusals += 1

    def try_one_by_one(self) -> None:
        """Start a new count of failures, with a lower limit: a ping did not show whether the endpoint works."""
        self._failed_in_a_row, self._limit = 0, CONTROL_PATHS

    def decide(self, change: Change, outcome: Outcome, *, chunked: bool, pausing: bool = False) -> Decision:
        """Decide what the outcome of one request means.

        `chunked`: it was one chunk of a file. A chunk that certainly was not processed may be sent again as it is. Any other
        must not be repeated under its id, because the app would count it twice. `pausing`: the app has just refused others.
        """
        status = outcome.status
        if outcome.ok:
            return Decision(delivered=True)
        failure = Failure.of(outcome)
        if outcome.cause is not None:
            wait = RETRY_UNREACHED if chunked and not outcome.reached else None
            return Decision(wait=wait, failure=failure, endpoint_failed=True)
        assert status is not None
        if change.kind == Kind.DELETE and change.lenient and status in {404, 410} and self.accepted_ping is not False:
            return Decision(delivered=True, needs_proof=self.accepted_ping is None)  # it may never have had the file
        asked = asked_to_wait(outcome)
        # 503 without Retry-After is also what a proxy answers if the app behind it is down: it gets one pause.
        is_busy = status == 429 or (status == 503 and (self.endpoint_works or pausing or not self._refusals))
        if asked is not None or is_busy:
            pause = max(SHORTEST_WAIT, min(asked if asked is not None else 2.0**self._refusals, MAX_WAIT_SECONDS))
            too_long = pause if pause > LONGEST_WAIT else None
            restart = chunked and status == 503 and asked is None
            return Decision(wait=pause, failure=failure, cooldown=too_long, refused=True, restart=restart)
        return Decision(
            failure=failure,
            endpoint_failed=status in GATEWAY_ERRORS,
            gone=status == 410 and change.kind != Kind.DELETE,
        )

    def settle(self, decision: Decision, clock: DatabaseClock) -> None:
        """Count a settled notification. Raises `RateLimited` or `EndpointGone` if the run has to end."""
        if decision.failure and decision.cooldown is not None:
            raise RateLimited(decision.failure, decision.cooldown)
        if decision.endpoint_failed:
            self._failed_in_a_row += 1
            self.failing_since = self.failing_since or clock.now()
            self.endpoint_works = False
        else:
            self.trust()
        if decision.delivered:
            self._refusals = 0
        self._gone += decision.gone
        if self._gone >= GONE_AFTER:
            raise EndpointGone
