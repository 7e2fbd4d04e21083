"""What a slow, busy, down or gone endpoint means for the run and the app (`engine.md` §7)."""

import time
from datetime import timedelta
from functools import partial

import pytest
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, DeliveryFailure, Outcome, Status
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import resync_single
from deliveries_app.sync import notification, sender
from deliveries_app.sync.claim import claim
from deliveries_app.webhooks import client as webhooks
from docora.http.client import Request
from tests.docora.http_server import ScriptedServer, servers
from tests.support.histories import assert_promise_kept, at_notification, in_doubt, refusing
from tests.support.syncing import sync
from tests.support.world import World


def one_by_one(world: World) -> None:
    App.objects.filter(pk=world.app.pk).update(max_in_flight=1)
    world.app.refresh_from_db()


def use_short_timeout(monkeypatch, seconds: float = 0.4) -> None:
    """Let requests time out sooner than after the contract's 30 s."""
    monkeypatch.setattr(sender, "Request", partial(Request, timeout=seconds))


def names(count: int) -> dict[str, bytes]:
    return {f"file-{number:02}.txt": b"%d" % number for number in range(count)}


def cooldown_left(app: App) -> float:
    """Return the seconds for which nothing is sent to the app."""
    app.refresh_from_db()
    return (app.cooldown_until - timezone.now()).total_seconds() if app.cooldown_until else 0.0


@pytest.mark.parametrize("status", [429, 503])
def test_wait_of_up_to_5_seconds_happens_in_the_run(world: World, status: int) -> None:
    one_by_one(world)
    repo, watch = world.watch(names(4))
    world.answer(at_notification(2, lambda: None, then=Answer(status, headers={"Retry-After": "1"})))
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    refused, next_one = world.requests()[1:3]
    assert next_one.received_at - refused.answered_at >= 0.99
    assert next_one.webhook_id == refused.webhook_id
    assert [run.attempts for run in world.runs(watch)] == [1]
    assert cooldown_left(world.app) == 0


def test_repeated_short_waits_end_the_run(world: World) -> None:
    _, watch = world.watch({"busy.txt": b"1", "fine.txt": b"2"})
    world.answer(refusing("busy.txt", status=429, headers={"Retry-After": "0"}))
    world.sync(watch)
    assert (watch.status, watch.retry_count) == (Status.PENDING, 1)
    assert len([record for record in world.requests() if record.path == "busy.txt"]) == 1 + sender.MAX_WAITS
    assert set(world.copy(watch)) == {"fine.txt"}


@pytest.mark.parametrize(("asked", "least", "most"), [("90", 80, 90), ("999999", 3590, 3600)])
def test_long_retry_after_pauses_the_app_without_an_attempt(
    world: World, asked: str, least: float, most: float
) -> None:
    one_by_one(world)
    repo, watch = world.watch(names(6))
    _, other = world.watch(name="acme/gadgets")
    world.answer(at_notification(3, lambda: None, then=Answer(429, headers={"Retry-After": asked})))
    world.sync(watch)
    assert len(world.requests()) == 3
    assert (watch.status, watch.retry_count) == (Status.PENDING, 0)
    assert least < cooldown_left(world.app) <= most
    assert not AppRepository.objects.due().exists()
    assert claim(other.pk) is None
    assert world.runs(watch)[0].outcome == ""
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert len(world.requests()) == 3 + 4
    assert [run.attempts for run in world.runs(watch)] == [1]


def test_endpoint_is_down_after_10_paths(world: World) -> None:
    repo, watch = world.watch(names(60))
    _, other = world.watch(name="acme/gadgets")
    world.receiver.stop()
    world.sync(watch)
    tried = DeliveryFailure.objects.filter(watch=watch).count()
    assert 10 <= tried <= 10 + world.app.max_in_flight
    assert (watch.status, watch.retry_count, watch.last_error_cause) == (Status.PENDING, 0, "connect")
    assert "endpoint is down" in watch.last_error
    assert 0 < cooldown_left(world.app) <= 7.5
    assert not AppRepository.objects.due().exists()
    world.sync(watch)
    assert 7.5 < cooldown_left(world.app) <= 15  # twice as long
    assert App.objects.get().down_count == 2
    world.receiver.start()
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    app = App.objects.get()
    assert (app.down_count, app.cooldown_until) == (0, None)
    assert [run.attempts for run in world.runs(watch)] == [1]
    assert world.sync(other).status == Status.SYNCED


def test_one_request_probes_an_endpoint_that_was_down(world: World) -> None:
    _, watch = world.watch(names(30))
    _, other = world.watch(name="acme/gadgets")
    world.receiver.stop()
    world.sync(watch)
    world.make_due(watch)
    probe = claim(watch.pk)
    assert probe is not None
    assert probe.slots.count == 1
    assert claim(other.pk) is None


@pytest.mark.parametrize("status", [502, 503, 504])
def test_gateway_errors_count_as_endpoint_down(world: World, status: int) -> None:
    one_by_one(world)
    _, watch = world.watch(names(20))
    world.answer(lambda note: Answer(status))
    world.sync(watch)
    refused = 1 if status == 503 else 0  # it may be a client that is too busy, and gets a pause first
    assert [record.kind for record in world.requests()] == ["create"] * (10 + refused) + ["ping"]
    assert App.objects.get().down_count == 1


def test_errors_of_single_files_do_not_stop_the_run(world: World) -> None:
    _, watch = world.watch(names(30))
    poison = [f"file-{number:02}.txt" for number in range(15)]
    world.answer(refusing(*poison, status=500))
    world.sync(watch)
    assert len(world.copy(watch)) == 15
    assert (watch.status, watch.retry_count, watch.files_failing) == (Status.PENDING, 1, 15)
    assert set(watch.failures.values_list("path", flat=True)) == set(poison)
    assert App.objects.get().cooldown_until is None


def test_response_in_between_shows_the_endpoint_is_up(world: World) -> None:
    one_by_one(world)
    _, watch = world.watch(names(25))
    world.answer(lambda note: Answer(502) if note.path != "file-08.txt" and note.path < "file-16.txt" else None)
    world.sync(watch)
    assert len(world.requests()) == 25
    assert App.objects.get().down_count == 0


def test_ten_poison_files_do_not_stop_every_run(world: World) -> None:
    one_by_one(world)
    poison = {f"a-{number}": b"poison" for number in range(10)}
    _, watch = world.watch(poison | {f"b-{number}": b"fine" for number in range(5)})
    world.answer(refusing(*poison, status=502))
    world.sync(watch)
    assert [record.path for record in world.requests("create")[:10]] == sorted(poison)
    assert set(world.copy(watch)) == {f"b-{number}" for number in range(5)}


def test_three_410_responses_pause_the_app(world: World) -> None:
    one_by_one(world)
    repo, watch = world.watch(names(9))
    world.answer(lambda note: Answer(410) if note.path > "file-03.txt" else None)
    world.sync(watch)
    app = App.objects.get()
    assert app.paused
    assert "410" in app.paused_reason
    assert len(world.requests()) == 4 + 3
    assert world.runs(watch)[0].outcome == Outcome.PAUSED
    assert claim(watch.pk) is None
    assert not AppRepository.objects.due().exists()
    App.objects.update(paused=False, paused_reason="")
    world.answer(None)
    assert AppRepository.objects.due().filter(pk=watch.pk).exists()
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert len(world.requests()) == 4 + 3 + 5


def test_410_responses_to_deletes_do_not_pause_the_app(world: World) -> None:
    repo, watch = world.watch(names(5))
    world.settle()
    repo.commit(dict.fromkeys(list(names(4))))
    world.answer(lambda note: Answer(410))
    world.sync(watch)
    assert len(world.requests("delete")) == 4
    assert not App.objects.get().paused


def test_two_410_responses_fail_only_those_files(world: World) -> None:
    _, watch = world.watch(names(9))
    world.answer(refusing("file-03.txt", "file-04.txt", status=410))
    world.sync(watch)
    assert not App.objects.get().paused
    assert len(world.copy(watch)) == 7


def test_timed_out_path_is_held_before_the_next_request(world: World, monkeypatch) -> None:
    use_short_timeout(monkeypatch)
    repo, watch = world.watch({"hangs.txt": b"1", "fine.txt": b"2"})
    world.answer(lambda note: time.sleep(1) if note.path == "hangs.txt" else None)
    world.sync(watch)
    row = world.rows(watch)["hangs.txt"]
    assert row.hold_until is not None
    assert 28 < (row.hold_until - timezone.now()).total_seconds() <= 30
    assert watch.next_sync_at is not None
    assert watch.next_sync_at >= row.hold_until - timedelta(seconds=1)
    world.answer(None)
    sent = len(world.requests())
    world.sync(watch)  # before its time
    assert [record.path for record in world.requests()[sent:]] in ([], ["hangs.txt"])  # the late answer of the first
    assert in_doubt(watch) == {"hangs.txt"}
    assert "The last request timed out." in watch.failures.get(path="hangs.txt").message
    assert watch.next_sync_at is not None
    assert (watch.next_sync_at - timezone.now()).total_seconds() > 25
    world.rows(watch)
    watch.deliveries.update(hold_until=timezone.now())  # 30 seconds later
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_path_is_held_after_a_gateway_timeout(world: World) -> None:
    """The app behind the gateway may still be processing the request, and could store it after the next one."""
    repo, watch = world.watch({"slow.txt": b"1", "fine.txt": b"2"})
    world.answer(lambda note: Answer(504) if note.path == "slow.txt" else None)
    world.sync(watch)
    world.answer(None)
    repo.commit({"slow.txt": b"changed"})
    sent = len(world.requests())
    world.sync(watch)
    assert world.requests()[sent:] == []
    watch.deliveries.update(hold_until=timezone.now())  # 30 seconds later
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_short_hold_is_waited_for_in_the_run(world: World, monkeypatch) -> None:
    use_short_timeout(monkeypatch)
    for module in (sender, notification):
        monkeypatch.setattr(module, "HOLD_AFTER_TIMEOUT", 2.0)
    repo, watch = world.watch({"hangs.txt": b"1"})
    world.answer(at_notification(1, lambda: time.sleep(0.6)))
    world.sync(watch)
    assert in_doubt(watch) == {"hangs.txt"}
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    first, second = world.requests()
    assert second.received_at - first.received_at >= 0.4 + 1.9


def test_run_after_a_superseded_one_whose_request_timed_out_waits(world: World, monkeypatch) -> None:
    """The client may still be processing the request, and the next run would send something else for the path. Nothing died."""
    use_short_timeout(monkeypatch)
    _, watch = world.watch({"hangs.txt": b"1"})

    def resync_and_hang() -> None:
        resync_single(Actor.command(), watch)
        time.sleep(1)  # the request times out, and the run is superseded when it records that

    world.answer(at_notification(1, resync_and_hang))
    world.make_due(watch)
    assert sync(watch.pk)  # superseded
    world.sync(watch)
    assert len(world.requests()) == 0  # the client has not finished with the first
    assert (watch.lease_until, watch.crash_count, watch.status) == (None, 0, Status.PENDING)
    assert watch.next_sync_at is not None
    assert 20 < (watch.next_sync_at - timezone.now()).total_seconds() <= 30


def test_hanging_endpoint_is_down_after_10_timeouts(world: World, monkeypatch) -> None:
    use_short_timeout(monkeypatch)
    monkeypatch.setattr(webhooks, "Request", partial(Request, timeout=0.4))  # the ping's
    _, watch = world.watch(names(40))
    world.answer(lambda note: time.sleep(2))
    started = time.monotonic()
    world.sync(watch)
    assert time.monotonic() - started < 5
    assert (watch.retry_count, watch.last_error_cause) == (0, "timeout")
    assert App.objects.get().down_count == 1
    held = watch.deliveries.exclude(hold_until=None).count()
    assert 10 <= held <= 10 + world.app.max_in_flight


def test_gigabyte_response_is_cut_off(world: World) -> None:
    def flood(connection, head: bytes, body: bytes) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        for _ in range(1000):
            connection.sendall(bytes(1_000_000))
        return False

    with servers() as start:
        server: ScriptedServer = start(flood)
        App.objects.update(base_url=server.url)
        _, watch = world.watch(names(3))
        started = time.monotonic()
        world.sync(watch)
    assert time.monotonic() - started < 10
    assert (watch.status, world.runs(watch)[0].files_done) == (Status.SYNCED, 3)


@pytest.mark.parametrize("status", [404, 410])
def test_404_to_a_delete_in_doubt_counts_as_done(world: World, status: int) -> None:
    repo, watch = world.watch({"keep.txt": b"1", "gone.txt": b"2"})
    world.answer(refusing("gone.txt"))  # the client may have processed it
    world.sync(watch)
    repo.commit({"gone.txt": None})

    def hook(note: Notification) -> Answer | None:
        return Answer(status) if note.kind == "delete" else None

    world.answer(hook)
    world.sync(watch)
    assert watch.status == Status.SYNCED
    assert set(world.rows(watch)) == {"keep.txt"}
    assert not App.objects.get().paused


def test_pausing_an_app_stops_its_run_until_resume(
    world: World,
) -> None:
    one_by_one(world)
    repo, watch = world.watch(names(60))

    def pause_at_the_fifth(notification: Notification) -> Answer | None:
        if notification.path == "file-05.txt":
            App.objects.filter(pk=world.app.pk).update(paused=True)
        time.sleep(0.05)
        return None

    world.answer(pause_at_the_fifth)
    watch = world.sync(watch)
    assert watch.status == Status.PENDING
    assert watch.lease_until is None
    assert 5 < len(world.copy(watch)) < 60
    run = world.runs(watch)[0]
    assert (run.outcome, run.files_done) == ("", len(world.copy(watch)))
    App.objects.filter(pk=world.app.pk).update(paused=False)
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert [run.outcome for run in world.runs(watch)] == [Outcome.SUCCEEDED]


def test_bytes_in_flight_are_bounded(world: World, monkeypatch) -> None:
    monkeypatch.setattr(sender, "BYTES_IN_FLIGHT", 10_000)
    repo, watch = world.watch({f"{number}.txt": b"%d" % number * 4000 for number in range(8)})
    world.answer(lambda note: time.sleep(0.03))
    world.sync(watch)
    assert max(record.in_flight for record in world.receiver.log) == 2
    assert_promise_kept(world, repo, watch)


def test_busy_app_leaves_one_refused_file_listed(world: World) -> None:
    """The file whose response ended the run. The others are sent again later."""
    _, watch = world.watch({f"{number}": b"%d" % number for number in range(5)})
    world.answer(lambda note: Answer(429, headers={"Retry-After": "120"}))
    world.sync(watch)
    assert len(world.requests()) > 1
    assert watch.failures.count() == 1
