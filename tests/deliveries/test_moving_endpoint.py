"""The app's base URL or its limit changes during a run: what was begun says nothing about the new endpoint."""

import time

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, SyncRun
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import change_app
from deliveries_app.services.app_settings import change_own_settings
from deliveries_app.services.pinging import send_ping
from deliveries_app.sync import time_slice
from deliveries_app.webhooks import endpoint_stats
from tests.support.histories import assert_promise_kept, at_notification, in_doubt
from tests.support.processes import in_threads
from tests.support.syncing import sync
from tests.support.world import World

FILES = {f"{number:02}.txt": b"content %d" % number for number in range(20)}


def one_by_one(world: World, **fields: object) -> AppRepository:
    """Return a watch with files, whose app gets one request at a time."""
    App.objects.filter(pk=world.app.pk).update(max_in_flight=1, **fields)
    world.app.refresh_from_db()
    return world.watch(FILES)[1]


def move_endpoint(world: World) -> None:
    """Change the base URL to another name of the same receiver."""
    app = App.objects.get(pk=world.app.pk)
    app.base_url = world.app.base_url.replace("127.0.0.1", "localhost")
    assert app.base_url != world.app.base_url
    change_app(Actor.command(), app, ["base_url"])


def refuse_and_move(world: World, *, status: int, at: int) -> None:
    """Answer every notification with this status, and move the endpoint at the given one."""
    move = at_notification(at, lambda: move_endpoint(world))

    def answer(note: Notification) -> Answer:
        move(note)
        return Answer(status)

    world.answer(answer)


def test_410_of_the_old_endpoint_does_not_pause_the_app(world: World) -> None:
    watch = one_by_one(world)
    move = at_notification(3, lambda: move_endpoint(world))
    seen: list[str] = []

    def answer(note: Notification) -> Answer | None:
        move(note)
        seen.append(note.path)
        return Answer(410) if 3 < len(seen) < 7 else None

    world.answer(answer)
    world.sync(watch)
    app = App.objects.get()
    assert (app.paused, app.paused_reason) == (False, "")
    world.answer(None)
    world.settle()
    watch.refresh_from_db()
    assert watch.status == "synced"
    assert SyncRun.objects.get().outcome == "succeeded"


def test_failed_ping_of_the_old_endpoint_does_not_hold_the_new_one(world: World) -> None:
    watch = one_by_one(world, down_count=9)
    refuse_and_move(world, status=502, at=1)
    world.sync(watch)
    app = App.objects.get()
    assert (app.down_count, app.cooldown_until) == (0, None)
    world.answer(None)
    world.settle()
    watch.refresh_from_db()
    assert watch.status == "synced"


@pytest.mark.parametrize("during", [True, False])
def test_failed_test_ping_of_the_old_endpoint_does_not_warn_about_the_new_one(world: World, *, during: bool) -> None:
    refuse_and_move(world, status=500, at=1 if during else 2)
    send_ping(Actor.command(), world.app)
    assert (App.objects.get().ping_failed_at is None) is during
    if not during:
        move_endpoint(world)
        assert App.objects.get().ping_failed_at is None


def test_new_endpoint_does_not_wait_as_the_old_one_asked(world: World) -> None:
    watch = one_by_one(world)
    world.answer(lambda note: Answer(429, headers={"Retry-After": "3600"}))
    world.sync(watch)
    world.answer(None)
    move_endpoint(world)
    app = App.objects.get()
    assert (app.cooldown_until, app.is_slowed_down) == (None, False)
    assert watch in AppRepository.objects.due()


def test_refusal_of_the_old_endpoint_does_not_slow_down_the_new_one(world: World) -> None:
    watch = one_by_one(world)
    world.answer(at_notification(3, lambda: move_endpoint(world), then=Answer(429, headers={"Retry-After": "1"})))
    world.sync(watch)
    assert not App.objects.get().is_slowed_down


@pytest.mark.parametrize("during", [False, True])
def test_acceptance_by_the_old_endpoint_proves_nothing_about_the_new_one(world: World, during: bool) -> None:
    repo, watch = world.watch(FILES)
    world.sync(watch)
    repo.commit({"00.txt": None, "new.txt": b"new"})
    accepted: set[str] = set()

    def answer(note: Notification) -> Answer | None:
        if note.kind != "delete":
            accepted.add(note.path)
            return None
        if during:
            move_endpoint(world)
        return Answer(500)

    world.answer(answer)
    watch = world.sync(watch)
    # After the first failure, the app accepts new.txt, unless the run notices the move before and pauses.
    assert in_doubt(watch) == {"00.txt", "new.txt"} - accepted
    if not during:
        assert accepted == {"new.txt"}
        move_endpoint(world)
    world.answer(lambda note: Answer(404))
    for _ in range(3):
        assert "00.txt" in world.rows(world.sync(watch))
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_resumed_app_does_not_wait_for_the_end_of_its_cooldown(world: World) -> None:
    watch = one_by_one(world)
    world.answer(lambda note: Answer(429, headers={"Retry-After": "3600"}))
    world.sync(watch)
    for paused in (True, False):
        change_own_settings(Actor.command(), world.app, paused=paused)
    assert App.objects.get().cooldown_until is None
    assert watch in AppRepository.objects.due()


def test_failures_of_the_old_endpoint_are_not_those_of_the_new_one(world: World) -> None:
    """The run records them after the change, when its requests in flight have ended."""
    watch = one_by_one(world)
    refuse_and_move(world, status=500, at=8)
    world.sync(watch)
    app = App.objects.get()
    assert app.base_url != world.app.base_url
    assert endpoint_stats.of_apps([app]) == {}
    world.answer(None)
    world.settle()
    found = endpoint_stats.of_apps([app])
    assert found
    assert (found[app.pk].requests, found[app.pk].accepted) == (len(FILES), 1.0)


def test_run_continues_at_the_new_endpoint(world: World) -> None:
    watch = one_by_one(world)
    move = at_notification(3, lambda: move_endpoint(world))

    def answer(note: Notification) -> None:
        move(note)
        time.sleep(0.1)

    world.answer(answer)
    assert world.sync(watch).status == "pending_snapshot"
    assert 3 <= len(world.requests("create")) < len(FILES)
    world.settle()
    watch.refresh_from_db()
    assert watch.status == "synced"
    assert SyncRun.objects.get().outcome == "succeeded"


@pytest.mark.early(3)
def test_lower_limit_holds_for_runs_under_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_slice, "SLICE_SECONDS", 60.0)  # the run that continues would make way for the others
    App.objects.update(max_in_flight=4)
    world.app.refresh_from_db()
    files = {f"{number:02}.txt": b"content %d" % number for number in range(60)}
    watches = [world.watch(files, name=f"acme/widgets-{number}")[1] for number in range(4)]
    in_flight: list[tuple[float, int]] = []

    def answer(note: Notification) -> None:
        in_flight.append((time.monotonic(), sum(world.receiver._in_flight.values())))
        time.sleep(0.15)

    world.answer(answer)
    lowered_at: list[float] = []

    def lower() -> None:
        time.sleep(1.0)
        change_own_settings(Actor.command(), world.app, max_in_flight=1)
        lowered_at.append(time.monotonic())

    for watch in watches:
        world.make_due(watch)
    in_threads(lower, *(lambda pk=watch.pk: sync(pk) for watch in watches))
    later = [count for at, count in in_flight if at > lowered_at[0] + 4]  # a run reads the limit every second
    assert later
    assert max(later) == 1
    world.answer(None)
    world.settle()
    assert {watch.status for watch in AppRepository.objects.all()} == {"synced"}
