"""Pausing all syncing: nothing is checked or sent meanwhile, nothing that was asked for is lost, nothing is sent twice."""

import threading
from collections import Counter
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models.functions import Now

from deliveries_app import jobs
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Notice, Outcome, Status, SyncPause
from deliveries_app.receiver import Notification
from deliveries_app.services import (
    cancel_request,
    current_pause,
    enqueue_due,
    pause_syncing,
    request_sync,
    resume_syncing,
    resync_single,
    retry_single,
    unwatch_repository,
)
from deliveries_app.services.pinging import send_ping
from deliveries_app.sweep.cleanup import remove_ended
from deliveries_app.sweep.loop import sweep_once
from deliveries_app.sync import attempt as engine
from deliveries_app.sync import lease as leases
from deliveries_app.sync.exceptions import Paused
from deliveries_app.sync.lease import claim
from repositories_app.git import remote
from repositories_app.models import Repository
from tests.support.histories import assert_promise_kept, at_notification, refusing
from tests.support.processes import in_threads, syncing
from tests.support.world import World

FILES = {f"{n}.txt": b"%d" % n for n in range(12)}
BATCH = 2
ME = Actor.command()


@pytest.fixture
def world(world: World, settings, monkeypatch) -> World:
    """Small batches, one file at a time, and a worker that looks for a pause between any two of them."""
    monkeypatch.setattr(leases, "_REBALANCE_SECONDS", 0.0)
    settings.RECORD_BATCH, world.app.max_in_flight = BATCH, 1
    world.app.save()
    return world


def pause() -> SyncPause:
    return pause_syncing(ME)


def resume() -> bool:
    return resume_syncing(ME)


def sent(world: World) -> Counter[str]:
    return Counter(record.path for record in world.requests())


def sweep() -> None:
    AppRepository.objects.update(next_check_at=Now() - timedelta(seconds=1))
    with remote.new_client() as client:
        sweep_once(client)


# --- While nothing is running --------------------------------------------------------------------------------------------


def test_nothing_is_claimed_checked_or_queued_while_syncing_is_paused(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.settle()
    _, waiting = world.watch(name="acme/waiting")
    repo.commit({"new.txt": b"new"})
    pause()
    asked, told = len(world.git.server.requests), len(world.requests())
    sweep()
    assert enqueue_due() == 0
    assert claim(waiting.pk) is None
    jobs.sync_watch(waiting.pk)
    assert (len(world.git.server.requests), len(world.requests())) == (asked, told)
    assert resume()
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_resuming_queues_what_is_due_at_once(world: World, redis_client) -> None:
    _repo, watch = world.watch(FILES)
    pause()
    redis_client.flushall()
    resume()
    assert redis_client.lrange("rq:queue:default", 0, -1) == [watch.job_id.encode()]


def test_a_resync_a_retry_and_a_push_meanwhile_are_recorded_and_go_out_on_resume(world: World) -> None:
    repos, watches = zip(*[world.watch(FILES, name=f"acme/widgets-{n}") for n in range(3)], strict=True)
    world.sync(watches[0])
    world.sync(watches[2])
    world.answer(refusing("3.txt"))
    world.sync(watches[1])
    world.answer(None)
    pause()
    before = len(world.requests())
    again = resync_single(ME, watches[0]).run
    retried = retry_single(ME, watches[1]).run
    repos[2].commit({"pushed.txt": b"new"})
    request_sync(AppRepository.objects.filter(pk=watches[2].pk))
    for watch in watches:
        jobs.sync_watch(watch.pk)
    assert len(world.requests()) == before
    resume()
    for watch in watches:
        jobs.sync_watch(watch.pk)
    assert Counter(record.run_id for record in world.requests()[before:]) == {
        again.run_id: len(FILES),
        retried.run_id: 1,
        watches[2].runs.first().run_id: 1,
    }
    for repo, watch in zip(repos, watches, strict=True):
        assert_promise_kept(world, repo, watch)


def test_a_resync_that_waits_can_be_cancelled_and_sends_nothing_then(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    pause()
    resync_single(ME, watch)
    assert cancel_request(ME, watch) == 1
    resume()
    jobs.sync_watch(watch.pk)
    assert sent(world) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_what_is_not_syncing_goes_on(world: World) -> None:
    _repo, watch = world.watch(FILES)
    pause()
    assert send_ping(ME, world.app).status == 200
    unwatch_repository(ME, watch)
    remove_ended()
    assert not AppRepository.objects.exists()


# --- While something is running ------------------------------------------------------------------------------------------


def test_a_run_hands_over_and_goes_on_after_the_resume_with_nothing_sent_twice(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.answer(at_notification(5, pause))
    world.sync(watch)
    assert len(world.requests()) == 5
    assert (watch.status, watch.lease_until, watch.retry_count) == (Status.PENDING, None, 0)
    assert watch.deliveries.filter(acknowledged=True).count() == 5
    run = world.runs(watch)[0]
    assert (run.outcome, run.files_done, run.files_total) == ("", 5, 12)
    assert not AppRepository.objects.due().exists()
    jobs.sync_watch(watch.pk)
    assert len(world.requests()) == 5
    resume()
    jobs.sync_watch(watch.pk)
    assert sent(world) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)
    assert [(run.outcome, run.files_done) for run in world.runs(watch)] == [(Outcome.SUCCEEDED, 12)]


def test_a_resync_and_a_retry_hand_over_too_and_keep_their_requests(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    for request in (resync_single, retry_single):
        if request is retry_single:
            world.answer(refusing(*FILES))
            resync_single(ME, watch)
            world.sync(watch)
        before = len(world.requests())
        run = request(ME, watch).run
        world.answer(at_notification(3, pause))
        world.sync(watch)
        assert len(world.requests()) - before == 3
        run.refresh_from_db()
        assert run.outcome == ""
        resume()
        world.answer(None)
        jobs.sync_watch(watch.pk)
        assert Counter(record.path for record in world.requests()[before:]) == dict.fromkeys(FILES, 1)
        run.refresh_from_db()
        assert (run.outcome, run.files_done) == (Outcome.SUCCEEDED, 12)
        assert_promise_kept(world, repo, watch)


def test_a_failed_watch_that_is_tried_at_its_rescan_is_failed_as_before(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 1
    _repo, watch = world.watch(FILES)
    world.answer(refusing(*FILES))
    world.sync(watch)
    assert watch.status == Status.FAILED
    world.answer(at_notification(2, pause))
    world.sync(watch)
    assert (watch.status, watch.retry_count, watch.is_failing) == (Status.FAILED, 0, True)


def test_a_pause_while_git_is_asked_is_met_before_anything_is_sent(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.git.server.on_request = lambda method, target: pause() and None
    world.sync(watch)
    assert world.requests() == []
    assert (watch.status, watch.lease_until, watch.retry_count) == (Status.PENDING, None, 0)
    world.git.server.on_request = None
    resume()
    jobs.sync_watch(watch.pk)
    assert_promise_kept(world, repo, watch)


def test_a_pause_between_the_look_and_the_claim_sends_nothing_either(world: World, monkeypatch) -> None:
    repo, watch = world.watch(FILES)
    original = engine.claim

    def claim_late(pk: int) -> leases.Lease | None:
        taken = original(pk)
        pause()
        return taken

    monkeypatch.setattr(engine, "claim", claim_late)
    world.sync(watch)
    assert (len(world.requests()), watch.retry_count) == (0, 0)
    monkeypatch.setattr(engine, "claim", original)
    resume()
    jobs.sync_watch(watch.pk)
    assert_promise_kept(world, repo, watch)


def test_a_slow_answer_is_waited_for_and_counts(world: World) -> None:
    asked, paused = threading.Event(), threading.Event()
    repo, watch = world.watch(FILES)

    def slowly(note: Notification) -> None:
        asked.set()
        paused.wait(20)

    world.answer(slowly)
    worker = syncing(watch.pk)
    assert asked.wait(20)
    pause()
    paused.set()
    worker.join()
    world.answer(None)
    told = len(world.requests())
    assert told <= 2
    assert watch.deliveries.filter(acknowledged=True).count() == told
    resume()
    jobs.sync_watch(watch.pk)
    assert sent(world) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


# --- Notices -------------------------------------------------------------------------------------------------------------


def open_the_circuit(world: World, watch: AppRepository) -> None:
    world.git.server.on_request = lambda method, target: 503
    world.sync(watch)
    assert Repository.objects.get(pk=watch.repository_id).circuit_is_open
    assert Notice.objects.count() == 1


def test_sync_failed_waits_for_the_resume(world: World, settings) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    _repo, watch = world.watch()
    open_the_circuit(world, watch)
    pause()
    world.sync(watch)
    assert world.requests() == []
    resume()
    jobs.sync_watch(watch.pk)
    assert [record.kind for record in world.requests()] == ["sync_failed"]
    assert not Notice.objects.exists()


@pytest.mark.parametrize("kind", ["sync_failed", "sync_completed"])
def test_a_notice_that_is_under_way_when_syncing_is_paused_is_told_once(
    world: World, settings, monkeypatch, kind: str
) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    world.app.send_sync_completed = True
    world.app.save()
    repo, watch = world.watch()
    if kind == "sync_failed":
        open_the_circuit(world, watch)
    asked, met = threading.Event(), threading.Event()
    original = leases.Lease.rebalance

    def looks(lease: leases.Lease, in_flight: int) -> None:
        try:
            original(lease, in_flight)
        except Paused:
            met.set()
            raise

    def slowly(note: Notification) -> None:
        if note.kind == kind:
            asked.set()
            met.wait(20)

    monkeypatch.setattr(leases.Lease, "rebalance", looks)
    world.answer(slowly)
    world.make_due(watch)
    worker = syncing(watch.pk)
    assert asked.wait(20)
    pause()
    worker.join()
    assert met.is_set()
    assert not Notice.objects.exists()
    world.git.server.on_request = None
    Repository.objects.update(circuit_open_until=None)
    resume()
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert len(world.requests(kind)) == 1


# --- The pause itself ----------------------------------------------------------------------------------------------------


def test_the_first_who_pauses_is_remembered_and_both_are_recorded(db) -> None:
    anna, ben = (User.objects.create_superuser(name, password="x") for name in ("anna", "ben"))
    assert current_pause() is None
    pause_syncing(Actor.of_user(anna))
    assert pause_syncing(Actor.of_user(ben)).paused_by == "anna"
    assert resume_syncing(Actor.of_user(ben))
    assert not resume_syncing(Actor.of_user(anna))
    assert current_pause() is None
    said = LogEntry.objects.order_by("pk").values_list("user__username", "change_message")
    assert list(said) == [("anna", "Paused all syncing"), ("ben", "Resumed all syncing")]


@pytest.mark.django_db(transaction=True)
def test_two_who_pause_or_resume_at_once_do_it_once() -> None:
    first, second = in_threads(*[pause] * 2)
    assert isinstance(first, SyncPause)
    assert isinstance(second, SyncPause)
    assert SyncPause.objects.count() == 1
    assert sorted(map(bool, in_threads(*[resume] * 2))) == [False, True]


def test_neither_an_app_nor_who_lacks_the_permission_pauses_or_resumes(world: World) -> None:
    clerk = User.objects.create_user("norbert", password="x", is_staff=True)
    for actor in (Actor.of_app(world.app), Actor.of_user(clerk)):
        for verb in (pause_syncing, resume_syncing):
            with pytest.raises(PermissionDenied):
                verb(actor)
