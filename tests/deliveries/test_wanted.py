"""A wish to sync is never lost, whenever it comes (`engine.md` §6)."""

from django.db.models.functions import Now

from deliveries_app import jobs
from deliveries_app.models import AppRepository, Status
from deliveries_app.services import request_sync
from deliveries_app.sync import attempt as sync_module
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept, at_notification
from tests.support.world import World


def push(repo: Repo, watch: AppRepository, path: str = "new.txt") -> None:
    """A push, and the hook that tells of it."""
    repo.commit({path: b"new"})
    request_sync(AppRepository.objects.filter(pk=watch.pk))


def is_due(watch: AppRepository) -> bool:
    return AppRepository.objects.due().free().filter(pk=watch.pk).exists()


def test_a_push_during_a_run_is_not_overwritten_by_the_end_of_the_run(world: World) -> None:
    repo, watch = world.watch({"a.txt": b"1", "b.txt": b"2"})
    world.answer(at_notification(1, lambda: push(repo, watch)))
    world.sync(watch)
    assert watch.status == Status.SYNCED
    assert is_due(watch)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert not is_due(watch)
    assert watch.next_sync_at is None


def test_a_push_after_the_claim_and_before_the_first_request_is_not_lost_either(world: World, monkeypatch) -> None:
    repo, watch = world.watch()
    original = sync_module.plan_to

    def plan(*arguments):
        push(repo, watch)
        monkeypatch.setattr(sync_module, "plan_to", original)
        return original(*arguments)

    monkeypatch.setattr(sync_module, "plan_to", plan)
    world.sync(watch)
    assert is_due(watch)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_the_job_goes_on_with_what_was_pushed_meanwhile_and_with_a_resync_that_superseded_it(world: World) -> None:
    from deliveries_app.actors import Actor
    from deliveries_app.services import resync_single

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


def test_many_wishes_for_an_idle_watch_are_one_sync(world: World) -> None:
    repo, watch = world.watch()
    for _ in range(5):
        request_sync(AppRepository.objects.filter(pk=watch.pk))
    world.sync(watch)
    assert not is_due(watch)
    assert_promise_kept(world, repo, watch)


def test_a_change_that_is_found_without_a_hook_arrives_with_the_next_check(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    repo.commit({"later.txt": b"x"})
    AppRepository.objects.update(next_check_at=Now())
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)
