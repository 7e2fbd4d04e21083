"""The lease of a process that died on this machine ends at once; what it was sending may still arrive (`engine.md` §4)."""

import os
import signal
from datetime import timedelta

import pytest
from django.db.models.functions import Now
from redis import Redis
from rq.job import Job

from deliveries_app import scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Notice, NoticeKind, root_causes
from deliveries_app.services import resync_single, retry_single, unwatch_repository
from deliveries_app.sweep.cleanup import remove_ended
from deliveries_app.sync import dead_processes, outcomes
from deliveries_app.sync.claim import claim
from deliveries_app.sync.dead_processes import end_dead_leases
from docora.db.clock import from_now
from repositories_app.models import Repository
from tests.support.histories import assert_held_back, assert_promise_kept, given_up, refusing, seconds_until_next_sync
from tests.support.processes import forked, reap
from tests.support.receiver import wait_for
from tests.support.syncing import sync
from tests.support.world import World

FILES = {f"{number}.txt": b"content %d" % number for number in range(5)}


def claimed_by_the_dead(watch: AppRepository) -> AppRepository:
    """Claim the watch in a process that is then killed."""
    child = forked(lambda: claim(watch.pk) and os.kill(os.getpid(), signal.SIGKILL))
    assert os.WTERMSIG(reap(child)) == signal.SIGKILL
    watch.refresh_from_db()
    return watch


def kill_while_sending(world: World, watch: AppRepository) -> None:
    """Kill a process at its first notification, which the client has then stored."""
    child = 0
    world.answer(lambda note: os.kill(child, signal.SIGKILL))
    world.make_due(watch)
    child = forked(lambda: sync(watch.pk))
    assert os.WTERMSIG(reap(child)) == signal.SIGKILL
    wait_for(lambda: sum(world.receiver._in_flight.values()) == 0)
    world.answer(None)


def killed_while_sending(world: World, watch: AppRepository) -> AppRepository:
    """Kill a process at its first notification, and end its lease."""
    kill_while_sending(world, watch)
    assert end_dead_leases() == 1
    watch.refresh_from_db()
    return watch


def let_lease_of_another_machine_end(watch: AppRepository, seconds: float = 0) -> None:
    """Let the lease expire after this many seconds."""
    until = Now() + timedelta(seconds=seconds)
    assert AppRepository.objects.filter(pk=watch.pk).update(lease_until=until, lease_process="") == 1
    assert end_dead_leases() == 0


def test_watch_of_a_dead_process_is_free_and_pending(world: World) -> None:
    _, watch = world.watch()
    assert claimed_by_the_dead(watch).status == "scanning"
    assert claim(watch.pk) is None
    assert end_dead_leases() == 1
    watch.refresh_from_db()
    assert (watch.status, AppRepository.objects.due().free().filter(pk=watch.pk).exists()) == ("pending_snapshot", True)
    assert end_dead_leases() == 0
    assert claim(watch.pk) is not None


def test_watch_of_a_dead_process_is_enqueued_again_at_once(world: World, redis_client: Redis) -> None:
    """In Redis, the worker is still performing its job."""
    _, watch = world.watch()
    owner = claimed_by_the_dead(watch).lease_owner
    redis_client.hset(Job.key_for(watch.job_id), mapping={"status": "started", "worker_name": owner})
    redis_client.delete("rq:queue:high")
    assert scheduling.enqueue_due() == 0
    assert end_dead_leases() == 1
    assert scheduling.enqueue_due() == 1


def test_living_and_unknown_processes_keep_their_leases(world: World) -> None:
    _, watch = world.watch()
    claimed_by_the_dead(watch)
    elsewhere = watch.lease_process.replace(" ", "-elsewhere ", 1)
    for process in ("", elsewhere):
        AppRepository.objects.filter(pk=watch.pk).update(lease_process=process)
        assert end_dead_leases() == 0
    _, held = world.watch(name="acme/held")
    assert claim(held.pk) is not None
    assert end_dead_leases() == 0
    assert AppRepository.objects.leased().count() == 2


def test_claim_made_while_the_dead_are_looked_for_is_kept(world: World, monkeypatch) -> None:
    _, watch = world.watch()
    claimed_by_the_dead(watch)

    def claim_meanwhile(_process: str) -> bool:
        AppRepository.objects.update(lease_until=Now())
        assert claim(watch.pk) is not None
        return True

    monkeypatch.setattr(dead_processes, "has_ended", claim_meanwhile)
    assert end_dead_leases() == 0
    watch.refresh_from_db()
    assert (watch.status, AppRepository.objects.leased().count()) == ("scanning", 1)


def test_watch_whose_lease_expired_is_not_shown_as_syncing(world: World) -> None:
    _, watch = world.watch()
    claimed_by_the_dead(watch)
    AppRepository.objects.filter(pk=watch.pk).update(lease_until=Now() - timedelta(seconds=1), lease_process="")
    assert end_dead_leases() == 0
    watch.refresh_from_db()
    assert (watch.status, watch.doubt_until) == ("pending_snapshot", None)


def test_notice_of_a_dead_process_may_still_arrive(world: World) -> None:
    """The app would handle the newer `sync_completed` first and then the older one."""
    world.app.send_sync_completed = True
    world.app.save()
    repo, watch = world.watch(FILES)
    child = 0
    world.answer(lambda note: os.kill(child, signal.SIGKILL) if note.kind == "sync_completed" else None)
    world.make_due(watch)
    child = forked(lambda: sync(watch.pk))
    assert os.WTERMSIG(reap(child)) == signal.SIGKILL
    world.answer(None)
    assert end_dead_leases() == 1
    repo.commit({"new.txt": b"x"})
    assert_held_back(world, watch)
    AppRepository.objects.filter(pk=watch.pk).update(doubt_until=Now())
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_process_that_sent_nothing_leaves_no_doubt(world: World) -> None:
    repo, watch = world.watch(FILES)
    _, other = world.watch(name="acme/other")
    for whose, sequence in ((other, 1), (watch, None)):  # another watch's notice, and one that was not sent
        Notice.objects.create(
            watch=whose, kind=NoticeKind.SYNC_FAILED, fields="{}", generation=1, sequence=sequence, due_at=from_now(600)
        )
    claimed_by_the_dead(watch)
    assert end_dead_leases() == 1
    world.sync(watch)
    assert watch.doubt_until is None
    assert_promise_kept(world, repo, watch)


def test_same_files_are_sent_again_at_once(world: World) -> None:
    repo, watch = world.watch(FILES)
    killed_while_sending(world, watch)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    sequences = {record.path: record.sequence for record in world.requests()}
    assert all(record.sequence == sequences[record.path] for record in world.requests())


def test_delete_that_may_still_be_processed_holds_back_other_files(world: World) -> None:
    """Where names ignore case, the late delete of README.md would remove the new readme.md for good."""
    repo, watch = world.watch({"README.md": b"read me", **FILES})
    world.settle()
    repo.commit({"README.md": None, "readme.md": b"read me", "other.txt": b"new"})
    world.check()
    sent = len(world.requests())
    killed_while_sending(world, watch)
    for _ in range(2):
        world.sync(watch)
        assert (watch.status, watch.files_failing, watch.retry_count) == ("pending_snapshot", 0, 0)
        assert 20 < seconds_until_next_sync(watch) <= 30
    AppRepository.objects.update(doubt_until=Now())
    world.sync(watch)
    requests = [(record.kind, record.path) for record in world.requests()[sent:]]
    assert requests[:2] == [("delete", "README.md"), ("delete", "README.md")]
    assert sorted(requests[2:]) == [("create", "other.txt"), ("create", "readme.md")]  # both were in flight
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize("what", ["commit", "resync", "patterns"])
def test_different_notification_waits_until_old_requests_are_processed(world: World, what: str) -> None:
    """A slow client could store the dead worker's content after the new one."""
    repo, watch = world.watch(FILES)
    killed_while_sending(world, watch)
    if what == "commit":
        repo.commit({"0.txt": b"changed", "1.txt": None})
    elif what == "resync":
        resync_single(Actor.command(), watch)
    else:
        AppRepository.objects.filter(pk=watch.pk).update(ignore_patterns="0.txt")
    assert_held_back(world, watch)
    assert watch.status == "pending_snapshot"
    AppRepository.objects.filter(pk=watch.pk).update(doubt_until=Now())
    world.sync(watch)
    assert watch.status == "synced"
    if what != "patterns":
        assert_promise_kept(world, repo, watch)
    else:
        assert set(world.copy(watch)) == {*FILES} - {"0.txt"}


@pytest.mark.parametrize(("lease_seconds", "wait"), [(6, 25), (30, 5), (60, -20)])
def test_short_lease_ends_before_old_requests_are_certainly_processed(
    world: World, settings, lease_seconds: float, wait: float
) -> None:
    """The dead process may have sent something until its next extension was due, and the app has 30 seconds for it."""
    settings.LEASE_SECONDS = lease_seconds
    repo, watch = world.watch(FILES)
    kill_while_sending(world, watch)
    let_lease_of_another_machine_end(watch)
    repo.commit({"0.txt": b"changed"})
    sent = len(world.requests())
    world.sync(watch)
    if wait > 0:
        assert (len(world.requests()), watch.status) == (sent, "pending_snapshot")
        assert wait - 3 < seconds_until_next_sync(watch) <= wait
        AppRepository.objects.filter(pk=watch.pk).update(doubt_until=Now())
        world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_same_files_are_sent_again_after_a_short_lease(world: World, settings) -> None:
    settings.LEASE_SECONDS = 6
    repo, watch = world.watch(FILES)
    kill_while_sending(world, watch)
    let_lease_of_another_machine_end(watch)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_lease_far_in_the_future_does_not_prolong_the_doubt(world: World) -> None:
    repo, watch = world.watch(FILES)
    kill_while_sending(world, watch)
    let_lease_of_another_machine_end(watch, seconds=86_400)
    repo.commit({"0.txt": b"changed"})
    world.sync(watch)
    assert 25 < seconds_until_next_sync(watch) <= 30


def test_run_that_waits_keeps_its_failures_and_attempts(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 2
    repo, watch = world.watch(FILES)
    world.answer(refusing("3.txt"))
    watch = world.sync(watch)
    killed_while_sending(world, watch)
    repo.commit({"0.txt": b"changed"})
    for _ in range(3):
        watch = world.sync(watch)
    assert (watch.status, watch.retry_count, watch.files_failing) == ("pending_snapshot", 1, 1)


def test_unwatched_while_the_app_may_still_be_processing_a_request(world: World) -> None:
    """A new watch would know nothing of what the dead process sent. The watch that is revived waits."""
    repo, watch = world.watch({"a.txt": b"v1"})
    killed_while_sending(world, watch)
    unwatch_repository(Actor.command(), watch)
    assert remove_ended() == 0
    repo.commit({"a.txt": b"v2"})
    again = world.watch_url(repo)
    assert again.pk == watch.pk
    sent = len(world.requests())
    world.sync(again)
    assert len(world.requests()) == sent
    unwatch_repository(Actor.command(), watch)
    AppRepository.objects.update(doubt_until=Now(), lease_until=None)
    assert remove_ended() == 1


def test_resync_before_a_death_is_still_the_circuits_probe(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    world.make_due(watch)
    claimed_by_the_dead(watch)
    resync_single(Actor.command(), watch)
    assert end_dead_leases() == 1
    Repository.objects.update(circuit_open_until=from_now(600), consecutive_failures=9, last_failure_at=Now())
    sent = len(world.requests())
    world.sync(watch)
    assert len(world.requests()) == sent + 1
    assert_promise_kept(world, repo, watch)


def test_retry_before_a_death_does_not_hide_the_next_retry(world: World, settings) -> None:
    """The attempt after the death fails for good, but the retry that was requested during it has not been tried."""
    settings.MAX_RETRY_ATTEMPTS = 2
    _, watch = world.watch(FILES)
    given_up(world, watch)
    world.make_due(watch)
    claimed_by_the_dead(watch)
    retry_single(Actor.command(), watch)
    assert end_dead_leases() == 1
    taken = claim(watch.pk)
    assert taken is not None
    retry_single(Actor.command(), watch)
    outcomes.failed(taken, root_causes.internal("No retry helps."), permanent=True)
    assert world.runs(watch)[0].outcome == ""
