"""Pause all syncing: nothing is checked or sent, no request is lost, and nothing is sent twice."""

import threading
import time
from collections import Counter
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models.functions import Now

from deliveries_app import jobs
from deliveries_app.actors import Actor
from deliveries_app.models import (
    AppRepository,
    AppRepositoryQuerySet,
    DeliveryAttempt,
    Notice,
    Outcome,
    Status,
    SyncPause,
)
from deliveries_app.receiver import Answer, Notification
from deliveries_app.scheduling import enqueue_due, request_sync
from deliveries_app.services import (
    cancel_request,
    current_pause,
    pause_syncing,
    pause_watches,
    resume_syncing,
    resume_watches,
    resync_single,
    retry_single,
    unwatch_repository,
)
from deliveries_app.services.pinging import send_ping
from deliveries_app.sweep.cleanup import remove_ended
from deliveries_app.sweep.loop import sweep_once
from deliveries_app.sync import attempt as engine
from deliveries_app.sync import slots
from deliveries_app.sync.claim import claim
from deliveries_app.sync.exceptions import Paused
from deliveries_app.sync.lease import Lease
from deliveries_app.sync.slots import Slots
from repositories_app.git import remote
from repositories_app.models import Repository
from tests.support.audit import by_users, messages
from tests.support.histories import assert_promise_kept, at_notification, refusing
from tests.support.processes import in_threads, syncing
from tests.support.world import World

FILES = {f"{n}.txt": b"%d" % n for n in range(12)}
BATCH = 2
ME = Actor.command()


@pytest.fixture
def world(world: World, settings, monkeypatch) -> World:
    """Small batches, one file at a time, and a worker that checks for a pause after each."""
    monkeypatch.setattr(slots, "_REBALANCE_SECONDS", (0.0, 0.0))
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


# --- While no run is active ----------------------------------------------------------------------------------------------


def test_nothing_is_claimed_checked_or_queued_while_paused(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.settle()
    _, waiting = world.watch(name="acme/waiting")
    repo.commit({"new.txt": b"new"})
    pause()
    git_requests, notifications = len(world.git.server.requests), len(world.requests())
    sweep()
    assert enqueue_due() == 0
    assert claim(waiting.pk) is None
    jobs.sync_watch(waiting.pk)
    assert (len(world.git.server.requests), len(world.requests())) == (git_requests, notifications)
    assert resume()
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_resume_enqueues_what_is_due(world: World, redis_client) -> None:
    _repo, watch = world.watch(FILES)
    pause()
    redis_client.flushall()
    resume()
    assert redis_client.lrange("rq:queue:default", 0, -1) == [watch.job_id.encode()]


def test_requests_during_a_pause_run_after_the_resume(world: World) -> None:
    repos, watches = zip(*[world.watch(FILES, name=f"acme/widgets-{n}") for n in range(3)], strict=True)
    world.sync(watches[0])
    world.sync(watches[2])
    world.answer(refusing("3.txt"))
    world.sync(watches[1])
    world.answer(None)
    pause()
    before = len(world.requests())
    again = resync_single(ME, watches[0])
    retried = retry_single(ME, watches[1])
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


def test_resync_can_be_cancelled_during_a_pause(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    pause()
    resync_single(ME, watch)
    assert cancel_request(ME, watch) == 1
    resume()
    jobs.sync_watch(watch.pk)
    assert sent(world) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_pings_and_unwatching_work_during_a_pause(world: World) -> None:
    _repo, watch = world.watch(FILES)
    pause()
    assert send_ping(ME, world.app).status == 200
    unwatch_repository(ME, watch)
    remove_ended()
    assert not AppRepository.objects.exists()


# --- While a run is active -----------------------------------------------------------------------------------------------


def test_run_continues_after_the_resume(world: World) -> None:
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
    assert [(run.outcome, run.files_done, run.attempts) for run in world.runs(watch)] == [(Outcome.SUCCEEDED, 12, 1)]


def test_resync_and_retry_continue_after_the_resume(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    for request in (resync_single, retry_single):
        if request is retry_single:
            world.answer(refusing(*FILES))
            resync_single(ME, watch)
            world.sync(watch)
        before = len(world.requests())
        run = request(ME, watch)
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


def test_pause_during_the_rescan_of_a_failed_watch(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 1
    _repo, watch = world.watch(FILES)
    world.answer(refusing(*FILES))
    world.sync(watch)
    assert watch.status == Status.FAILED
    world.answer(at_notification(2, pause))
    world.sync(watch)
    assert (watch.status, watch.retry_count, watch.is_failing) == (Status.FAILED, 0, True)


def test_pause_during_the_git_fetch(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.git.server.on_request = lambda method, target: pause() and None
    world.sync(watch)
    assert world.requests() == []
    assert (watch.status, watch.lease_until, watch.retry_count) == (Status.PENDING, None, 0)
    world.git.server.on_request = None
    resume()
    jobs.sync_watch(watch.pk)
    assert_promise_kept(world, repo, watch)


def test_pause_just_after_the_claim(world: World, monkeypatch) -> None:
    repo, watch = world.watch(FILES)
    original = engine.claim

    def claim_late(pk: int, *, alone: bool) -> Lease | None:
        taken = original(pk, alone=alone)
        pause()
        return taken

    monkeypatch.setattr(engine, "claim", claim_late)
    world.sync(watch)
    assert (len(world.requests()), watch.retry_count) == (0, 0)
    monkeypatch.setattr(engine, "claim", original)
    resume()
    jobs.sync_watch(watch.pk)
    assert_promise_kept(world, repo, watch)


def test_pending_response_counts(world: World) -> None:
    received, paused = threading.Event(), threading.Event()
    repo, watch = world.watch(FILES)

    def slowly(note: Notification) -> None:
        received.set()
        paused.wait(20)

    world.answer(slowly)
    worker = syncing(watch.pk)
    assert received.wait(20)
    pause()
    paused.set()
    worker.join()
    world.answer(None)
    sent_before = len(world.requests())
    assert sent_before <= 2
    assert watch.deliveries.filter(acknowledged=True).count() == sent_before
    resume()
    jobs.sync_watch(watch.pk)
    assert sent(world) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_refusal_of_a_busy_app_at_the_pause_is_not_a_failure(world: World) -> None:
    received = threading.Event()
    repo, watch = world.watch(FILES)

    def refuse_late(note: Notification) -> Answer:
        received.set()
        time.sleep(1.5)  # by then, the worker has noticed the pause
        return Answer(429)

    world.answer(refuse_late)
    worker = syncing(watch.pk)
    assert received.wait(20)
    pause()
    worker.join()
    world.answer(None)
    assert not watch.failures.exists()
    assert not DeliveryAttempt.objects.exists()
    resume()
    jobs.sync_watch(watch.pk)
    assert_promise_kept(world, repo, watch)


# --- Notices -------------------------------------------------------------------------------------------------------------


def open_the_circuit(world: World, watch: AppRepository) -> None:
    world.git.server.on_request = lambda method, target: 503
    world.sync(watch)
    assert Repository.objects.get(pk=watch.repository_id).circuit_is_open
    assert Notice.objects.count() == 1


def test_sync_failed_is_sent_after_the_resume(world: World, settings) -> None:
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
def test_notice_in_flight_at_the_pause_is_sent_once(world: World, settings, monkeypatch, kind: str) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    world.app.send_sync_completed = True
    world.app.save()
    repo, watch = world.watch()
    if kind == "sync_failed":
        open_the_circuit(world, watch)
    received, met = threading.Event(), threading.Event()
    original = Slots.rebalance

    def rebalance(slots: Slots, in_flight: int) -> None:
        try:
            original(slots, in_flight)
        except Paused:
            met.set()
            raise

    def slowly(note: Notification) -> None:
        if note.kind == kind:
            received.set()
            met.wait(20)

    monkeypatch.setattr(Slots, "rebalance", rebalance)
    world.answer(slowly)
    world.make_due(watch)
    worker = syncing(watch.pk)
    assert received.wait(20)
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


def test_first_pause_is_kept_and_both_users_are_logged(db) -> None:
    anna, ben = (User.objects.create_superuser(name, password="x") for name in ("anna", "ben"))
    assert current_pause() is None
    pause_syncing(Actor.of_user(anna))
    assert pause_syncing(Actor.of_user(ben)).paused_by == "anna"
    assert resume_syncing(Actor.of_user(ben))
    assert not resume_syncing(Actor.of_user(anna))
    assert current_pause() is None
    assert list(by_users().values_list("actor", "message")) == [
        ("anna", "Paused all syncing"),
        ("ben", "Resumed all syncing"),
    ]


@pytest.mark.django_db(transaction=True)
def test_concurrent_pauses_and_resumes() -> None:
    first, second = in_threads(*[pause] * 2)
    assert isinstance(first, SyncPause)
    assert isinstance(second, SyncPause)
    assert SyncPause.objects.count() == 1
    assert sorted(map(bool, in_threads(*[resume] * 2))) == [False, True]


def test_pausing_needs_permission(world: World) -> None:
    clerk = User.objects.create_user("norbert", password="x", is_staff=True)
    for actor in (Actor.of_app(world.app), Actor.of_user(clerk)):
        for service in (pause_syncing, resume_syncing):
            with pytest.raises(PermissionDenied):
                service(actor)


# --- One watch -----------------------------------------------------------------------------------------------------------


def rows_of(watch: AppRepository) -> AppRepositoryQuerySet:
    return AppRepository.objects.filter(pk=watch.pk)


def test_paused_watch_waits_while_others_of_its_app_are_synced(world: World, redis_client) -> None:
    repo, watch = world.watch(FILES)
    other_repo, other = world.watch(FILES, name="acme/other")
    world.settle()
    pause_watches(ME, rows_of(watch))
    for each in (repo, other_repo):
        each.commit({"new.txt": b"new"})
    run = resync_single(ME, watch)
    before, git_requests = len(world.requests()), len(world.git.server.requests)
    redis_client.flushall()
    sweep()
    assert redis_client.lrange("rq:queue:default", 0, -1) == [other.job_id.encode()]
    jobs.sync_watch(watch.pk)
    jobs.sync_watch(other.pk)
    assert {record.run_id for record in world.requests()[before:]} == {other.runs.first().run_id}
    assert all("other" in request for request in map(str, world.git.server.requests[git_requests:]))
    run.refresh_from_db()
    assert run.outcome == ""
    resume_watches(ME, rows_of(watch))
    assert watch.job_id.encode() in redis_client.lrange("rq:queue:default", 0, -1)
    world.settle()
    run.refresh_from_db()
    assert run.outcome == Outcome.SUCCEEDED
    for each in ((repo, watch), (other_repo, other)):
        assert_promise_kept(world, *each)


def test_run_of_a_paused_watch_continues_after_the_resume(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.answer(at_notification(5, lambda: pause_watches(ME, rows_of(watch))))
    world.sync(watch)
    assert len(world.requests()) == 5
    assert (watch.status, watch.lease_until, watch.retry_count) == (Status.PENDING, None, 0)
    assert [run.outcome for run in world.runs(watch)] == [""]
    resume_watches(ME, rows_of(watch))
    jobs.sync_watch(watch.pk)
    assert sent(world) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)


def test_repository_watched_anew_is_not_paused(world: World) -> None:
    repo, watch = world.watch(FILES)
    pause_watches(ME, rows_of(watch))
    unwatch_repository(ME, watch)
    world.watch_url(repo)
    watch.refresh_from_db()
    assert not watch.is_paused


def test_pausing_a_watch_takes_the_permission_and_is_logged_once(world: World) -> None:
    _repo, watch = world.watch(FILES)
    user = User.objects.create_user("olga", is_staff=True)
    for act in (pause_watches, resume_watches):
        with pytest.raises(PermissionDenied):
            act(Actor.of_user(user), rows_of(watch))
    user = User.objects.create_superuser("root")
    assert pause_watches(Actor.of_user(user), rows_of(watch)) == [watch]
    assert pause_watches(Actor.of_user(user), rows_of(watch)) == []
    watch.refresh_from_db()
    assert (watch.is_paused, watch.paused_by) == (True, "root")
    assert resume_watches(Actor.of_user(user), rows_of(watch)) == [watch]
    assert messages(by_users()) == ["Paused", "Resumed"]
