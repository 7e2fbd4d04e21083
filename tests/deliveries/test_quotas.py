"""Quotas of files and bytes: a sync that would exceed them fails, and the app keeps what it has."""

import threading

import pytest
from django.db import connection, transaction

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Outcome, RootCause, Status
from deliveries_app.planning import quota
from deliveries_app.planning.plan import Plan, PlanRefused
from deliveries_app.services import resync_single, unwatch_repository
from deliveries_app.sync.sender import Sender
from repositories_app.git.exceptions import Interrupted
from tests.support.world import World


def limit(world: World, **quotas: int | None) -> None:
    App.objects.filter(pk=world.app.pk).update(**quotas)


def refused(world: World, watch: AppRepository) -> str:
    """Sync the watch, check that its quota refused it and nothing was sent, and return the message."""
    sent, held = len(world.requests()), world.copy(watch)
    world.sync(watch)
    assert (watch.status, watch.root_cause, watch.last_error_cause) == (Status.FAILED, RootCause.QUOTA, "quota")
    assert (len(world.requests()), world.copy(watch)) == (sent, held)
    return watch.last_error


def test_first_sync_with_too_many_files_fails(world: World) -> None:
    limit(world, max_files=2)
    _, watch = world.watch({"a": b"1", "b": b"2", "c": b"3"})
    message = refused(world, watch)
    assert message.startswith("With this commit, the app's repositories would have 3 files. Its quota is 2.")
    assert "Nothing was sent or deleted." in message
    [run] = world.runs(watch)
    assert (run.outcome, run.error) == (Outcome.FAILED, message)
    limit(world, max_files=3)
    world.sync(watch)
    assert watch.status == Status.SYNCED
    assert set(world.copy(watch)) == {"a", "b", "c"}


def test_bytes_of_all_repositories_count(world: World) -> None:
    limit(world, max_bytes=2_500)
    _, first = world.watch({"a": b"x" * 1_000})
    repo, second = world.watch({"b": b"x" * 1_000}, name="acme/other")
    world.settle()
    repo.commit({"c": b"x" * 501})
    world.check()
    assert "would have 2.5 kB. Its quota is 2.5 kB." in refused(world, second)
    repo.commit({"c": b"x" * 500})
    world.sync(second)
    assert (second.status, set(world.copy(second))) == (Status.SYNCED, {"b", "c"})
    assert world.copy(first)


def test_nothing_is_deleted_and_a_smaller_commit_is_sent(world: World) -> None:
    repo, watch = world.watch({"a": b"1", "b": b"2", "c": b"3"})
    world.settle()
    limit(world, max_files=1)
    repo.commit({"d": b"4", "a": None, "e": b"5"})
    refused(world, watch)
    repo.force_push({"b": b"2 changed", "c": b"3", "d": b"4"})
    world.sync(watch)
    assert watch.status == Status.SYNCED
    assert set(world.copy(watch)) == {"b", "c", "d"}


def test_resync_beyond_a_lowered_quota_is_sent(world: World) -> None:
    _, watch = world.watch({"a": b"1", "b": b"2"})
    world.settle()
    limit(world, max_files=1)
    resync_single(Actor.command(), watch)
    world.sync(watch)
    assert watch.status == Status.SYNCED
    assert len(world.requests("create")) == 4


def test_watching_again_does_not_bring_its_room_back(world: World) -> None:
    limit(world, max_files=2)
    repo, first = world.watch({"a": b"1", "b": b"2"})
    world.settle()
    unwatch_repository(Actor.command(), first)
    _, second = world.watch({"c": b"1", "d": b"2"}, name="acme/other")
    world.sync(second)
    assert second.status == Status.SYNCED
    again = world.watch_url(repo)
    assert again.pk == first.pk
    refused(world, again)


def test_excluded_files_do_not_count(world: World) -> None:
    limit(world, max_files=1)
    _, watch = world.watch({"a": b"1", ".docoraignore": b"*.log\n", "x.log": b"x", "y.log": b"y"})
    assert "would have 2 files" in refused(world, watch)
    AppRepository.objects.filter(pk=watch.pk).update(exclude_patterns=".docoraignore")
    world.sync(watch)
    assert (watch.status, set(world.copy(watch))) == (Status.SYNCED, {"a"})


def test_change_of_a_file_is_planned_from_the_change(world: World) -> None:
    """A quota costs nothing unless the tree grows."""
    limit(world, max_files=10)
    repo, watch = world.watch({"a": b"1", "b": b"2"})
    world.settle()
    repo.commit({"a": b"9"})
    before = watch.base_commit
    world.settle()
    watch.refresh_from_db()
    assert watch.base_commit == repo.head != before
    assert (watch.tree_files, watch.tree_bytes) == (2, 2)


def test_size_that_does_not_grow_is_not_compared(watches) -> None:
    """The app already has more than its lowered quota. An empty file is added."""
    watch = watches[0]
    App.objects.filter(pk=watch.app_id).update(max_bytes=1)
    watch.app.refresh_from_db()
    assert quota.require_room(watch, Plan(tree_files=watch.tree_files + 1, tree_bytes=watch.tree_bytes))


def test_room_is_taken_before_anything_is_announced(world: World, monkeypatch) -> None:
    """Another sync of the app may look at any moment after this one has compared."""
    limit(world, max_files=2)
    _, watch = world.watch({"a": b"1", "b": b"2"})
    seen = []
    send = Sender.send

    def look_and_send(sender: Sender, plan: Plan) -> None:
        seen.append((AppRepository.objects.get().tree_files, watch.deliveries.count()))
        send(sender, plan)

    monkeypatch.setattr(Sender, "send", look_and_send)
    world.sync(watch)
    assert (seen, watch.status) == ([(2, 0)], Status.SYNCED)


def test_growth_counts_once_although_the_sync_stops_before_it_announces_anything(world: World, monkeypatch) -> None:
    """The totals already include the change then, so it must not be planned from the base."""

    def stop(*_: object) -> None:
        raise Interrupted

    limit(world, max_files=10)
    repo, watch = world.watch({"a": b"1"})
    world.settle()
    repo.commit({"b": b"2"})
    with monkeypatch.context() as patched:
        patched.setattr(Sender, "send", stop)
        world.sync(watch)
    assert (watch.tree_files, watch.base_commit) == (2, "")
    world.sync(watch)
    assert (watch.status, watch.tree_files, watch.tree_bytes) == (Status.SYNCED, 2, 2)


@pytest.mark.django_db(transaction=True)
def test_two_syncs_do_not_use_the_same_room(watches) -> None:
    """The second one waits for the first one's transaction, and then sees what it reserved."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    app = watches[0].app
    own = list(AppRepository.objects.filter(app=app).select_related("app"))
    AppRepository.objects.filter(app=app).update(tree_files=0, tree_bytes=0)
    App.objects.filter(pk=app.pk).update(max_files=10)
    for watch in own:
        watch.refresh_from_db()
    has_room, outcomes = threading.Event(), []

    def second() -> None:
        has_room.wait(10)
        try:
            with transaction.atomic():
                outcomes.append(quota.require_room(own[1], Plan(tree_files=6)))
        except PlanRefused as error:
            outcomes.append(str(error))
        finally:
            connection.close()

    thread = threading.Thread(target=second)
    thread.start()
    with transaction.atomic():
        assert quota.require_room(own[0], Plan(tree_files=6))
        has_room.set()
        thread.join(0.5)
        assert outcomes == []
        AppRepository.objects.filter(pk=own[0].pk).update(tree_files=6)
    thread.join(10)
    assert "would have 12 files. Its quota is 10." in outcomes[0]
