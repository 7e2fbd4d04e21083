"""Before an endpoint counts as down, a ping asks whether it works (`engine.md` §7)."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
from django.db.models.functions import Now

from deliveries_app.models import App, AppRepository, HourlyTraffic, Status
from deliveries_app.models.root_causes import RootCause
from deliveries_app.receiver import Answer, Notification
from deliveries_app.sync import endpoint_health, sender
from deliveries_app.sync.endpoint_health import PING_SECONDS, failing_watches
from deliveries_app.webhooks import client as webhooks
from deliveries_app.webhooks.endpoint_stats import last_acknowledged
from docora.db.clock import from_now
from docora.http.client import Request
from docora.redis.connection import connection
from tests.support.histories import assert_promise_kept
from tests.support.processes import in_threads, syncing
from tests.support.receiver import wait_for
from tests.support.staff import fail, make_watch
from tests.support.syncing import sync
from tests.support.world import World

Hook = Callable[[Notification], Answer | None]


@pytest.fixture(autouse=True)
def _one_by_one(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 2
    App.objects.update(max_in_flight=1)
    world.app.refresh_from_db()


def files(count: int, name: str = "file") -> dict[str, bytes]:
    return {f"{name}-{number:02}": b"%d" % number for number in range(count)}


def failing(*prefixes: str, status: int = 502, ping: int | None = None) -> Hook:
    """Answer `status` to files whose path begins like this, and `ping` to pings."""

    def hook(note: Notification) -> Answer | None:
        if note.kind == "ping":
            return Answer(ping) if ping else None
        return Answer(status) if note.path.startswith(prefixes) else None

    return hook


def kinds(world: World) -> str:
    return "".join(record.kind[0] for record in world.requests())


def state(world: World) -> tuple[int, bool]:
    app = App.objects.get(pk=world.app.pk)
    return app.down_count, app.cooldown_until is not None


def test_poisoned_repository_fails_while_the_others_continue(world: World) -> None:
    _, poisoned = world.watch(files(12, "poison"), name="acme/poisoned")
    healthy_repo, healthy = world.watch(name="acme/healthy")
    world.answer(failing("poison"))
    world.sync(poisoned)
    assert kinds(world) == "c" * 10 + "p" + "c" * 2
    assert (poisoned.retry_count, poisoned.files_failing, state(world)) == (1, 12, (0, False))
    world.sync(healthy)
    assert_promise_kept(world, healthy_repo, healthy)
    assert world.sync(poisoned).status == Status.FAILED


@pytest.mark.parametrize("status", [502, 503, 504])
def test_endpoint_that_answers_no_ping_either_is_down(world: World, status: int) -> None:
    repo, watch = world.watch(files(12))
    world.answer(failing("file", status=status, ping=status))
    world.sync(watch)
    assert kinds(world) == "c" * (11 if status == 503 else 10) + "p"  # 503: after a pause
    assert (watch.retry_count, watch.status, state(world)) == (0, Status.PENDING, (1, True))
    assert "endpoint is down" in watch.last_error
    world.answer(None)
    watch.deliveries.update(hold_until=Now())  # after a 504, in 30 seconds
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_endpoint_that_is_down_for_months(world: World) -> None:
    _, watch = world.watch(files(12))
    App.objects.update(down_count=5000)
    world.answer(failing("file", ping=502))
    world.sync(watch)
    assert (watch.lease_until, state(world)) == (None, (5001, True))


def test_acknowledgement_of_another_watch_proves_that_the_endpoint_works(world: World) -> None:
    _, poisoned = world.watch(files(12), name="acme/poisoned")

    def hook(note: Notification) -> Answer:
        HourlyTraffic.objects.update_or_create(
            app=world.app, hour="2026-01-01 00:00Z", defaults={"acknowledged_at": Now()}
        )
        return Answer(502)

    world.answer(hook)
    world.sync(poisoned)
    assert kinds(world) == "c" * 12
    assert (poisoned.retry_count, state(world)) == (1, (0, False))


def test_other_apps_and_the_run_itself_do_not_count(world: World) -> None:
    other = world.add_app("Other")
    own, *_ = (make_watch(app, name) for app, name in ((world.app, "a"), (world.app, "b"), (other, "c")))
    for watch in AppRepository.objects.all():
        fail(watch, RootCause.CONNECTION)
    assert failing_watches(world.app, except_pk=own.pk) == 1
    HourlyTraffic.objects.create(app=other, hour="2026-01-01 00:00Z", acknowledged_at=Now())
    assert last_acknowledged(world.app) is None


def test_acknowledgement_before_the_first_failure_proves_nothing(world: World) -> None:
    world.sync(world.watch(name="acme/before")[1])
    assert HourlyTraffic.objects.get().acknowledged_at is not None
    _, watch = world.watch(files(12), name="acme/down")
    world.answer(failing("file", ping=502))
    world.sync(watch)
    assert state(world) == (1, True)


@pytest.mark.parametrize("answer", [404, 405, 500, 410])
@pytest.mark.parametrize("works", [True, False])
def test_ping_that_proves_nothing_is_followed_by_three_paths(world: World, answer: int, works: bool) -> None:
    """A client without `/ping`, or a proxy that answers 404 for it while the app behind is down."""
    repo, watch = world.watch({**files(10), **files(10, "other")})
    world.answer(failing("file", *([] if works else ["other"]), ping=answer))
    world.sync(watch)
    assert not App.objects.get().paused
    if works:
        assert (kinds(world), state(world)) == ("c" * 10 + "p" + "c" * 10, (0, False))
        assert watch.files_failing == 10
    else:
        assert (kinds(world), state(world)) == ("c" * 10 + "p" + "c" * 3, (1, True))
    assert watch.retry_count == 1  # either way, since its own files may be the reason
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_control_paths_are_sent_one_by_one(world: World) -> None:
    App.objects.update(max_in_flight=8)
    world.app.refresh_from_db()
    _, watch = world.watch({**files(10), **files(10, "other")})
    at_once: list[int] = []

    def hook(note: Notification) -> Answer | None:
        if note.kind == "ping":
            return Answer(404)
        if note.path.startswith("other"):
            at_once.append(world.receiver._in_flight[note.app_id])
            time.sleep(0.05)
        return Answer(502)

    world.answer(hook)
    world.sync(watch)
    assert state(world) == (1, True)
    assert at_once[-3:] == [1, 1, 1]


@pytest.mark.parametrize("count", [10, 11, 12])
def test_watch_without_three_further_paths_holds_the_app_and_counts(world: World, count: int) -> None:
    _, watch = world.watch(files(count))
    _, other = world.watch(name="acme/other")
    world.answer(failing("file", ping=404))
    world.sync(watch)
    assert (watch.retry_count, state(world)) == (1, (1, True))
    app = App.objects.get()
    assert app.cooldown_until is not None
    assert watch.next_sync_at is not None
    assert watch.next_sync_at > app.cooldown_until + timedelta(seconds=4)  # another watch goes first
    world.sync(other)
    assert (other.status, state(world)) == (Status.SYNCED, (0, False))
    assert world.sync(watch).status == Status.FAILED


@pytest.mark.parametrize("health", ["up", "down"])
def test_app_is_pinged_once_a_minute(world: World, health: str) -> None:
    watches = [world.watch(files(10), name=f"acme/{number}")[1] for number in range(3)]
    world.answer(failing("file", ping=None if health == "up" else 502))
    for watch in watches:
        App.objects.update(down_count=0, cooldown_until=None)
        world.sync(watch)
        assert state(world) == ((0, False) if health == "up" else (1, True))
    assert kinds(world).count("p") == 1
    assert 0 < connection().ttl(f"docora:endpoint:{world.app.app_id}:{world.app.base_url}") <= PING_SECONDS


def test_ping_of_an_earlier_base_url_proves_nothing(world: World) -> None:
    _, watch = world.watch(files(12))
    world.answer(failing("file", ping=502))
    world.sync(watch)
    assert state(world) == (1, True)
    moved = world.app.base_url.replace("127.0.0.1", "localhost")
    App.objects.update(base_url=moved, down_count=0, cooldown_until=None)
    world.answer(failing("file"))
    world.sync(watch)
    assert state(world) == (0, False)


def test_runs_at_the_same_time_share_one_ping(world: World) -> None:
    App.objects.update(max_in_flight=8)
    watches = [world.watch(files(10), name=f"acme/{number}")[1] for number in range(3)]

    def hook(note: Notification) -> Answer | None:
        if note.kind == "ping":
            time.sleep(0.5)
        return Answer(502)

    world.answer(hook)
    for watch in watches:
        world.make_due(watch)
    in_threads(*[partial(sync, watch.pk) for watch in watches])
    assert kinds(world).count("p") == 1
    assert state(world) == (1, True)  # one outage, although three runs found it


def wait_for_the_ping_of_another_run(world: World, watch: AppRepository, meanwhile: Callable[[], object]) -> bool:
    """Sync while another run is sending a ping, and return whether the attempt ends soon after `meanwhile`."""
    world.answer(failing("file"))
    world.make_due(watch)
    mark = f"docora:endpoint:{world.app.app_id}:{world.app.base_url}"
    connection().set(mark, "")
    worker = syncing(watch.pk)
    wait_for(lambda: len(world.requests()) == 10)
    meanwhile()
    worker.join(20)
    has_ended = not worker.is_alive()
    connection().delete(mark)
    worker.join()
    return has_ended


def test_run_that_waits_for_the_ping_of_another_one_stops_at_a_pause(world: World) -> None:
    _, watch = world.watch(files(20))
    assert wait_for_the_ping_of_another_run(world, watch, lambda: App.objects.update(paused=True))
    assert kinds(world) == "c" * 10


def test_ping_of_a_dead_run_is_not_waited_for_after_the_clock_of_redis_was_set_back(world: World, monkeypatch) -> None:
    """Its mark would expire too late."""
    monkeypatch.setattr(endpoint_health, "_LONGEST_PING", 1)
    _, watch = world.watch(files(20))
    assert wait_for_the_ping_of_another_run(world, watch, lambda: None)
    assert kinds(world) == "c" * 13  # three paths show whether the endpoint works
    assert state(world) == (1, True)


def test_own_earlier_acknowledgement_does_not_hide_a_later_one(world: World) -> None:
    """A run that acknowledged a file before its failures began must not move the app's time back to that."""
    _, watch = world.watch({"a": b"a", **files(11, "poison")})

    def hook(note: Notification) -> Answer | None:
        if note.kind == "ping":
            return Answer(404)
        if note.path == "poison-05":  # another watch's file
            HourlyTraffic.objects.update(acknowledged_at=Now())
        if note.path == "poison-00":
            time.sleep(1.1)  # so that the first acknowledgement has been recorded
        return Answer(502) if note.path.startswith("poison") else None

    HourlyTraffic.objects.all().delete()
    world.answer(hook)
    world.sync(watch)
    assert kinds(world) == "c" * 12
    assert state(world) == (0, False)


def test_one_ping_asks_whether_an_endpoint_works_again(world: World) -> None:
    _, watch = world.watch(files(20))
    App.objects.update(down_count=3, cooldown_until=from_now(-1))
    world.answer(failing("file", ping=502))
    world.sync(watch)
    assert kinds(world) == "p"
    assert (watch.retry_count, watch.root_cause, watch.last_status_code) == (0, "http_5xx", 502)
    assert watch.last_error == "The app's endpoint is down. The app returned HTTP 502."
    assert state(world) == (4, True)


@pytest.mark.parametrize(("works", "sent", "then"), [(True, "ps", (0, False)), (False, "p", (4, True))])
def test_probe_with_nothing_but_sync_completed_begins_with_a_ping_too(
    world: World, works: bool, sent: str, then: tuple[int, bool]
) -> None:
    """The notice alone would count as a failed attempt, and the hold would not be prolonged."""
    App.objects.update(send_sync_completed=True)
    repo, watch = world.watch()
    AppRepository.objects.update(exclude_patterns="other")
    world.settle()
    repo.commit({"other": b"not sent"})
    App.objects.update(down_count=3, cooldown_until=from_now(-1))
    before = len(kinds(world))
    world.answer(None if works else lambda note: Answer(502))
    world.sync(watch)
    assert (kinds(world)[before:], watch.retry_count, state(world)) == (sent, 0, then)


def test_probe_of_a_client_without_ping_sends_three_files(world: World) -> None:
    _, watch = world.watch(files(20))
    App.objects.update(down_count=3, cooldown_until=from_now(-1))
    world.answer(failing("file", ping=404))
    world.sync(watch)
    assert kinds(world) == "pccc"
    assert state(world) == (4, True)


@pytest.mark.parametrize(("count", "sent"), [(1, "pc"), (2, "pcc")])
def test_probe_of_a_client_without_ping_that_has_fewer_files(world: World, count: int, sent: str) -> None:
    """Otherwise, the hold of an app whose pushes are small would not be prolonged, and its repositories would soon be given up."""
    _, watch = world.watch(files(count))
    App.objects.update(down_count=3, cooldown_until=from_now(-1))
    world.answer(failing("file", ping=404))
    world.sync(watch)
    assert kinds(world) == sent
    assert (watch.retry_count, state(world)) == (1, (4, True))


@pytest.mark.parametrize("proxy_answers", [False, True])
def test_many_watches_with_one_failing_file_each_are_recognised(
    world: World, monkeypatch, *, proxy_answers: bool
) -> None:
    """Also if a proxy answers 502 to the first nine, and then hangs too."""
    for module in (sender, webhooks):
        monkeypatch.setattr(module, "Request", partial(Request, timeout=0.2))
    watches = [world.watch(files(1), name=f"acme/{number:02}")[1] for number in range(14)]
    over = threading.Event()
    synced = 0

    def hang(note: Notification) -> Answer | None:
        if proxy_answers and synced < 9:
            return Answer(502)
        over.wait(20)
        return None

    world.answer(hang)
    for watch in watches:
        if state(world)[0]:
            break
        world.sync(watch)
        synced += 1
    over.set()
    assert (synced, state(world)) == (10, (1, True))


def test_checks_do_not_make_old_failures_look_new(world: World, monkeypatch) -> None:
    """Ten repositories have a file that always times out, and the app works. Only failures since its last acknowledgement count."""
    for module in (sender, webhooks):
        monkeypatch.setattr(module, "Request", partial(Request, timeout=0.1))
    watches = [world.watch({"slow": b"%d" % number}, name=f"acme/{number:02}")[1] for number in range(10)]
    over = threading.Event()
    world.answer(lambda note: over.wait(20) and None)
    for watch in watches[1:]:
        world.sync(watch)
    assert state(world) == (0, False)
    HourlyTraffic.objects.update(acknowledged_at=Now())
    world.check()
    world.sync(watches[0])
    over.set()
    assert state(world) == (0, False)


def test_single_threaded_receiver_is_asked_after_what_is_in_flight(world: World, monkeypatch) -> None:
    monkeypatch.setattr(sender, "Request", partial(Request, timeout=0.5))
    App.objects.update(max_in_flight=8)
    world.app.refresh_from_db()
    _, watch = world.watch({**files(20, "slow"), "z": b"fine"})
    one_at_a_time = threading.Lock()

    def hook(note: Notification) -> None:
        with one_at_a_time:
            if note.path.startswith("slow"):
                time.sleep(0.2)

    world.answer(hook)
    world.sync(watch)
    assert "p" in kinds(world)
    assert state(world) == (0, False)
