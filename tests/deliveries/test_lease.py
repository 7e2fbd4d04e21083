"""Leases: claimed by one worker, extended while it works, fenced once it is lost (`engine.md` §4)."""

import os
import signal
import threading
import time
from datetime import timedelta

import pytest
from django.db import connections
from django.db.models import F
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Delivery, DeliveryFailure, Outcome, Status
from deliveries_app.models.watches import MAX_SHARED_CRASHES
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import resync_single
from deliveries_app.sync import attempt as engine
from deliveries_app.sync import lease as leases
from deliveries_app.sync.claim import claim
from deliveries_app.sync.exceptions import Superseded
from deliveries_app.sync.lease import Lease
from tests.support.histories import (
    assert_promise_kept,
    at_notification,
    in_doubt,
    kill_worker_before_first_byte,
    let_lease_run_out,
    maybe_kill_worker,
    refusing,
)
from tests.support.processes import forked, in_threads, reap
from tests.support.receiver import wait_for
from tests.support.syncing import sync
from tests.support.world import World


def files(count: int) -> dict[str, bytes]:
    return {f"file-{number:03}.txt": b"content %d" % number for number in range(count)}


def lease_for(watch: AppRepository, seconds: float) -> None:
    """Give the watch a lease for this many seconds, by the database's clock."""
    AppRepository.objects.filter(pk=watch.pk).update(lease_until=Now() + timedelta(seconds=seconds), lease_slots=1)


def steal(watch: AppRepository) -> Lease:
    """Claim the watch as another worker does when the lease of a frozen worker has expired."""
    AppRepository.objects.filter(pk=watch.pk).update(lease_until=Now() - timedelta(seconds=1))
    taken = claim(watch.pk)
    assert taken is not None
    return taken


def test_concurrent_claims_of_threads(world: World) -> None:
    _, watch = world.watch()
    for _ in range(3):
        claims = in_threads(*[lambda: claim(watch.pk)] * 4)
        assert len([taken for taken in claims if taken]) == 1
        let_lease_run_out(watch)
    assert watch.fencing_token == 3


def test_concurrent_claims_of_processes(world: World) -> None:
    _, watch = world.watch()
    children = [forked(lambda: os._exit(7 if claim(watch.pk) else 0)) for _ in range(4)]
    assert sorted(os.waitstatus_to_exitcode(reap(child)) for child in children) == [0, 0, 0, 7]


def test_lease_expires_by_the_database_clock(world: World) -> None:
    _, watch = world.watch()
    lease_for(watch, 20)
    assert claim(watch.pk) is None
    lease_for(watch, -0.1)
    assert claim(watch.pk) is not None


def test_lease_far_in_the_future_counts_as_free(world: World, settings) -> None:
    _, watch = world.watch()
    lease_for(watch, 2 * settings.LEASE_SECONDS - 1)
    assert claim(watch.pk) is None
    lease_for(watch, 2 * settings.LEASE_SECONDS + 1)
    assert claim(watch.pk) is not None


def test_watches_that_cannot_be_claimed(world: World) -> None:
    _, watch = world.watch()
    AppRepository.objects.filter(pk=watch.pk).update(next_sync_at=None)
    assert claim(watch.pk) is None
    AppRepository.objects.filter(pk=watch.pk).update(next_sync_at=Now())
    watch.app.paused = True
    watch.app.save()
    assert claim(watch.pk) is None
    watch.app.paused = False
    watch.app.save()
    AppRepository.objects.filter(pk=watch.pk).update(ended_at=Now())
    assert claim(watch.pk) is None


def test_lease_is_extended_for_its_own_claim_only(world: World, settings) -> None:
    _, watch = world.watch()
    lease = claim(watch.pk)
    assert lease is not None
    number = lease.reserve_sequences(7) + 6
    lease.extend(target="t" * 64)
    watch.refresh_from_db()
    assert (watch.target, watch.sequence_high) == ("t" * 64, number)
    assert watch.lease_until is not None
    assert watch.lease_until.timestamp() == pytest.approx(time.time() + settings.LEASE_SECONDS, abs=5)
    for changed in ("fencing_token", "generation"):
        rows = AppRepository.objects.filter(pk=watch.pk)
        rows.update(**{changed: F(changed) + 1})
        for changes in ({}, {"target": ""}):
            with pytest.raises(Superseded):
                lease.extend(**changes)
        rows.update(**{changed: F(changed) - 1})
    lease.extend()


def test_worker_records_nothing_after_another_claim(world: World, settings) -> None:
    settings.RECORD_BATCH = 5
    world.app.max_in_flight = 1
    world.app.save()
    repo, watch = world.watch(files(20))
    stolen: list[tuple[Lease, int]] = []
    acknowledged = Delivery.objects.filter(watch=watch, acknowledged=True)
    world.answer(at_notification(8, lambda: stolen.append((steal(watch), acknowledged.count()))))
    world.sync(watch)
    taken, recorded = stolen[0]
    assert 0 < recorded < 8
    assert acknowledged.count() == recorded == world.runs(watch)[0].files_done
    assert watch.fencing_token == taken.fencing_token
    assert watch.lease_until is not None
    assert not DeliveryFailure.objects.filter(watch=watch).exists()
    let_lease_run_out(watch)
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize("ending", ["succeeded", "failed"])
def test_worker_that_lost_its_lease_records_no_outcome(world: World, monkeypatch, ending: str) -> None:
    _, watch = world.watch(files(3))
    DeliveryFailure.objects.create(
        watch=watch, path_digest="0" * 64, path="other", cause="http", message="…", first_at=Now(), last_at=Now()
    )
    if ending == "failed":
        world.answer(at_notification(1, lambda: None, then=Answer(500)))
    original = getattr(engine.outcomes, ending)

    def late(lease: Lease, *arguments: object, **fields: object) -> None:
        steal(watch)
        original(lease, *arguments, **fields)

    monkeypatch.setattr(engine.outcomes, ending, late)
    world.sync(watch)
    assert watch.status == Status.SCANNING
    assert watch.base_commit == ""
    assert world.runs(watch)[0].outcome == ""
    assert DeliveryFailure.objects.filter(watch=watch, path="other").exists()


def test_worker_that_lost_its_lease_leaves_the_new_one_alone(world: World) -> None:
    """Extending, rebalancing and releasing the lost lease have no effect."""
    _, watch = world.watch()
    lost = claim(watch.pk)
    assert lost is not None
    steal(watch)
    lease = AppRepository.objects.values("lease_until", "lease_slots", "doubt_until")
    before = lease.get()
    lost.keep_alive()
    lost.slots.rebalance(0, at_once=True)
    lost.release(in_doubt=True)
    assert lease.get() == before


def test_superseded_claim_keeps_the_watch_while_its_requests_settle(world: World, settings) -> None:
    _, watch = world.watch()
    superseded = claim(watch.pk)
    assert superseded is not None
    resync_single(Actor.command(), watch)
    lease_for(watch, 1)
    superseded.keep_alive()
    extended = Now() + timedelta(seconds=settings.LEASE_SECONDS - 5)
    assert AppRepository.objects.filter(lease_until__gt=extended).exists()
    assert claim(watch.pk) is None
    superseded.release()
    assert claim(watch.pk) is not None


def test_superseded_run_extends_its_lease_until_its_requests_have_settled(world: World, monkeypatch) -> None:
    monkeypatch.setattr(Lease, "extension_is_due", True)
    _, watch = world.watch()
    extended = AppRepository.objects.filter(lease_until__gt=Now() + timedelta(seconds=10))
    was_extended = []

    def supersede() -> None:
        resync_single(Actor.command(), watch)
        lease_for(watch, 5)
        wait_for(extended.exists, 4)
        was_extended.append(True)

    world.answer(at_notification(1, supersede))
    world.sync(watch)
    assert was_extended


def test_attempt_count_of_claim_success_and_handover(world: World, monkeypatch) -> None:
    _, watch = world.watch(files(6))
    taken = claim(watch.pk)
    assert taken is not None
    assert taken.watch.retry_count == 1
    let_lease_run_out(watch)
    told_to_stop = False
    monkeypatch.setattr(engine, "stopping", lambda: told_to_stop)

    def stop() -> None:
        nonlocal told_to_stop
        told_to_stop = True

    world.answer(at_notification(2, stop))
    world.sync(watch)
    # The process of the first attempt died beside others, so that attempt does not count.
    assert (watch.retry_count, watch.status, watch.lease_until) == (0, Status.PENDING, None)
    assert watch.next_sync_at is not None
    told_to_stop = False
    world.sync(watch)
    assert (watch.retry_count, watch.status) == (0, Status.SYNCED)


def test_stopping_worker_records_acknowledged_files(world: World, monkeypatch) -> None:
    world.app.max_in_flight = 2
    world.app.save()
    repo, watch = world.watch(files(12))
    asked = 0

    def hook(note: Notification) -> None:
        nonlocal asked
        asked += 1
        time.sleep(0.05)

    world.answer(hook)
    monkeypatch.setattr(engine, "stopping", lambda: asked >= 4)
    world.sync(watch)
    done = Delivery.objects.filter(watch=watch, acknowledged=True).count()
    assert done == len(world.requests())  # no request in flight is lost
    assert 4 <= done <= 6
    assert len(in_doubt(watch)) == 12 - done
    assert AppRepository.objects.due().free().filter(pk=watch.pk).exists()
    monkeypatch.setattr(engine, "stopping", lambda: False)
    world.answer(None)
    world.sync(watch)
    assert len(world.requests()) == 12
    assert_promise_kept(world, repo, watch)


def test_watch_that_kills_every_worker_fails(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 3
    repo, watch = world.watch()
    for _ in range(MAX_SHARED_CRASHES + 3):
        kill_worker_before_first_byte(world, watch)
    world.sync(watch)
    assert (watch.status, watch.last_error_cause) == (Status.FAILED, "internal")
    assert "worker died" in watch.last_error
    assert world.requests() == []
    assert world.runs(watch)[0].outcome == Outcome.FAILED
    assert not AppRepository.objects.due().filter(pk=watch.pk).exists()
    world.sync(watch)  # the next rescan
    assert_promise_kept(world, repo, watch)


@pytest.mark.early(1)
def test_slow_batch_does_not_outlast_the_lease(world: World, settings) -> None:
    """Otherwise two workers would take turns forever."""
    settings.LEASE_SECONDS, settings.RECORD_BATCH = 6, 100
    world.app.max_in_flight = 1
    world.app.save()
    repo, watch = world.watch(files(22))
    world.answer(lambda note: time.sleep(0.3))
    at_work = True

    def rival() -> list[Lease]:
        taken = []
        while at_work:
            if mine := claim(watch.pk):
                taken.append(mine)
            time.sleep(0.1)
        return taken

    def holder() -> None:
        nonlocal at_work
        wait_for(lambda: world.make_due(watch) or True)
        try:
            sync(watch.pk)
        finally:
            at_work = False

    time_before = time.monotonic()
    AppRepository.objects.filter(pk=watch.pk).update(next_sync_at=None)  # the rival comes second
    stolen = in_threads(holder, lambda: wait_for(lambda: world.requests(), 20) and rival())[1]
    assert time.monotonic() - time_before > settings.LEASE_SECONDS
    assert stolen == []
    assert len(world.requests()) == 22
    assert_promise_kept(world, repo, watch)


def test_no_request_starts_in_the_last_5_seconds(world: World, settings, monkeypatch) -> None:
    settings.LEASE_SECONDS = 30
    _, watch = world.watch()
    taken = claim(watch.pk)
    assert taken is not None
    for seconds, can in ((0, True), (24.9, True), (25.1, False), (31, False)):
        monkeypatch.setattr(leases, "boot_seconds", lambda seconds=seconds: taken.extended_at + seconds)
        assert taken.can_send() is can


@pytest.mark.early(1)
def test_worker_frozen_past_its_lease(world: World, settings) -> None:
    settings.LEASE_SECONDS, settings.RECORD_BATCH = 6, 3
    world.app.max_in_flight = 1
    world.app.save()
    repo, watch = world.watch(files(10))
    child = 0
    frozen = False

    def freeze(note: Notification) -> None:
        nonlocal frozen
        if len(world.requests()) == 4 and not frozen:
            os.kill(child, signal.SIGSTOP)
            frozen = True

    world.answer(freeze)
    world.make_due(watch)
    connections.close_all()
    child = forked(lambda: sync(watch.pk))
    wait_for(lambda: frozen)
    assert claim(watch.pk) is None
    wait_for(lambda: AppRepository.objects.free().filter(pk=watch.pk).exists(), 10, 0.05)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    sent = len(world.requests())
    rows = list(Delivery.objects.filter(watch=watch).order_by("path").values())
    runs = [(run.outcome, run.files_done, run.files_total) for run in world.runs(watch)]
    os.kill(child, signal.SIGCONT)
    reap(child)
    assert len(world.requests()) == sent
    assert list(Delivery.objects.filter(watch=watch).order_by("path").values()) == rows
    assert [(run.outcome, run.files_done, run.files_total) for run in world.runs(watch)] == runs
    assert_promise_kept(world, repo, watch)


def test_attempt_counts_only_if_its_process_died_for_this_watch_alone(world: World) -> None:
    _, watch = world.watch()
    counted = []
    for _ in range(4):
        kill_worker_before_first_byte(world, watch)
        watch.refresh_from_db()
        counted.append((watch.retry_count, watch.crash_count, watch.needs_own_process))
    assert counted == [(1, 0, False), (1, 1, True), (1, 2, True), (2, 2, True)]
    world.make_due(watch)
    assert claim(watch.pk, alone=False) is None
    world.sync(watch)
    assert (watch.status, watch.retry_count, watch.crash_count) == (Status.SYNCED, 0, 0)


def test_attempt_that_had_files_acknowledged_does_not_count(world: World, settings) -> None:
    settings.RECORD_BATCH, settings.MAX_RETRY_ATTEMPTS = 2, 1
    world.app.max_in_flight = 1
    world.app.save()
    repo, watch = world.watch(files(30))
    for _ in range(MAX_SHARED_CRASHES + 5):
        maybe_kill_worker(world, watch, 4, processed=True)
        watch.refresh_from_db()
        assert (watch.retry_count, watch.status) == (1, Status.SCANNING)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_deaths_before_an_attempt_that_ended_do_not_count(world: World) -> None:
    """Otherwise the watch would need a process of its own for ever."""
    _, watch = world.watch()
    world.settle()
    rows = AppRepository.objects.filter(pk=watch.pk)
    rows.update(crash_count=MAX_SHARED_CRASHES)
    assert world.sync(watch).crash_count == 0  # nothing to send
    resync_single(Actor.command(), watch)
    rows.update(crash_count=MAX_SHARED_CRASHES)
    world.answer(refusing("readme.md"))
    assert world.sync(watch).crash_count == 0
    assert watch.is_failing


def test_hanging_client_does_not_keep_a_stopping_worker(world: World, monkeypatch) -> None:
    """The file may still arrive at the client, so it is not sent again at once."""
    monkeypatch.setattr(engine, "HAND_OVER_SECONDS", 0.1)
    _, watch = world.watch()
    ended = threading.Event()
    world.answer(lambda note: ended.wait(20) and None)
    monkeypatch.setattr(engine, "stopping", lambda: bool(world.receiver._in_flight.total()))
    began = time.monotonic()
    world.sync(watch)
    ended.set()
    assert time.monotonic() - began < 10
    assert (watch.status, watch.lease_until) == (Status.PENDING, None)
    assert Delivery.objects.get().hold_until is not None
