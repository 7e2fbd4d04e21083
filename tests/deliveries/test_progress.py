"""The progress bar is right: live, after a flush, and at the end (`engine.md` §10)."""

import contextlib
import threading
from collections.abc import Callable

import pytest
from django.db import connections
from redis import Redis

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, Delivery, Outcome, RootCause, SyncRun
from deliveries_app.progress import activity, live, runs
from deliveries_app.progress.live import Progress
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import resync_many, retry_by_app
from deliveries_app.sync import recorder
from deliveries_app.sync.recorder import Recorder
from docora.redis import live_counters
from tests.support.git import Entry
from tests.support.histories import kill_worker, refusing
from tests.support.processes import in_threads
from tests.support.staff import fail, make_app, make_watch
from tests.support.valkey import ValkeyServer
from tests.support.world import World


@pytest.fixture(autouse=True)
def _report_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send every batch to Redis at once, as with a client so slow that updates are not combined."""
    monkeypatch.setattr(recorder, "PUBLISH_SECONDS", 0.0)


def files(count: int) -> dict[str, bytes]:
    return {f"{number:03}.txt": b"content %d" % number for number in range(count)}


def watched(world: World, *counts: int) -> list[AppRepository]:
    """Return synced watches with this many files each."""
    watches = [world.watch(files(count), name=f"acme/widgets-{number}")[1] for number, count in enumerate(counts)]
    world.settle()
    return watches


def everything() -> BulkOperation:
    return resync_many(Actor.command(), AppRepository.objects.all())


def progress_of(watch: AppRepository) -> Progress:
    run = SyncRun.objects.filter(watch=watch).latest("pk")
    return live.of_runs([run])[run.pk]


def recording(progress: Callable[[], Progress], seen: list[Progress]) -> Callable[[Notification], Answer | None]:
    """Return a hook that records the bar at each notification."""
    lock = threading.Lock()

    def hook(note: Notification) -> None:
        try:
            with lock:
                seen.append(progress())
        finally:
            connections.close_all()

    return hook


def assert_truthful(seen: list[Progress]) -> None:
    assert [progress.files_done for progress in seen] == sorted(progress.files_done for progress in seen)
    assert [progress.percent for progress in seen] == sorted(progress.percent for progress in seen)
    assert all(progress.percent < 100 for progress in seen if not progress.finished)
    assert all(progress.files_done <= progress.files_total for progress in seen)
    assert all(progress.bytes_done <= progress.bytes_total for progress in seen)


def test_bar_grows_with_each_recorded_batch(world: World, settings) -> None:
    settings.RECORD_BATCH = 10
    _, watch = world.watch(files(60))
    seen: list[Progress] = []
    world.answer(recording(lambda: progress_of(watch), seen))
    world.sync(watch)
    assert_truthful(seen)
    assert {progress.files_total for progress in seen} == {60}
    assert {progress.bytes_total for progress in seen} == {sum(map(len, files(60).values()))}
    assert len({progress.files_done for progress in seen}) >= 5
    end = progress_of(watch)
    assert (end.files_done, end.percent, end.finished) == (60, 100, True)


def test_bar_grows_while_files_are_adopted(world: World, settings, monkeypatch) -> None:
    """After an import, most files take no request."""
    settings.RECORD_BATCH = 10
    _, watch = world.watch(files(60))
    world.settle()
    Delivery.objects.update(source_key=None)
    AppRepository.objects.update(base_commit="", base_rules="")
    seen: list[Progress] = []
    commit = Recorder.commit

    def commit_and_look(recorder: Recorder, *arguments, **options) -> None:
        commit(recorder, *arguments, **options)
        seen.append(progress_of(watch))

    monkeypatch.setattr(Recorder, "commit", commit_and_look)
    sent = len(world.requests())
    world.sync(watch)
    assert len(world.requests()) == sent
    assert_truthful(seen)
    assert len({progress.files_done for progress in seen}) >= 5


@pytest.mark.parametrize("flushed", [False, True])
def test_bar_is_read_from_the_rows_after_a_flush(world: World, settings, redis_client: Redis, flushed: bool) -> None:
    settings.RECORD_BATCH = 5
    watches = watched(world, 30)
    operation = everything()
    seen: list[Progress] = []
    look = recording(lambda: live.of_operation(operation), seen)
    moments = [10, 20] if flushed else []

    def hook(note: Notification) -> None:
        if moments and len(seen) >= moments[0]:
            del moments[:1]
            redis_client.flushall()
        look(note)

    world.answer(hook)
    world.sync(watches[0])
    assert_truthful(seen)
    assert {progress.files_total for progress in seen} == {30}
    assert seen[-1].files_done >= 15
    operation.refresh_from_db()
    assert live.of_operation(operation).percent == 100


def test_progress_without_redis_is_read_from_the_rows(world: World, settings, valkey_server: ValkeyServer) -> None:
    settings.RECORD_BATCH = 5
    (watch,) = watched(world, 30)
    operation = everything()
    seen: list[Progress] = []
    look = recording(lambda: live.of_operation(operation), seen)

    def hook(note: Notification) -> None:
        if len(seen) >= 8:
            valkey_server.stop()
        look(note)

    world.answer(hook)
    world.sync(watch)
    assert not valkey_server.running
    assert_truthful(seen)
    assert seen[-1].files_done >= 15
    assert progress_of(watch).percent == 100


def test_bar_is_right_again_after_redis_has_refused_writes(world: World, settings, valkey_server: ValkeyServer) -> None:
    """Redis still has the counters from before then, and works again before the run ends."""
    settings.RECORD_BATCH = 5
    _, watch = world.watch(files(60))
    seen: list[Progress] = []
    refusal = contextlib.ExitStack()
    look = recording(lambda: progress_of(watch), seen)

    def hook(note: Notification) -> None:
        if note.path == "015.txt":
            refusal.enter_context(valkey_server.refusing_writes())
        elif note.path == "040.txt":
            refusal.close()
        look(note)

    world.answer(hook)
    with refusal:
        world.sync(watch)
    assert_truthful(seen)
    assert seen[-1].files_done >= 45


def test_bar_of_a_failed_attempt_shows_what_redis_did_not_store(
    world: World, settings, valkey_server: ValkeyServer
) -> None:
    settings.RECORD_BATCH = 5
    _, watch = world.watch(files(60))
    refusal = contextlib.ExitStack()

    def hook(note: Notification) -> Answer | None:
        if note.path == "015.txt":
            refusal.enter_context(valkey_server.refusing_writes())
        return Answer(500) if note.path == "050.txt" else None

    world.answer(hook)
    with refusal:
        world.sync(watch)
    assert progress_of(watch).files_done == 59


def age_samples(redis: Redis, seconds: int) -> None:
    """Let the counters have moved that much longer ago."""
    for key in redis.scan_iter("docora:progress:*:samples"):
        samples = [tuple(map(int, member.split(b":"))) for member in redis.zrange(key, 0, -1)]
        redis.delete(key)
        redis.zadd(key, {f"{second - seconds}:{files}": second - seconds for second, files in samples})


def labels(watch: AppRepository, operation: BulkOperation) -> set[str]:
    """Return what the pages of the watch's run and of the operation say is happening."""
    run = SyncRun.objects.filter(watch=watch).latest("pk")
    seen = AppRepository.objects.with_state().get(pk=watch.pk)
    doing = activity.of_run(run, seen, live.of_run(run)), activity.of_operation(operation, live.of_operation(operation))
    return {each.label for each in doing if each}


def test_counters_from_before_redis_refused_writes(world: World, settings, valkey_server: ValkeyServer) -> None:
    """The second attempt has more files. Until the third, nothing sets the counters again."""
    settings.RECORD_BATCH = 5
    repo, watch = world.watch(files(30))
    world.settle()
    everything()
    world.answer(refusing("003.txt", "004.txt"))
    world.sync(watch)
    repo.commit(files(80))
    with valkey_server.refusing_writes():
        world.sync(watch)
    shown = progress_of(watch)
    assert (shown.files_done, shown.files_failed, shown.files_total) == (78, 2, 80)


def test_wait_before_an_attempt_is_not_a_stall(world: World, settings, redis_client: Redis) -> None:
    """A pause has ended, for example, and the worker reads the repository."""
    settings.RECORD_BATCH = 5
    (watch, other) = watched(world, 30, 30)
    operation = everything()
    world.answer(refusing("003.txt"))
    world.sync(watch)
    seen: list[set[str]] = []

    def look(*_: str) -> None:
        try:
            seen.append(labels(syncing, operation))
        finally:
            connections.close_all()

    world.git.server.on_request = look
    for syncing in watch, other:
        age_samples(redis_client, 300)
        world.sync(syncing)
    world.git.server.on_request = None
    assert len(seen) >= 2
    assert set.union(*seen) == {"Syncing"}


def test_bar_does_not_go_back_after_a_failed_attempt(world: World, settings) -> None:
    settings.RECORD_BATCH = 5
    watches = watched(world, 20, 10)
    operation = everything()
    seen: list[Progress] = []
    look = recording(lambda: live.of_operation(operation), seen)
    poison = refusing("003.txt", "007.txt")

    def hook(note: Notification) -> Answer | None:
        look(note)
        return poison(note)

    world.answer(hook)
    for watch in watches:
        world.sync(watch)
    assert live.of_operation(operation).files_done == 26
    world.answer(look)
    for watch in watches:
        world.sync(watch)
    assert_truthful(seen)
    operation.refresh_from_db()
    end = live.of_operation(operation)
    assert (end.files_done, end.files_total, end.percent, end.succeeded) == (30, 30, 100, 2)


def test_bar_does_not_go_back_after_a_kill(world: World, settings) -> None:
    settings.RECORD_BATCH = 5
    _, watch = world.watch(files(40))
    kill_worker(world, watch, lambda note: note.path >= "020.txt")
    before = progress_of(watch)
    assert 10 <= before.files_done <= 25
    seen: list[Progress] = [before]
    world.answer(recording(lambda: progress_of(watch), seen))
    world.sync(watch)
    assert_truthful(seen)
    end = progress_of(watch)
    assert (end.files_done, end.files_total, end.percent) == (40, 40, 100)


def test_several_workers_count_every_file_once(world: World, settings) -> None:
    settings.RECORD_BATCH = 3
    watches = []
    for number in range(3):
        app = world.add_app(f"App {number}", max_in_flight=2)
        watches.append(world.watch(files(40), name=f"acme/widgets-{number}", app=app)[1])
    world.settle()
    operation = everything()
    seen: list[Progress] = []
    world.answer(recording(lambda: live.of_operation(operation), seen))
    in_threads(*[lambda watch=watch: world.sync(watch) for watch in watches])
    assert_truthful(seen)
    operation.refresh_from_db()
    end = live.of_operation(operation)
    assert (end.files_done, end.files_total, end.succeeded, end.percent) == (120, 120, 3, 100)


def test_bar_without_files_is_full_at_once(world: World) -> None:
    (watch,) = watched(world, 2)
    operation = everything()
    world.sync(watch)
    operation.refresh_from_db()
    assert live.of_operation(operation).percent == 100
    _, empty = world.watch({"link": Entry.symlink("x")}, name="acme/none")
    world.sync(empty)
    assert progress_of(empty).percent == 100


def test_bar_is_not_full_if_a_repository_without_known_files_failed(db) -> None:
    app = make_app("Portal")
    refused, unreadable = make_watch(app, "docs"), make_watch(app, "site")
    fail(refused, RootCause.SERVER_ERROR, status=500, files_failing=5)
    fail(unreadable, RootCause.GIT_AUTH)
    operation = retry_by_app(Actor.command(), app)
    operation.runs.filter(watch=refused).update(files_done=5)
    runs.end_runs(refused.pk, refused.generation, Outcome.SUCCEEDED)
    runs.end_runs(unreadable.pk, unreadable.generation, Outcome.FAILED, "The token was rejected.")
    operation.refresh_from_db()
    end = live.of_operation(operation)
    assert (end.finished, end.files_done, end.files_total, end.failed, end.percent) == (True, 5, 5, 1, 99)


def test_lost_counters_do_not_restart_at_zero(redis_client: Redis) -> None:
    live_counters.start("run_1", {"files_total": 10, "files_done": 4})
    assert live_counters.advance("run_1", files_done=2)
    assert live_counters.read(["run_1", "run_2"]) == [{"files_total": 10, "files_done": 6}, None]
    redis_client.flushall()
    assert not live_counters.advance("run_1", files_done=2)
    assert live_counters.read(["run_1"]) == [None]
    live_counters.finish("run_1")


def test_lost_counters_are_logged_once_a_minute(
    valkey_server: ValkeyServer, redis_client: Redis, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr(live_counters, "_logged_at", None)
    valkey_server.stop()
    for _ in range(5):
        live_counters.start("run_1", {"files_total": 10})
        assert not live_counters.advance("run_1", files_done=1)
        assert live_counters.put("bulk_1", "run_1", {"files_done": 1}), "there is nothing to seed"
    assert [record.message for record in caplog.records] == ["progress_not_updated"]


def test_counters_expire(redis_client: Redis) -> None:
    """Those of a run whose worker died are not deleted."""
    live_counters.start("run_1", {"files_total": 10})
    live_counters.seed("bulk_1", {"files_total": 10}, {"run_1": {"files_total": 10}})
    left = {key: redis_client.ttl(key) for key in redis_client.scan_iter("docora:progress:*")}
    assert len(left) == 5
    assert all(0 < seconds <= live_counters.TTL_SECONDS for seconds in left.values())
    for key in (b"docora:progress:bulk_1", b"docora:progress:bulk_1:parts"):
        assert left[key] <= live_counters.SUM_SECONDS


def test_sum_that_has_lost_its_parts(redis_client: Redis) -> None:
    """A Redis whose memory is full may have removed them alone."""
    live_counters.seed("bulk_1", {"files_done": 4}, {"run_1": {"files_done": 4}})
    redis_client.delete("docora:progress:bulk_1:parts")
    assert not live_counters.put("bulk_1", "run_1", {"files_done": 5})
    live_counters.seed("bulk_1", {"files_done": 4}, {"run_1": {"files_done": 4}})
    assert live_counters.put("bulk_1", "run_1", {"files_done": 5})
    assert live_counters.read(["bulk_1"]) == [{"files_done": 5}]


def test_earliest_start_of_the_parts_is_kept(redis_client: Redis) -> None:
    live_counters.seed("bulk_1", {"started": 0}, {"run_0": {"started": 0}})
    for started, earliest in ((0, 0), (200, 200), (100, 100), (150, 100), (0, 100)):
        live_counters.put("bulk_1", f"run_{started}", {"started": started})
        assert live_counters.read(["bulk_1"]) == [{"started": earliest}]


def test_very_large_counters(redis_client: Redis) -> None:
    size = 2**53 - 1
    live_counters.start("run_1", {"bytes_total": size})
    live_counters.seed("bulk_1", {"bytes_total": 0}, {"run_1": {"bytes_total": 0}})
    live_counters.put("bulk_1", "run_1", {"bytes_total": size})
    assert live_counters.read(["run_1", "bulk_1"]) == [{"bytes_total": size}] * 2


def test_operation_before_its_first_file(world: World) -> None:
    watched(world, 3)
    progress = live.of_operation(everything())
    assert (progress.percent, progress.files_done, progress.files_total) == (0, 0, 3)


def test_repeated_and_late_updates_are_counted_once(world: World) -> None:
    """Adding to a sum that another worker has just set from the rows lost a batch, or counted it twice."""
    watched(world, 10, 10)
    operation = everything()
    first, second = SyncRun.objects.filter(operation=operation).order_by("pk")
    live.of_operation(operation)
    for done, shown in ((4, 4), (4, 4), (7, 7)):
        first.files_done = done
        live.show_in_operation(first, operation)
        assert live.of_operation(operation).files_done == shown
    second.files_done = 3
    live.show_in_operation(second, operation)
    assert live.of_operation(operation).files_done == 10
    first.outcome = "succeeded"
    for _ in range(2):
        live.show_in_operation(first, operation)
    progress = live.of_operation(operation)
    assert (progress.completed, progress.succeeded, progress.files_total) == (1, 1, 20)
