"""The bar tells the truth: live, after a flush, and at its end (`engine.md` §10)."""

import threading
from collections.abc import Callable

import pytest
from django.db import connections
from redis import Redis

from deliveries_app import recorder, tallies
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, SyncRun
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import resync_many
from deliveries_app.tallies import Tally
from docora import progress
from tests.support.git import Entry
from tests.support.histories import kill_worker, refusing
from tests.support.processes import in_threads
from tests.support.valkey import ValkeyServer
from tests.support.world import World


@pytest.fixture(autouse=True)
def _every_batch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at a client that takes longer for a batch than Redis waits for news of it."""
    monkeypatch.setattr(recorder, "TELL_SECONDS", 0.0)


def files(count: int) -> dict[str, bytes]:
    return {f"{number:03}.txt": b"content %d" % number for number in range(count)}


def watched(world: World, *counts: int) -> list[AppRepository]:
    """Synced pairs with so many files each."""
    pairs = [world.watch(files(count), name=f"acme/widgets-{number}")[1] for number, count in enumerate(counts)]
    world.settle()
    return pairs


def everything() -> BulkOperation:
    return resync_many(Actor.command(), AppRepository.objects.all())


def tally_of(pair: AppRepository) -> Tally:
    run = SyncRun.objects.filter(pair=pair).latest("pk")
    return tallies.of_runs([run])[run.pk]


def watching(tally: Callable[[], Tally], seen: list[Tally]) -> Callable[[Notification], Answer | None]:
    """Looks at the bar whenever the client is told something; one look after the other."""
    lock = threading.Lock()

    def hook(note: Notification) -> None:
        try:
            with lock:
                seen.append(tally())
        finally:
            connections.close_all()

    return hook


def assert_truthful(seen: list[Tally]) -> None:
    assert [tally.files_done for tally in seen] == sorted(tally.files_done for tally in seen)
    assert [tally.percent for tally in seen] == sorted(tally.percent for tally in seen)
    assert all(tally.percent < 100 for tally in seen if not tally.finished)
    assert all(tally.files_done <= tally.files_total for tally in seen)
    assert all(tally.bytes_done <= tally.bytes_total for tally in seen)


def test_the_total_is_set_at_the_plan_and_the_bar_grows_with_each_recorded_batch(world: World, settings) -> None:
    settings.RECORD_BATCH = 10
    _, pair = world.watch(files(60))
    seen: list[Tally] = []
    world.answer(watching(lambda: tally_of(pair), seen))
    world.sync(pair)
    assert_truthful(seen)
    assert {tally.files_total for tally in seen} == {60}
    assert {tally.bytes_total for tally in seen} == {sum(map(len, files(60).values()))}
    assert len({tally.files_done for tally in seen}) >= 5
    assert seen[-1].files_per_second > 0
    end = tally_of(pair)
    assert (end.files_done, end.percent, end.finished, end.seconds_left) == (60, 100, True, None)


@pytest.mark.parametrize("flushed", [False, True])
def test_the_bar_is_live_from_redis_and_from_the_rows_when_redis_lost_it(
    world: World, settings, redis_client: Redis, flushed: bool
) -> None:
    settings.RECORD_BATCH = 5
    pairs = watched(world, 30)
    operation = everything()
    seen: list[Tally] = []
    look = watching(lambda: tallies.of_operation(operation), seen)
    moments = [10, 20] if flushed else []

    def hook(note: Notification) -> None:
        if moments and len(seen) >= moments[0]:
            del moments[:1]
            redis_client.flushall()
        look(note)

    world.answer(hook)
    world.sync(pairs[0])
    assert_truthful(seen)
    assert {tally.files_total for tally in seen} == {30}
    assert seen[-1].files_done >= 15
    operation.refresh_from_db()
    assert tallies.of_operation(operation).percent == 100


def test_without_redis_the_run_goes_on_and_the_bar_is_read_from_the_rows(
    world: World, settings, valkey_server: ValkeyServer
) -> None:
    settings.RECORD_BATCH = 5
    (pair,) = watched(world, 30)
    operation = everything()
    seen: list[Tally] = []
    look = watching(lambda: tallies.of_operation(operation), seen)

    def hook(note: Notification) -> None:
        if len(seen) >= 8:
            valkey_server.stop()
        look(note)

    world.answer(hook)
    world.sync(pair)
    assert not valkey_server.running
    assert_truthful(seen)
    assert seen[-1].files_done >= 15
    assert tally_of(pair).percent == 100


def test_a_bar_does_not_go_back_when_an_attempt_fails_and_is_full_only_with_the_last_file(
    world: World, settings
) -> None:
    settings.RECORD_BATCH = 5
    pairs = watched(world, 20, 10)
    operation = everything()
    seen: list[Tally] = []
    look = watching(lambda: tallies.of_operation(operation), seen)
    poison = refusing("003.txt", "007.txt")

    def hook(note: Notification) -> Answer | None:
        look(note)
        return poison(note)

    world.answer(hook)
    for pair in pairs:
        world.sync(pair)
    assert tallies.of_operation(operation).files_done == 26
    world.answer(look)
    for pair in pairs:
        world.sync(pair)
    assert_truthful(seen)
    operation.refresh_from_db()
    end = tallies.of_operation(operation)
    assert (end.files_done, end.files_total, end.percent, end.succeeded) == (30, 30, 100, 2)


def test_a_bar_does_not_go_back_when_a_worker_is_killed_and_counts_no_file_twice(world: World, settings) -> None:
    settings.RECORD_BATCH = 5
    _, pair = world.watch(files(40))
    kill_worker(world, pair, lambda note: note.path >= "020.txt")
    before = tally_of(pair)
    assert 10 <= before.files_done <= 25
    seen: list[Tally] = [before]
    world.answer(watching(lambda: tally_of(pair), seen))
    world.sync(pair)
    assert_truthful(seen)
    end = tally_of(pair)
    assert (end.files_done, end.files_total, end.percent) == (40, 40, 100)


def test_several_workers_on_one_operation_lose_no_file_and_show_none_twice(world: World, settings) -> None:
    settings.RECORD_BATCH = 3
    pairs = []
    for number in range(3):
        app = world.add_app(f"App {number}", max_in_flight=2)
        pairs.append(world.watch(files(40), name=f"acme/widgets-{number}", app=app)[1])
    world.settle()
    operation = everything()
    seen: list[Tally] = []
    world.answer(watching(lambda: tallies.of_operation(operation), seen))
    in_threads(*[lambda pair=pair: world.sync(pair) for pair in pairs])
    assert_truthful(seen)
    operation.refresh_from_db()
    end = tallies.of_operation(operation)
    assert (end.files_done, end.files_total, end.succeeded, end.percent) == (120, 120, 3, 100)


def test_a_repository_that_needs_nothing_is_full_at_once(world: World) -> None:
    (pair,) = watched(world, 2)
    operation = everything()
    world.sync(pair)
    operation.refresh_from_db()
    assert tallies.of_operation(operation).percent == 100
    _, empty = world.watch({"link": Entry.symlink("x")}, name="acme/none")
    world.sync(empty)
    assert tally_of(empty).percent == 100


def test_counters_that_were_lost_are_not_counted_on_from_nothing(redis_client: Redis) -> None:
    progress.start("run_1", {"files_total": 10, "files_done": 4})
    assert progress.advance("run_1", files_done=2)
    assert progress.read(["run_1", "run_2"]) == [{"files_total": 10, "files_done": 6}, None]
    redis_client.flushall()
    assert not progress.advance("run_1", files_done=2)
    assert progress.read(["run_1"]) == [None]
    progress.finish("run_1")


def test_that_redis_counts_nothing_is_logged_once_a_minute(
    valkey_server: ValkeyServer, redis_client: Redis, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr(progress, "_told_at", None)
    valkey_server.stop()
    for _ in range(5):
        progress.start("run_1", {"files_total": 10})
        assert not progress.advance("run_1", files_done=1)
    assert [record.message for record in caplog.records] == ["progress_not_counted"]


def test_an_operation_waiting_for_its_first_file_shows_nothing_done_and_no_time_left(world: World) -> None:
    watched(world, 3)
    tally = tallies.of_operation(everything())
    assert (tally.percent, tally.files_done, tally.files_total) == (0, 0, 3)
    assert tally.seconds_left is None


def test_what_a_worker_says_twice_or_late_is_counted_once_and_beside_the_others(world: World) -> None:
    """Adding to a sum that another worker has just set from the rows lost a batch, or counted it twice."""
    watched(world, 10, 10)
    operation = everything()
    first, second = SyncRun.objects.filter(operation=operation).order_by("pk")
    tallies.of_operation(operation)
    for done, shown in ((4, 4), (4, 4), (7, 7)):
        first.files_done = done
        tallies.show_in_operation(first, operation)
        assert tallies.of_operation(operation).files_done == shown
    second.files_done = 3
    tallies.show_in_operation(second, operation)
    assert tallies.of_operation(operation).files_done == 10
    first.outcome = "succeeded"
    for _ in range(2):
        tallies.show_in_operation(first, operation)
    tally = tallies.of_operation(operation)
    assert (tally.completed, tally.succeeded, tally.files_total) == (1, 1, 20)
