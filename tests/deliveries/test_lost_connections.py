"""The connection is lost after a request was sent: the app may still be processing it (engine.md §4)."""

import pytest
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import resync_single, unwatch_repository
from deliveries_app.sweep.cleanup import remove_ended
from tests.support.histories import assert_held_back, assert_promise_kept, seconds_until_next_sync
from tests.support.world import World


def lose_connection(world: World, path: str) -> None:
    """Close the connection of each request for this path without a response, as a proxy in front of a slow app may do."""
    world.answer(lambda note: Answer(close=True) if note.path == path else None)


@pytest.mark.parametrize("what", ["commit", "resync"])
def test_another_notification_waits_until_the_first_is_processed(world: World, what: str) -> None:
    """The app would store the content of the lost request after the newer one."""
    repo, watch = world.watch({"a.txt": b"v1", "b.txt": b"v1"})
    lose_connection(world, "a.txt")
    world.sync(watch)
    world.answer(None)
    if what == "commit":
        repo.commit({"a.txt": b"v2"})
    else:
        resync_single(Actor.command(), watch)
    assert_held_back(world, watch)
    AppRepository.objects.update(doubt_until=Now())
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_endpoint_that_stops_while_it_processes_a_request(world: World) -> None:
    """The request was sent over a kept connection. It is sent again when that is lost, but now no connection can be made."""
    world.app.max_in_flight = 1
    world.app.save()
    repo, watch = world.watch({"a.txt": b"v1", "b.txt": b"v1"})

    def stop(note: Notification) -> Answer | None:
        if note.path != "b.txt":
            return None
        world.receiver.stop()
        return Answer(close=True)

    world.answer(stop)
    watch = world.sync(watch)
    assert "connection refused" in watch.last_error
    world.answer(None)
    world.receiver.start()
    repo.commit({"b.txt": b"v2"})
    assert_held_back(world, watch)
    AppRepository.objects.update(doubt_until=Now())
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_same_notification_is_sent_again_at_once(world: World) -> None:
    repo, watch = world.watch({"a.txt": b"v1", "b.txt": b"v1"})
    lose_connection(world, "a.txt")
    watch = world.sync(watch)
    assert (watch.files_failing, watch.retry_count) == (1, 1)
    assert seconds_until_next_sync(watch) < 20
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    first, second = (record.sequence for record in world.requests() if record.path == "a.txt")
    assert first == second


def test_lost_delete_holds_back_other_files(world: World) -> None:
    """Where names ignore case, the late delete of README.md would remove the new readme.md for good."""
    repo, watch = world.watch({"README.md": b"read me", "b.txt": b"v1"})
    world.sync(watch)
    repo.commit({"README.md": None, "readme.md": b"read me"})
    lose_connection(world, "README.md")
    world.sync(watch)
    world.answer(None)
    assert_held_back(world, watch)
    AppRepository.objects.update(doubt_until=Now())
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_run_that_is_superseded_meanwhile_leaves_doubt(world: World) -> None:
    """Its failures are not recorded, but the app may still be processing the request."""
    repo, watch = world.watch({"a.txt": b"v1"})

    def supersede(_note: object) -> Answer:
        resync_single(Actor.command(), watch)
        return Answer(close=True)

    world.answer(supersede)
    world.sync(watch)
    world.answer(None)
    repo.commit({"a.txt": b"v2"})
    assert_held_back(world, watch)
    AppRepository.objects.update(doubt_until=Now())
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize("answer", [Answer(close=True), Answer(504)], ids=["lost", "gateway timeout"])
def test_sync_completed_that_may_be_under_way_holds_back_the_next_commit(world: World, answer: Answer) -> None:
    """The app would handle the newer notice first, and then compare its files with the older one."""
    world.app.send_sync_completed = True
    world.app.save()
    repo, watch = world.watch({"a.txt": b"v1"})
    world.answer(lambda note: answer if note.kind == "sync_completed" else None)
    world.sync(watch)
    world.answer(None)
    repo.commit({"a.txt": b"v2"})
    assert_held_back(world, watch)
    AppRepository.objects.update(doubt_until=Now())
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_removal_waits_for_the_request(world: World) -> None:
    """A repository that is watched again has a new id, and would send its files while the app processes the old request."""
    _, watch = world.watch({"a.txt": b"v1"})
    lose_connection(world, "a.txt")
    world.sync(watch)
    unwatch_repository(Actor.command(), watch)
    assert remove_ended() == 0
    AppRepository.objects.update(doubt_until=Now())
    assert remove_ended() == 1
