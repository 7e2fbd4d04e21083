"""Requests to sync are never lost, whenever they arrive (`engine.md` §6)."""

from django.db.models.functions import Now

from deliveries_app import jobs
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Status
from deliveries_app.scheduling import request_sync
from deliveries_app.services import resync_single
from deliveries_app.sync import attempt
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept, at_notification
from tests.support.world import World


def push(repo: Repo, watch: AppRepository, path: str = "new.txt") -> None:
    """Push a commit and request a sync, as a push hook does."""
    repo.commit({path: b"new"})
    request_sync(AppRepository.objects.filter(pk=watch.pk))


def is_due(watch: AppRepository) -> bool:
    return AppRepository.objects.due().free().filter(pk=watch.pk).exists()


def test_push_during_a_run_survives_its_end(world: World) -> None:
    repo, watch = world.watch({"a.txt": b"1", "b.txt": b"2"})
    world.answer(at_notification(1, lambda: push(repo, watch)))
    world.sync(watch)
    assert watch.status == Status.SYNCED
    assert is_due(watch)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert not is_due(watch)
    assert watch.next_sync_at is None


def test_push_between_claim_and_plan(world: World, monkeypatch) -> None:
    repo, watch = world.watch()
    original = attempt.plan_to

    def push_and_plan(*arguments):
        push(repo, watch)
        monkeypatch.setattr(attempt, "plan_to", original)
        return original(*arguments)

    monkeypatch.setattr(attempt, "plan_to", push_and_plan)
    world.sync(watch)
    assert is_due(watch)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_job_repeats_after_a_push_and_after_a_resync(world: World) -> None:
    repo, watch = world.watch({f"{number}.txt": b"x" for number in range(30)})
    world.answer(at_notification(2, lambda: push(repo, watch)))
    jobs.sync_watch(watch.pk)
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)
    sent = len(world.requests())
    resync_single(Actor.command(), watch)
    world.answer(at_notification(3, lambda: resync_single(Actor.command(), watch)))
    jobs.sync_watch(watch.pk)
    assert_promise_kept(world, repo, watch)
    assert len(world.requests()) - sent >= 31
    assert watch.resend_floor == 3


def test_several_requests_for_an_idle_watch_are_one_sync(world: World) -> None:
    repo, watch = world.watch()
    for _ in range(5):
        request_sync(AppRepository.objects.filter(pk=watch.pk))
    world.sync(watch)
    assert not is_due(watch)
    assert_promise_kept(world, repo, watch)


def test_change_without_a_hook_is_found_by_the_next_check(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    repo.commit({"later.txt": b"x"})
    AppRepository.objects.update(next_check_at=Now())
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)
