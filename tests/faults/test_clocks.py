"""Wrong wall clocks, and clocks that are set during a run. Leases use the database's clock and the monotonic clock."""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import (
    AlertChannel,
    App,
    AppRepository,
    ContactMail,
    DeliveryFailure,
    HourlyTraffic,
    Notice,
    NoticeKind,
    Status,
)
from deliveries_app.models.alerts import ChannelName
from deliveries_app.progress.runs import current_run
from deliveries_app.receiver import endpoint
from deliveries_app.receiver.notification import verify
from deliveries_app.reports import history
from deliveries_app.services import resync_single
from deliveries_app.sweep.head_checks import check_due
from deliveries_app.sweep.wrong_times import correct_wrong_times
from deliveries_app.sync import pace
from deliveries_app.sync.circuit import close_circuit, record_git_failure
from deliveries_app.sync.claim import claim
from deliveries_app.sync.events import new_notice
from deliveries_app.sync.sender import Sender
from deliveries_app.webhooks.endpoint_stats import last_acknowledged
from repositories_app.git import errors as git_errors
from repositories_app.git import remote
from repositories_app.git.exceptions import Cause
from repositories_app.models import HostOutage, Repository
from tests.support.clocks import set_clock
from tests.support.histories import assert_promise_kept, refusing
from tests.support.processes import forked, is_alive, reap
from tests.support.receiver import wait_for
from tests.support.syncing import sync
from tests.support.world import World

HOUR = 3600.0
FILES = {f"{number:02}.txt": b"content %d" % number for number in range(24)}
CLOCK_OFFSETS = dict.fromkeys(range(6, 10), HOUR) | dict.fromkeys(range(12, 16), -HOUR)  # by number of the request
TOLERANCE = 60.0
YEAR_AHEAD = Now() + timedelta(days=365)


def sync_with_clock_changes(watch: AppRepository) -> None:
    """Run an attempt during which the clock is set an hour ahead, back, an hour behind, and back."""
    submit = Sender._submit
    numbers: dict[str, int] = {}  # by path: one is submitted again if the lease had to be extended before it was sent

    def set_clock_and_submit(sender: Sender, transfer: Any) -> None:
        number = numbers.setdefault(transfer.notification.change.path, len(numbers))
        set_clock(CLOCK_OFFSETS.get(number, 0.0))
        submit(sender, transfer)

    Sender._submit = set_clock_and_submit  # type: ignore[assignment]
    sync(watch.pk)


def claims_during(child: int, watch: AppRepository) -> int:
    """Try to claim the watch while the child is running. Return how often that succeeded."""
    taken = 0
    while is_alive(child):
        taken += claim(watch.pk) is not None
        time.sleep(0.1)
    assert reap(child) == 0
    return taken


def sync_what_is_due(watch: AppRepository) -> bool:
    """Sync the watch if it is due, and return whether it was."""
    is_due = AppRepository.objects.due().filter(pk=watch.pk).exists()
    if is_due:
        sync(watch.pk)
    return is_due


@pytest.mark.early(1)
def test_clock_change_during_a_run(world: World, settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.LEASE_SECONDS, settings.RECORD_BATCH = 6, 5
    world.app.max_in_flight = 1
    world.app.save()
    repo, watch = world.watch(FILES)
    received: list[Mapping[str, str]] = []

    def verify_slowly(headers: Mapping[str, str], body: bytes, key: str, now: float) -> None:
        received.append(headers)
        time.sleep(0.26)
        verify(headers, body, key, now)

    monkeypatch.setattr(endpoint, "verify", verify_slowly)
    started = time.monotonic()
    child = forked(lambda: sync_with_clock_changes(watch))
    wait_for(lambda: received)
    assert claims_during(child, watch) == 0
    assert time.monotonic() - started > settings.LEASE_SECONDS  # so the lease was extended, despite the wrong clock
    for name in ("x-docora-timestamp", "webhook-timestamp"):
        for index, headers in enumerate(received):
            assert abs(int(headers[name]) - time.time() - CLOCK_OFFSETS.get(index, 0.0)) < TOLERANCE
    numbers = [int(headers["x-docora-sequence"]) for headers in received]
    assert numbers == sorted(set(numbers))
    assert all(abs(number / 1_000_000 - time.time()) < TOLERANCE for number in numbers)
    watch.refresh_from_db()
    # The client refuses wrong timestamps.
    assert (watch.status, watch.retry_count, watch.files_failing) == (Status.PENDING, 1, len(CLOCK_OFFSETS))
    assert watch.next_sync_at is not None
    assert abs((watch.next_sync_at - timezone.now()).total_seconds()) < TOLERANCE
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert len(received) == len(FILES) + len(CLOCK_OFFSETS)


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["ahead of", "behind"])
def test_worker_clock_an_hour_off(world: World, settings, monkeypatch: pytest.MonkeyPatch, ahead: float) -> None:
    def verify_with_worker_clock(headers: Mapping[str, str], body: bytes, key: str, now: float) -> None:
        verify(headers, body, key, now + ahead)

    monkeypatch.setattr(endpoint, "verify", verify_with_worker_clock)
    settings.LEASE_SECONDS, settings.RECORD_BATCH = 6, 5
    repo, watch = world.watch(FILES)
    world.app.max_in_flight = 2
    world.app.save()
    world.answer(lambda note: time.sleep(0.1))

    def work() -> None:
        set_clock(ahead)
        sync(watch.pk)

    child = forked(work)
    wait_for(world.requests)
    assert claims_during(child, watch) == 0
    assert_promise_kept(world, repo, watch)
    assert [abs(record.sequence / 1_000_000 - time.time()) < TOLERANCE for record in world.requests()] == [True] * len(
        FILES
    )
    assert watch.last_synced_at is not None
    assert abs((watch.last_synced_at - timezone.now()).total_seconds()) < TOLERANCE


def accept_any_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client verify each request by the clock of the worker that sent it."""

    def verify_with_worker_clock(headers: Mapping[str, str], body: bytes, key: str, now: float) -> None:
        verify(headers, body, key, float(headers["x-docora-timestamp"]))

    monkeypatch.setattr(endpoint, "verify", verify_with_worker_clock)


def sync_with_clock(watch: AppRepository, offset: float) -> None:
    """Run an attempt in a process whose clock is off by `offset` seconds."""

    def work() -> None:
        set_clock(offset)
        sync(watch.pk)

    assert reap(forked(work)) == 0


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["ahead of", "behind"])
def test_last_run_is_the_one_that_ended_last_although_two_workers_clocks_differ(
    world: World, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    accept_any_clock(monkeypatch)
    repo, watch = world.watch()
    world.sync(watch)
    for content, offset in ((b"changed", ahead), (b"changed again", 0.0)):
        repo.commit({"readme.md": content})
        world.make_due(watch)
        sync_with_clock(watch, offset)
    newest, first, _ = sorted(world.runs(watch), key=lambda run: run.pk, reverse=True)
    assert (newest.outcome, first.outcome) == ("succeeded", "succeeded")
    assert current_run(watch) == newest
    for run in (newest, first):
        assert 0 <= (history.seconds(run) or 0.0) < TOLERANCE
        for moment in (run.started_at, run.ended_at):
            assert moment is not None
            assert abs((moment - timezone.now()).total_seconds()) < TOLERANCE


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["ahead of", "behind"])
def test_open_circuit_uses_the_database_clock(world: World, ahead: float) -> None:
    repo, watch = world.watch()
    world.settle()
    repo.commit({"new.txt": b"new"})
    until = Now() + timedelta(seconds=1000)
    Repository.objects.update(consecutive_failures=5, last_failure_at=Now(), circuit_open_until=until)
    asked = len(world.git.server.requests)
    world.make_due(watch)
    sync_with_clock(watch, ahead)
    watch.refresh_from_db()
    assert len(world.git.server.requests) == asked
    assert watch.next_sync_at is not None
    assert abs((watch.next_sync_at - Repository.objects.get().circuit_open_until).total_seconds()) < TOLERANCE


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["ahead of", "behind"])
def test_worker_with_a_wrong_clock_closes_a_circuit_for_all_watches(
    world: World, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    accept_any_clock(monkeypatch)
    repo, watch = world.watch()
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    until = Now() + timedelta(seconds=1000)
    Repository.objects.update(consecutive_failures=5, last_failure_at=Now(), circuit_open_until=until)
    AppRepository.objects.filter(pk=other.pk).update(next_sync_at=until)
    resync_single(Actor.command(), watch)

    sync_with_clock(watch, ahead)
    assert Repository.objects.get().circuit_open_until is None
    assert list(AppRepository.objects.due()) == [other]


def test_times_written_while_the_database_clock_was_ahead_hold_nothing_back(world: World) -> None:
    """Its clock was a year ahead for ten minutes. Everything that was written meanwhile waits no longer than usual."""
    repo, watch = world.watch(FILES)
    world.answer(refusing("03.txt"))
    world.sync(watch)
    world.answer(None)
    ahead = YEAR_AHEAD
    AppRepository.objects.update(next_sync_at=ahead, next_check_at=ahead, doubt_until=ahead, failing_since=ahead)
    App.objects.update(cooldown_until=ahead, down_count=1)
    Repository.objects.update(circuit_open_until=ahead, consecutive_failures=5)
    AlertChannel.objects.create(name=ChannelName.EMAIL, due_at=ahead, reminded_at=ahead)
    ContactMail.objects.create(due_at=ahead)
    ContactMail.objects.create(sent_at=ahead)
    HostOutage.objects.create(host="https://git.example/", since=ahead, retry_at=ahead)
    HourlyTraffic.objects.update(acknowledged_at=ahead)
    assert last_acknowledged(world.app) is None
    watch.deliveries.filter(acknowledged=False).update(hold_until=ahead)
    assert correct_wrong_times() == 12
    assert correct_wrong_times() == 0
    assert AppRepository.objects.due().get() == watch
    sync(watch.pk)
    assert_promise_kept(world, repo, watch)


def test_correct_times_are_left_alone(world: World, django_assert_num_queries) -> None:
    world.watch()
    hour, minute = Now() + timedelta(hours=1), Now() + timedelta(seconds=30)
    AppRepository.objects.update(next_sync_at=hour, next_check_at=hour, doubt_until=minute, pushed_at=Now())
    App.objects.update(cooldown_until=hour, paced_at=Now(), resyncs_used_at=Now())
    Repository.objects.update(circuit_open_until=hour, last_failure_at=Now())
    with django_assert_num_queries(7):  # one for each table
        assert correct_wrong_times() == 0


def test_push_is_found_after_the_database_clock_was_an_hour_ahead(world: World, settings) -> None:
    """Docora may wait for an hour after a failure, but not before it checks a healthy repository."""
    settings.RESCAN_INTERVAL_SECONDS = 300
    repo, watch = world.watch(FILES)
    world.settle()
    repo.commit({"new.txt": b"new"})
    AppRepository.objects.update(next_check_at=Now() + timedelta(hours=1))
    assert correct_wrong_times() == 1
    with remote.new_client() as client:
        assert check_due(client) == 1
    assert correct_wrong_times() == 0
    sync(watch.pk)
    assert_promise_kept(world, repo, watch)


def test_alerts_after_the_database_clock_was_an_hour_ahead(db) -> None:
    """Docora may wait for an hour after a failure of the mail server, but gathers alerts for five minutes."""
    hour = Now() + timedelta(hours=1)
    AlertChannel.objects.create(name=ChannelName.EMAIL, due_at=hour)
    AlertChannel.objects.create(name=ChannelName.WEBHOOK, due_at=hour, attempts=8)
    ContactMail.objects.create(due_at=hour)
    ContactMail.objects.create(due_at=hour, attempts=8)
    assert correct_wrong_times() == 2
    assert correct_wrong_times() == 0
    for model in (AlertChannel, ContactMail):
        assert model.objects.get(due_at=None).attempts == 0


def test_notice_that_was_refused_while_the_database_clock_was_ahead_is_sent(world: World, settings) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    _, watch = world.watch()
    world.settle()
    record_git_failure(watch.repository, git_errors.temporary(Cause.NETWORK, "The git host is down."))
    close_circuit(watch.repository)
    Notice.objects.update(due_at=YEAR_AHEAD, attempts=1)
    world.sync(watch)
    assert correct_wrong_times() == 2  # the notice, and the watch that waits for it
    assert sync_what_is_due(watch)
    assert [record.kind for record in world.requests()].count("sync_failed") == 1
    assert not Notice.objects.exists()
    assert not sync_what_is_due(watch)


def test_notice_is_due_at_once_by_the_database_clock(world: World) -> None:
    """A worker whose clock is ahead opens the circuit."""
    _, watch = world.watch()

    def work() -> None:
        set_clock(HOUR)
        new_notice(watch, NoticeKind.SYNC_FAILED, {"event": "sync_failed"}).save()

    assert reap(forked(work)) == 0
    assert Notice.objects.filter(due_at__lte=Now()).exists()


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=365)])
def test_push_hook_while_the_database_clock_was_ahead(world: World, ahead: timedelta) -> None:
    world.watch()
    world.settle()
    AppRepository.objects.update(pushed_at=Now() + ahead)
    assert correct_wrong_times() == 1
    world.check()
    next_check = AppRepository.objects.get().next_check_at
    assert next_check < timezone.now() + timedelta(seconds=1.2 * HOUR)
    assert correct_wrong_times() == 0


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=365)])
def test_circuit_after_a_failure_while_the_database_clock_was_ahead(world: World, settings, ahead: timedelta) -> None:
    settings.RESCAN_INTERVAL_SECONDS = 0.001
    settings.CIRCUIT_BREAKER_THRESHOLD = 2
    _, watch = world.watch()
    world.settle()
    Repository.objects.update(consecutive_failures=1, last_failure_at=Now() + ahead)
    assert correct_wrong_times() == 1
    world.git.server.on_request = lambda method, target: 503
    world.sync(watch)
    assert Repository.objects.get().circuit_is_open
    Repository.objects.update(last_failure_at=Now() + ahead, circuit_open_until=Now())
    assert correct_wrong_times() == 1
    world.git.server.on_request = None
    world.sync(watch)
    assert Repository.objects.get().consecutive_failures == 0


def test_pace_and_quota_after_the_database_clock_was_ahead(world: World) -> None:
    limits = {"max_resyncs_per_hour": 3600, "resyncs_used": 1.0}
    App.objects.update(pace_slots=1, pace_gap=10.0, paced_at=YEAR_AHEAD, resyncs_used_at=YEAR_AHEAD, **limits)
    assert correct_wrong_times() == 2
    assert pace.speed_up(world.app).pace_gap < 10
    used = App.objects.get().resyncs_used_at
    assert used is not None
    assert used < timezone.now() + timedelta(seconds=TOLERANCE)


def test_slot_requested_while_the_database_clock_was_ahead(world: World) -> None:
    """The watch that asked was paused. The slots that would be kept for it are used by others."""
    _, watch = world.watch(name="acme/one")
    _, paused = world.watch(name="acme/two")
    AppRepository.objects.filter(pk=paused.pk).update(paused_at=Now(), slots_requested_at=YEAR_AHEAD)
    assert correct_wrong_times() == 1
    lease = claim(watch.pk)
    assert lease is not None
    lease.slots.rebalance(0, at_once=True)
    assert lease.slots.count == world.app.max_in_flight


@pytest.mark.parametrize("is_corrected", [True, False])
def test_doubt_from_a_clock_that_was_an_hour_ahead(world: World, *, is_corrected: bool) -> None:
    repo, watch = world.watch(FILES)
    world.settle()
    AppRepository.objects.update(doubt_until=Now() + timedelta(hours=1))
    repo.commit({"new": b"1"})
    if is_corrected:
        assert correct_wrong_times() == 1
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_database_clock_is_set_back_between_two_attempts(world: World) -> None:
    """A file that the app has accepted is not listed as failed, although it failed "later" than it was accepted."""
    repo, watch = world.watch(FILES)
    world.answer(refusing("03.txt", "07.txt"))
    assert world.sync(watch).files_failing == 2
    DeliveryFailure.objects.update(first_at=Now() + timedelta(hours=1), last_at=Now() + timedelta(hours=1))
    world.answer(refusing("07.txt"))
    world.sync(watch)
    assert list(watch.failures.values_list("path", flat=True)) == ["07.txt"]
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
