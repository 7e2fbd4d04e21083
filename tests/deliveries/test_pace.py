"""A client behind a rate limit gets everything, at a pace that it accepts (`engine.md` §7)."""

import os
import threading
import time
from collections import defaultdict
from datetime import timedelta
from itertools import pairwise

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.models import App, AppRepository, Status
from deliveries_app.models.root_causes import RootCause, SyncFailure
from deliveries_app.planning.plan import Change
from deliveries_app.receiver import Answer, Notification
from deliveries_app.sync import outcomes, pace, responses, sender
from deliveries_app.sync.claim import claim
from deliveries_app.sync.endpoint_health import record_up
from deliveries_app.sync.responses import SHORTEST_WAIT, Decision, ResponsePolicy
from docora.backoff import MAX_WAIT_SECONDS
from docora.db.clock import DatabaseClock, from_now
from docora.http.client import Outcome
from tests.support.histories import assert_promise_kept, at_notification, in_doubt, refusing
from tests.support.processes import syncing
from tests.support.receiver import wait_for
from tests.support.syncing import sync
from tests.support.world import World

SMALL = {f"file-{number:04}.txt": b"%d" % number for number in range(200)}


class RateLimit:
    """Accepts `rate` requests per second, as nginx's `limit_req` does without a burst, and refuses the others."""

    def __init__(self, rate: float, status: int, headers: dict[str, str] | None = None) -> None:
        self.rate, self.status, self.headers = rate, status, headers or {}
        self.accepted = self.refused = 0
        self._next = 0.0
        self._lock = threading.Lock()

    def __call__(self, note: Notification) -> Answer | None:
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                self.refused += 1
                return Answer(self.status, headers=self.headers)
            self._next = now + 1 / self.rate
            self.accepted += 1
            return None


def app_of(world: World) -> App:
    return App.objects.get(pk=world.app.pk)


def sync_until_done(world: World, watch: AppRepository, attempts: int) -> None:
    for _ in range(attempts):
        world.sync(watch)
        if watch.status == Status.SYNCED:
            return
        assert watch.retry_count == 0, watch.last_error  # a limit is not a failure
    raise AssertionError(f"not synced after {attempts} attempts")


@pytest.mark.early(5)
@pytest.mark.parametrize("status", [429, 503])
def test_many_small_files_pass_a_rate_limit(world: World, status: int) -> None:
    limit = RateLimit(100, status)
    repo, watch = world.watch(SMALL)
    world.answer(limit)
    sync_until_done(world, watch, 2)
    world.answer(None)
    assert_promise_kept(world, repo, watch)
    assert limit.accepted == len(SMALL)
    assert limit.refused < len(SMALL) / 10


@pytest.mark.early(3)
@pytest.mark.parametrize("status", [429, 503])
def test_large_file_passes_a_rate_limit(world: World, status: int) -> None:
    limit = RateLimit(20, status)
    repo, watch = world.watch({"large.bin": os.urandom(8 << 20), **dict(list(SMALL.items())[:20])})
    world.answer(limit)
    sync_until_done(world, watch, 4)
    world.answer(None)
    assert_promise_kept(world, repo, watch)
    chunks = defaultdict(list)
    for record in world.requests("create"):
        if record.chunk and record.status == 200:
            chunks[record.chunk.id].append(record.chunk.index)
    *broken_off, complete = sorted(chunks.values(), key=len)
    assert complete == list(range(len(complete)))
    assert all(indexes == list(range(len(indexes))) for indexes in broken_off)
    if status == 429:  # nothing was processed, so no chunk is counted twice and the file need not start over
        assert not broken_off


def test_large_file_passes_a_rate_limit_that_asks_for_long_waits(world: World) -> None:
    """Such an answer ends the run, and the file starts over. So it must lower the pace, too, or the file never arrives."""
    limit = RateLimit(10, 429, {"Retry-After": "10"})
    repo, watch = world.watch({"large.bin": os.urandom(1 << 20)})
    world.answer(limit)
    for _ in range(10):
        App.objects.update(paced_at=from_now(-10))
        if world.sync(watch).status == Status.SYNCED:
            break
        assert watch.retry_count == 0, watch.last_error
    world.answer(None)
    assert_promise_kept(world, repo, watch)


def test_refused_request_is_repeated_as_it_was(world: World) -> None:
    App.objects.update(max_in_flight=1)
    repo, watch = world.watch({"a": b"1", "b": b"2"})
    world.answer(at_notification(2, lambda: None, then=Answer(429)))
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    first, refused, again = world.requests()
    assert refused.webhook_id == again.webhook_id != first.webhook_id
    assert again.received_at - refused.answered_at >= 0.99


def test_hold_names_the_response_that_asked_for_it(world: World) -> None:
    """Other requests in flight may fail for other reasons before the run ends."""

    def answer(note: Notification) -> Answer:
        if note.path == "a":
            return Answer(429, headers={"Retry-After": "600"})
        time.sleep(0.5)
        return Answer(close=True)

    world.answer(answer)
    _, watch = world.watch({"a": b"1", "b": b"2"})
    watch = world.sync(watch)
    assert watch.last_error == "The app returned HTTP 429. Sending was put on hold for 10 min."
    assert (watch.root_cause, watch.last_status_code) == (RootCause.CLIENT_ERROR, 429)


@pytest.mark.early(1)
def test_lasting_refusals_hold_the_app_without_an_attempt(world: World) -> None:
    App.objects.update(max_in_flight=1)
    _, watch = world.watch({"a": b"1"})
    world.answer(lambda note: Answer(429))
    began = time.monotonic()
    world.sync(watch)
    assert 7 <= time.monotonic() - began < 12  # 1, 2 and 4 seconds
    assert len(world.requests()) == 4
    assert (watch.retry_count, watch.status) == (0, Status.PENDING)
    assert watch.last_error == "The app returned HTTP 429. Sending was put on hold for 8 s."
    cooldown = app_of(world).cooldown_until
    assert cooldown is not None
    assert watch.next_sync_at is not None


def test_file_that_is_always_refused_fails_if_the_app_accepts_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, one for which a service behind the app answers 429. Otherwise, the app would be on hold forever."""
    for module in (responses, sender):
        monkeypatch.setattr(module, "LONGEST_WAIT", 0.5)
    App.objects.update(max_in_flight=1)
    _, watch = world.watch({"a": b"1", "b": b"2", "c": b"3"})
    world.answer(refusing("a", status=429))
    world.sync(watch)
    assert watch.retry_count == 0  # until now, the app may have been too busy for any file
    before = len(world.requests())
    world.sync(watch)
    assert set(world.copy(watch)) == {"b", "c"}
    assert (watch.retry_count, watch.last_error) == (1, "1 file couldn't be delivered. The app returned HTTP 429.")
    assert [note.path for note in world.requests()[before:]] == ["b", "c", *["a"] * (1 + sender.MAX_WAITS)]


def test_app_that_refuses_every_file_is_on_hold_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (responses, sender):
        monkeypatch.setattr(module, "LONGEST_WAIT", 0.5)
    App.objects.update(max_in_flight=1)
    _, watch = world.watch({"a": b"1"})
    world.answer(lambda note: Answer(429))
    for _ in range(3):
        world.sync(watch)
        assert (watch.retry_count, watch.status) == (0, Status.PENDING)


@pytest.mark.parametrize("status", [429, 410])
def test_acknowledgements_beside_the_end_of_a_run_count(world: World, status: int) -> None:
    """The app answers eight files at the same moment, four of them so that the run ends."""
    _, watch = world.watch({f"{number}": b"%d" % number for number in range(8)})
    together = threading.Barrier(8)

    def answer(note: Notification) -> Answer | None:
        together.wait(20)
        return Answer(status, headers={"Retry-After": "60"}) if note.path in "0123" else None

    world.answer(answer)
    world.sync(watch)
    assert in_doubt(watch) == set("0123")


def test_pace_is_halved_once_a_second_and_raised_by_successes(world: World) -> None:
    def now_allowed() -> tuple[int, float]:
        app = app_of(world)
        return app.slots_allowed, app.pace_gap

    def next_moment() -> None:
        App.objects.update(paced_at=from_now(-20))

    seen = []
    for _ in range(5):
        pace.slow_down(world.app)
        pace.slow_down(world.app)
        seen.append(now_allowed())
        next_moment()
    assert seen == [(4, 0.0), (2, 0.0), (1, 0.0), (1, 0.02), (1, 0.04)]
    for _ in range(20):
        pace.speed_up(world.app)
        next_moment()
    assert now_allowed() == (8, 0.0)
    assert app_of(world).pace_slots is None


def test_gap_grows_to_ten_seconds_at_most(world: World) -> None:
    App.objects.update(pace_slots=1, pace_gap=8.0)
    pace.slow_down(world.app)
    assert app_of(world).pace_gap == 10.0


def test_pace_recovers_although_no_run_has_many_files(world: World) -> None:
    repo, watch = world.watch({"a": b"1"})
    App.objects.update(pace_slots=1, pace_gap=0.02, paced_at=from_now(-20))
    world.sync(watch)
    assert (app_of(world).slots_allowed, app_of(world).pace_gap) == (1, 0.02)
    for number, slots in enumerate([1, 2]):
        App.objects.update(paced_at=from_now(-31))
        repo.commit({"a": b"%d more" % number})
        world.sync(watch)
        assert (app_of(world).slots_allowed, app_of(world).pace_gap) == (slots, 0.0)


def test_runs_share_the_slots_that_the_pace_allows(world: World) -> None:
    watches = [world.watch(name=f"acme/{number}")[1] for number in range(3)]
    App.objects.update(pace_slots=2)

    def slots(watch: AppRepository) -> int:
        taken = claim(watch.pk)
        return taken.slots.count if taken else 0

    assert [slots(watch) for watch in watches] == [1, 1, 0]
    assert watches[2] not in AppRepository.objects.due().free().startable()


def test_gap_is_kept_between_two_starts(world: World) -> None:
    App.objects.update(pace_slots=1, pace_gap=0.2, paced_at=Now())
    _, watch = world.watch({"a": b"1", "b": b"2", "c": b"3"})
    world.sync(watch)
    times = [record.received_at for record in world.requests()]
    assert all(later - earlier >= 0.19 for earlier, later in pairwise(times))


def test_cooldown_is_never_shortened(world: World) -> None:
    first, second = (world.watch(name=f"acme/{number}")[1] for number in range(2))
    older, newer = claim(first.pk), claim(second.pk)
    assert older is not None
    assert newer is not None
    outcomes._set_cooldown(newer, 3600)
    until = app_of(world).cooldown_until
    outcomes._set_cooldown(older, 10)  # its app was read before
    assert app_of(world).cooldown_until == until


def test_run_that_began_before_an_outage_does_not_shorten_its_later_holds(world: World) -> None:
    lease = claim(world.watch()[1].pk)
    assert lease is not None
    App.objects.update(down_count=4)  # others have found the outage, and it lasts
    outcomes.endpoint_down(lease, SyncFailure("No connection.", "connect", RootCause.CONNECTION), counts=False)
    assert app_of(world).down_count == 4


def test_series_of_refusals_ends_with_a_success() -> None:
    change = Change("create", "a", "100644", "", 1, "", None, None, False, False, 0, None)
    clock, policy = DatabaseClock(timezone.now()), ResponsePolicy()

    def wait(status: int, *header_lines: bytes) -> float | None:
        answer = Outcome(status, None, "", header_lines, b"", False, 0.0, True)
        return policy.decide(change, answer, chunked=False).wait

    assert wait(429, b"Retry-After: 0\r\n") == SHORTEST_WAIT
    assert [wait(429), wait(503)] == [1, 1]
    policy.refused()
    policy.refused()
    assert [wait(429), wait(503)] == [4, None]
    policy.try_one_by_one()
    policy.settle(Decision(delivered=True), clock)
    assert [wait(429), wait(503)] == [1, 1]
    assert not policy.is_trying_one_by_one


def test_cooldown_lasts_an_hour_at_most(world: World) -> None:
    lease = claim(world.watch()[1].pk)
    assert lease is not None
    outcomes.start_cooldown(lease, 86_400, SyncFailure("It is busy.", "http", RootCause.SERVER_ERROR, 503))
    until = app_of(world).cooldown_until
    assert until is not None
    assert until - timezone.now() < timedelta(seconds=MAX_WAIT_SECONDS + 60)


def test_answer_ends_the_cooldown_of_an_endpoint_that_was_down(world: World) -> None:
    App.objects.update(down_count=1)
    lease = claim(world.watch()[1].pk)
    assert lease is not None
    App.objects.update(cooldown_until=from_now(30))
    record_up(lease.watch.app)
    app = app_of(world)
    assert (app.down_count, app.cooldown_until) == (0, None)


def test_running_attempt_stops_within_a_second_of_a_cooldown(world: World) -> None:
    repo, watch = world.watch(SMALL)
    world.answer(lambda note: time.sleep(0.05))
    world.make_due(watch)
    worker = syncing(watch.pk)
    wait_for(lambda: len(world.requests()) > 5)
    App.objects.update(cooldown_until=from_now(3600))
    worker.join(10)
    sent = len(world.requests())
    assert sent < len(SMALL)
    watch.refresh_from_db()
    assert (watch.retry_count, watch.status, watch.lease_until) == (0, Status.PENDING, None)
    assert not sync(watch.pk)
    assert len(world.requests()) == sent
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
