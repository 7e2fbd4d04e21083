"""Checks for a new HEAD, one small request per watch in the sweep, and the circuit breaker (`engine.md` §6 and §10)."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import OperationalError, connection
from django.db.models import F
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from redis import Redis

from deliveries_app import scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Status, SyncRun
from deliveries_app.progress import runs
from deliveries_app.services import cancel_request, cancel_sync, resync_single, rollout, unwatch_repository
from deliveries_app.sweep import head_checks, loop
from deliveries_app.sweep.head_checks import check_due
from docora.db.compiled import compiled
from docora.http.client import HttpClient
from repositories_app.git import process as git
from repositories_app.git import remote
from repositories_app.models import Repository
from tests.support.git import GitFixture, GitServer, Repo
from tests.support.histories import assert_promise_kept, refusing
from tests.support.processes import in_threads
from tests.support.receiver import wait_for
from tests.support.world import World


def settled(world: World, count: int) -> list[AppRepository]:
    """Return synced watches of different repositories, with an empty request log."""
    watches = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(count)]
    world.settle()
    world.git.server._log.clear()
    return watches


def test_round_after_a_database_error_gets_no_earlier_answers(world: World) -> None:
    """The sweep reuses one HTTP client. Answers left over from a failed round once reached the next round's outage probes,
    which mistook watches for ended outages and deleted them.
    """
    watches = settled(world, 3)

    def fails() -> None:
        if client.in_flight:
            raise OperationalError("the server closed the connection")

    make_checks_due()
    with remote.new_client() as client:
        with pytest.raises(OperationalError):
            check_due(client, fails)
        assert not client.in_flight
        make_checks_due()
        assert check_due(client) == 3
    assert set(AppRepository.objects.alive()) == set(watches)


def test_checks_are_recorded_in_the_order_of_primary_keys(world: World) -> None:
    """Like every other change of several watches. Otherwise, they could deadlock."""
    settled(world, 3)
    with CaptureQueriesContext(connection) as queries:
        world.check()
    written = next(number for number, query in enumerate(queries) if '"last_scanned_at" = ' in query["sql"])
    before = queries.captured_queries[written - 1]["sql"]
    assert "ORDER BY 1 ASC" in before
    assert connection.vendor != "postgresql" or "FOR NO KEY UPDATE" in before


def make_checks_due() -> None:
    AppRepository.objects.update(next_check_at=Now() - timedelta(seconds=1))


def due() -> set[int]:
    return set(AppRepository.objects.due().values_list("pk", flat=True))


def no_git(*_: object, **__: object) -> None:
    raise AssertionError("a git process was started")


def test_unchanged_repository_costs_one_request(world: World, monkeypatch) -> None:
    watches = settled(world, 3)
    before = {row["id"]: row for row in AppRepository.objects.values()}
    runs = SyncRun.objects.count()
    monkeypatch.setattr(git, "start", no_git)
    assert world.check() == 3
    assert sorted((request.method, request.target) for request in world.git.server.requests) == [
        ("POST", f"/{watch.repository}/git-upload-pack") for watch in watches
    ]
    for row in AppRepository.objects.values():
        changed = {name for name, value in row.items() if before[row["id"]][name] != value}
        assert changed == {"last_scanned_at", "next_check_at"}
    assert SyncRun.objects.count() == runs
    assert due() == set()


def test_checks_are_written_in_bulk(world: World) -> None:
    def queries(count: int) -> int:
        make_checks_due()
        with CaptureQueriesContext(connection) as captured, remote.new_client() as client:
            assert check_due(client) == count
        return len(captured)

    settled(world, 2)
    few = queries(2)
    for number in range(2, 8):
        world.watch(name=f"acme/widgets-{number}")
    world.settle()
    assert queries(8) == few


@pytest.fixture
def slices_of_three(monkeypatch) -> None:
    monkeypatch.setattr(head_checks, "SLICE", 3)
    monkeypatch.setattr(head_checks, "_due_for_check", compiled(head_checks._due_for_check.__wrapped__))


@pytest.mark.usefixtures("slices_of_three")
def test_sweep_checks_due_watches_in_slices(world: World, monkeypatch) -> None:
    settled(world, 7)
    slices = []
    take = head_checks._take_slice

    def taken() -> list[AppRepository]:
        slices.append(take())
        return slices[-1]

    monkeypatch.setattr(head_checks, "_take_slice", taken)
    assert world.check() == 7
    assert [len(watches) for watches in slices] == [3, 3, 1]


@pytest.mark.usefixtures("slices_of_three")
def test_round_ends_although_its_first_watches_are_due_again(world: World, monkeypatch) -> None:
    watches, server = settled(world, 7), world.git.server
    monkeypatch.setattr(head_checks, "next_check", Now)
    make_checks_due()
    with remote.new_client() as client:
        assert check_due(client, lambda: pytest.fail("no end") if len(server.requests) > 30 else None) == len(watches)


def test_ten_watches_are_asked_at_the_same_time(world: World) -> None:
    settled(world, 10)
    world.git.server.on_request = lambda method, target: time.sleep(0.4)
    started = time.monotonic()
    assert world.check() == 10
    assert time.monotonic() - started < 2


def test_two_sweeps_at_once_take_each_watch_once(world: World) -> None:
    settled(world, 6)
    make_checks_due()
    world.git.server.on_request = lambda method, target: time.sleep(0.1)

    def sweep() -> int:
        with remote.new_client() as client:
            return check_due(client)

    assert sum(in_threads(sweep, sweep)) == 6  # type: ignore[arg-type]
    assert len(world.git.server.requests) == 6


def test_slow_git_host_does_not_delay_due_watches(world: World) -> None:
    settled(world, 1)
    world.git.server.on_request = lambda method, target: time.sleep(2.5)
    make_checks_due()
    calls: list[float] = []
    with remote.new_client() as client:
        check_due(client, lambda: calls.append(time.monotonic()))
    assert len(calls) >= 3


@pytest.mark.parametrize("is_old", [False, True])
def test_sweep_stops_at_once_while_a_git_host_hangs(world: World, monkeypatch, is_old: bool) -> None:
    """The watches that it had taken are due again for the next sweep."""
    watches, server = settled(world, 3), world.git.server
    if is_old:
        make_old(server, 30)
    else:
        server.on_request = lambda method, target: time.sleep(8)
    make_checks_due()
    monkeypatch.setattr(loop, "stopping", lambda: len(server.requests) >= 3)
    started = time.monotonic()
    loop.sweep_forever()
    assert time.monotonic() - started < 7
    assert AppRepository.objects.filter(next_check_at__lte=Now()).count() == len(watches)


@pytest.mark.parametrize("fails", [False, True])
def test_sweep_that_waits_for_its_next_round_is_alive(
    world: World, settings, redis_client: Redis, monkeypatch, fails: bool
) -> None:
    """Unless the last round failed."""
    settings.SWEEP_INTERVAL_SECONDS = 600
    monkeypatch.setattr(loop, "_WAKE_SECONDS", 0)
    if fails:
        monkeypatch.setattr(head_checks, "check_due", fail)
    sweep_once, enqueue_due, ended, calls = loop.sweep_once, loop._enqueue_due, False, 0

    def one_round(client: HttpClient, *, last_failed: bool) -> int:
        nonlocal ended
        try:
            return sweep_once(client, last_failed=last_failed)
        finally:
            ended = True
            redis_client.delete("docora:heartbeat:sweep")

    def counted() -> int:
        nonlocal calls
        calls += ended
        return enqueue_due()

    monkeypatch.setattr(loop, "sweep_once", one_round)
    monkeypatch.setattr(loop, "_enqueue_due", counted)
    monkeypatch.setattr(loop, "stopping", lambda: calls >= 2)
    loop.sweep_forever()
    assert bool(redis_client.exists("docora:heartbeat:sweep")) is not fails


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no server")
def test_sweep_keeps_its_connection(world: World, monkeypatch) -> None:
    """A new one each second would cost several times as much as its statements."""
    backends: list[int] = []
    enqueue_due = loop._enqueue_due

    def noted() -> int:
        enqueued = enqueue_due()
        backends.append(connection.connection.info.backend_pid)
        return enqueued

    monkeypatch.setattr(loop, "_WAKE_SECONDS", 0)
    monkeypatch.setattr(loop, "_enqueue_due", noted)
    monkeypatch.setattr(loop, "stopping", lambda: len(backends) >= 3)
    loop.sweep_forever()
    assert len(set(backends)) == 1


def fail(*_: object) -> None:
    raise ValueError("a bug")


def fail_while_checking(client: HttpClient, meanwhile: Callable[[], None]) -> None:
    meanwhile()
    fail()


@pytest.mark.parametrize(
    ("module", "part", "failure"),
    [
        (head_checks, "check_due", fail),
        (head_checks, "check_due", fail_while_checking),
        (runs, "close_abandoned_operations", fail),
        (loop, "end_dead_leases", fail),
        (rollout, "release_due", fail),
    ],
)
def test_sweep_continues_after_a_failure_in_one_part(
    world: World,
    settings,
    redis_client: Redis,
    monkeypatch,
    caplog,
    module: object,
    part: str,
    failure: Callable[..., None],
) -> None:
    """It does the other parts, and counts as late until a whole round succeeds."""
    world.watch()
    redis_client.flushall()
    rounds_left, sweep_once = 0, loop.sweep_once

    def one_round(client: HttpClient, *, last_failed: bool) -> int:
        nonlocal rounds_left
        if rounds_left == 3:  # in the first round, it sends heartbeats while it waits for git hosts
            redis_client.delete("docora:heartbeat:sweep")
        try:
            return sweep_once(client, last_failed=last_failed)
        finally:
            rounds_left -= 1

    monkeypatch.setattr(loop, "sweep_once", one_round)
    monkeypatch.setattr(loop, "stopping", lambda: rounds_left == 0)
    monkeypatch.setattr(loop, "_WAKE_SECONDS", 0)
    settings.SWEEP_INTERVAL_SECONDS = 0
    with monkeypatch.context() as broken:
        broken.setattr(module, part, failure)
        rounds_left = 4
        loop.sweep_forever()
    assert "sweep_failed_unexpectedly" in caplog.text
    assert "ValueError: a bug" in caplog.text
    assert redis_client.llen("rq:queue:default") == 1
    assert not redis_client.exists("docora:heartbeat:sweep")
    rounds_left = 2
    loop.sweep_forever()
    assert redis_client.exists("docora:heartbeat:sweep")


CHANGES: dict[str, Callable[[World, AppRepository], object]] = {
    "a new commit": lambda world, watch: _repo(world).commit({"new.txt": b"x"}),
    "a force-push": lambda world, watch: _repo(world).force_push({"other.txt": b"x"}),
    "HEAD on another branch": lambda world, watch: _repo(world).rename_branch("trunk"),
}


def _repo(world: World) -> Repo:
    return Repo("acme/widgets-0", world.git.directory / "acme/widgets-0.git", world.git.server)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_head_makes_the_watch_due(world: World, change: str) -> None:
    (watch,) = settled(world, 1)
    CHANGES[change](world, watch)
    world.check()
    assert due() == {watch.pk}
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, _repo(world), watch)
    world.check()
    assert due() == set()


def test_changed_rules_make_an_unchanged_watch_due(world: World, settings) -> None:
    _, watch = world.watch({"small.txt": b"1", "large.txt": b"x" * 200})
    settings.MAX_FILE_BYTES = 100
    world.settle()
    assert set(world.copy(watch)) == {"small.txt"}
    settings.MAX_FILE_BYTES = 1000
    world.settle()
    assert set(world.copy(watch)) == {"small.txt", "large.txt"}


def test_each_watch_is_compared_with_its_own_base(world: World) -> None:
    (early,) = settled(world, 1)
    _repo(world).commit({"new.txt": b"x"})
    late = world.watch_url(_repo(world), app=world.add_app("Late"))
    world.sync(late)
    world.check()
    assert due() == {early.pk}


def test_unwatched_repository_is_not_checked(world: World) -> None:
    [watch] = settled(world, 1)
    unwatch_repository(Actor.command(), watch)
    assert world.check() == 0
    assert not world.git.server.requests


def test_watch_that_waits_without_a_failure_is_not_checked(world: World) -> None:
    (_watch,) = settled(world, 1)
    AppRepository.objects.update(next_sync_at=Now() + timedelta(seconds=50))
    assert world.check() == 0
    assert world.git.server.requests == []


def test_slow_host_does_not_delay_what_another_has_answered(world: World) -> None:
    repo, quick = world.watch(name="acme/quick")
    world.watch(name="acme/slow")
    world.settle()
    repo.commit({"new": b"new"})
    is_due = threading.Event()
    found: list[bool] = []

    def think(method: str, target: str) -> None:
        if "slow" in target:
            found.append(is_due.wait(10))

    def note_due() -> None:
        if AppRepository.objects.due().filter(pk=quick.pk).exists():
            is_due.set()

    world.git.server.on_request = think
    make_checks_due()
    with remote.new_client() as client:
        assert check_due(client, note_due) == 2
    assert found == [True]
    assert [watch.pk for watch in AppRepository.objects.due()] == [quick.pk]


@pytest.mark.parametrize("meanwhile", ["failed", "cancelled"])
def test_late_answer_does_not_make_a_waiting_watch_due(world: World, settings, meanwhile: str) -> None:
    """A sync began during the check, and read HEAD itself."""
    settings.RETRY_BASE_DELAY_SECONDS = 60
    repo, watch = world.watch()
    world.settle()
    repo.commit({"readme.md": b"changed"})
    world.answer(refusing("readme.md"))
    requests: list[str] = []

    def act_first(method: str, target: str) -> None:
        requests.append(target)
        if len(requests) > 1:
            return
        if meanwhile == "failed":
            world.sync(watch)
        else:
            scheduling.request_sync(AppRepository.objects.filter(pk=watch.pk))
            cancel_sync(Actor.command(), watch)
        connection.close()

    world.git.server.on_request = act_first
    assert world.check() == 1
    assert not AppRepository.objects.due().exists()
    assert AppRepository.objects.scheduled().exists()


def test_each_watch_is_checked_with_its_own_token(world: World) -> None:
    repo = world.git.repo("acme/private", {"secret.txt": b"1"}, token="good")
    mine = world.watch_url(repo, token="good")
    theirs = world.watch_url(repo, app=world.add_app("Other"), token="good")
    world.settle()
    world.git.tokens["acme/private"] = {"good"}
    AppRepository.objects.filter(pk=theirs.pk).update(github_token="not-good-any-more")
    repo.commit({"secret.txt": b"2"})
    world.git.server._log.clear()
    world.check()
    assert {request.token for request in world.git.server.requests} == {"good", "not-good-any-more"}
    world.sync(mine)
    world.sync(theirs)
    assert_promise_kept(world, repo, mine)
    assert (theirs.status, theirs.last_error_cause) == (Status.FAILED, "auth")
    assert "token" in theirs.last_error
    assert "not-good-any-more" not in theirs.last_error
    assert world.copy(theirs)["secret.txt"] != world.copy(mine)["secret.txt"]
    assert mine.repository.consecutive_failures == 0


def make_old(server: GitServer, seconds: float = 0.0) -> None:
    """Make the server ignore protocol v2, and take this long to answer git."""

    def slow(method: str, target: str) -> None:
        if method == "GET":
            time.sleep(seconds)

    server.speaks_v2, server.on_request = False, slow


def test_server_without_protocol_v2_is_checked_by_git(world: World) -> None:
    make_old(world.git.server)
    repo, watch = world.watch({"a.txt": b"1"})
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)
    assert watch.branch == "main"
    assert any("info/refs" in request.target for request in world.git.server.requests)
    repo.commit({"b.txt": b"2"})
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)


def test_slow_old_host_fails_no_other_check(world: World, tmp_path: Path, monkeypatch, caplog) -> None:
    """Answers that arrive while git waits for the old host do not count as late."""
    request = remote.upload_pack_request
    monkeypatch.setattr(
        remote, "upload_pack_request", lambda *args, **options: request(*args, **options | {"timeout": 2})
    )
    with GitFixture(tmp_path / "old") as old:
        world.watch_url(old.repo("acme/old", {"a.txt": b"1"}))
        changed, _, _ = settled(world, 3)
        _repo(world).commit({"new.txt": b"x"})
        AppRepository.objects.update(last_scanned_at=None)
        world.git.server.on_request = lambda method, target: time.sleep(0.5)
        make_old(old.server, 3)
        assert world.check() == 4
    assert "check_failed" not in caplog.messages
    assert due() == {changed.pk}
    assert not AppRepository.objects.filter(last_scanned_at=None).exists()


def test_slow_old_host_delays_no_watch_that_becomes_due_meanwhile(world: World, tmp_path: Path) -> None:
    """Also another repository of a host without protocol v2."""
    with GitFixture(tmp_path / "slow") as slow, GitFixture(tmp_path / "old") as old:
        world.watch_url(slow.repo("acme/slow", {"a.txt": b"1"}))
        pks = [watch.pk for watch in settled(world, 1)]
        pks.append(world.watch_url(old.repo("acme/old", {"a.txt": b"1"})).pk)
        world.settle()
        others = AppRepository.objects.filter(pk__in=pks)
        others.update(next_check_at=Now() + timedelta(hours=1), last_scanned_at=None)
        make_old(old.server)
        others_are_checked = threading.Event()

        def let_others_become_due(method: str, target: str) -> None:
            if method == "GET":
                others.filter(last_scanned_at=None).update(next_check_at=Now())
                assert others_are_checked.wait(20)

        def meanwhile() -> None:
            if not others.filter(last_scanned_at=None).exists():
                others_are_checked.set()

        slow.server.speaks_v2, slow.server.on_request = False, let_others_become_due
        AppRepository.objects.exclude(pk__in=pks).update(next_check_at=Now())
        with remote.new_client() as client:
            assert check_due(client, meanwhile) == 3
    assert others_are_checked.is_set()


def test_push_while_git_asks_an_old_host(world: World) -> None:
    """It makes the watch due again, so the host is asked twice."""
    [watch] = settled(world, 1)
    rows = AppRepository.objects.filter(pk=watch.pk)
    asked = threading.Event()

    def push(method: str, target: str) -> None:
        if method == "GET" and not asked.is_set():
            asked.set()
            rows.update(next_check_at=Now())
            wait_for(lambda: rows.filter(next_check_at__gt=Now()).exists())

    make_old(world.git.server)
    world.git.server.on_request = push
    make_checks_due()
    with remote.new_client() as client:
        assert check_due(client) == 1
    assert [request.method for request in world.git.server.requests].count("GET") == 2


def test_old_host_without_time_left_is_checked_a_minute_later(world: World, monkeypatch) -> None:
    monkeypatch.setattr(remote, "GIT_SECONDS", 1.0)
    watches = settled(world, 2)
    AppRepository.objects.update(last_scanned_at=None)
    make_old(world.git.server, 3)
    world.check()
    (left_out,) = AppRepository.objects.filter(last_scanned_at=None)
    assert due() == {watch.pk for watch in watches} - {left_out.pk}
    assert left_out.next_check_at is not None
    assert 50 < (left_out.next_check_at - timezone.now()).total_seconds() <= head_checks.TAKEN_SECONDS


def a_round_later() -> None:
    """Move the last failure further back than the rescan interval."""
    Repository.objects.update(last_failure_at=Now() - timedelta(seconds=1000))


def circuit(watch: AppRepository) -> tuple[int, bool]:
    repository = Repository.objects.get(pk=watch.repository_id)
    return repository.consecutive_failures, repository.circuit_is_open


def test_failure_counts_once_per_round_and_opens_the_circuit(world: World, settings) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 3
    (watch,) = settled(world, 1)
    other = world.watch_url(_repo(world), app=world.add_app("Other"))
    world.settle()
    world.git.server.on_request = lambda method, target: 503
    for count in (1, 2, 3):
        for _ in range(2):
            world.sync(watch)
            world.sync(other)
        assert circuit(watch) == (count, count == 3)
        a_round_later()
    assert watch.next_sync_at is not None
    world.git.server._log.clear()
    world.sync(watch)
    world.check()
    assert world.git.server.requests == []
    assert watch.status in {Status.PENDING, Status.FAILED}
    assert watch.next_sync_at is not None
    cooldown = Repository.objects.get(pk=watch.repository_id).circuit_open_until
    assert abs((watch.next_sync_at - cooldown).total_seconds()) < 5


def test_host_that_asked_for_a_pause_is_not_checked_meanwhile(world: World) -> None:
    (watch,) = settled(world, 1)
    world.git.server.on_request = lambda method, target: 429  # without Retry-After, for a minute
    world.sync(watch)
    fifty_seconds = timedelta(seconds=50)
    AppRepository.objects.update(next_check_at=F("next_check_at") - fifty_seconds)
    with remote.new_client() as client:
        assert check_due(client) == 0
        AppRepository.objects.update(next_check_at=F("next_check_at") - fifty_seconds)
        assert check_due(client) == 1


def open_circuit(watch: AppRepository, seconds: float) -> None:
    Repository.objects.filter(pk=watch.repository_id).update(
        consecutive_failures=5, last_failure_at=Now(), circuit_open_until=Now() + timedelta(seconds=seconds)
    )
    watch.repository.refresh_from_db()


def test_successful_probe_closes_the_circuit(world: World) -> None:
    (watch,) = settled(world, 1)
    open_circuit(watch, 60)
    _repo(world).commit({"new.txt": b"x"})
    assert world.check() == 0
    open_circuit(watch, -1)
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, _repo(world), watch)
    assert circuit(watch) == (0, False)


def test_failed_probe_reopens_the_circuit(world: World) -> None:
    (watch,) = settled(world, 1)
    open_circuit(watch, -1)
    world.git.server.on_request = lambda method, target: 503
    world.sync(watch)
    assert circuit(watch)[1]


def test_manual_resync_probes_an_open_circuit(world: World) -> None:
    (watch,) = settled(world, 1)
    open_circuit(watch, 1000)
    resync_single(Actor.command(), watch)
    world.sync(watch)
    assert_promise_kept(world, _repo(world), watch)
    assert circuit(watch) == (0, False)
    assert len([record for record in world.requests() if record.reason == "resync"]) == 1


def test_new_watch_syncs_despite_an_open_circuit(
    world: World,
) -> None:
    (watch,) = settled(world, 1)
    open_circuit(watch, 1000)
    late = world.watch_url(_repo(world), app=world.add_app("Late"))
    world.sync(late)
    assert_promise_kept(world, _repo(world), late)
    assert circuit(watch) == (0, False)


def test_cancelled_probe_waits_for_the_circuit(world: World) -> None:
    (watch,) = settled(world, 1)
    open_circuit(watch, 1000)
    resync_single(Actor.command(), watch)
    cancel_request(Actor.command(), watch)
    world.git.server._log.clear()
    world.sync(watch)
    assert world.git.server.requests == []
    assert watch.next_sync_at is not None


def test_refused_token_does_not_count_towards_the_circuit(world: World) -> None:
    repo = world.git.repo("acme/private", {"secret.txt": b"1"}, token="good")
    watch = world.watch_url(repo, token="good")
    world.git.tokens["acme/private"] = {"other"}
    world.sync(watch)
    assert watch.status == Status.FAILED
    assert circuit(watch) == (0, False)
